"""Images in an .npz file."""

import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from resvae.data.sources import Images, Request, Source, channels_first, split_off
from resvae.errors import ResvaeError, one_line

NEEDS_PATH = True


def read(request: Request) -> Source:
    """The arrays ``images`` and ``labels``, ``test_images`` and ``test_labels``; all but the first may be missing."""
    path = Path(str(request.path))
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, TypeError, BadZipFile, zlib.error) as error:
        raise ResvaeError(f"data.path: {path} is not an .npz of plain arrays ({one_line(error)})") from error
    if "images" not in arrays:
        raise ResvaeError(f"data.path: {path} holds {', '.join(arrays) or 'nothing'}, but no array named images")

    def part(prefix: str) -> Images:
        x = channels_first(arrays[f"{prefix}images"], f"{path}: {prefix}images")
        if not len(x):
            raise ResvaeError(f"data.path: {path}: {prefix}images holds no images")
        y = arrays.get(f"{prefix}labels", np.zeros(len(x), np.int64))
        if y.shape != (len(x),) or y.dtype.kind not in "iu" or (len(y) and y.min() < 0):
            raise ResvaeError(
                f"data.path: {path}: {prefix}labels are {y.dtype} of shape {y.shape}; "
                f"they must be {len(x)} whole numbers from 0, one for each of {prefix}images"
            )
        return Images(x, torch.from_numpy(y.astype(np.int64)))

    if "test_images" in arrays:
        if ("labels" in arrays) != ("test_labels" in arrays):
            raise ResvaeError(f"data.path: {path} holds only one of labels and test_labels; give both or neither")
        return Source(part(""), part("test_"))
    return split_off(part(""))
