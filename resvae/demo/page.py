"""The page: what stands where, and what is computed anew when something on it changes."""

import base64
import html
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

from resvae.demo.actions import between, blocks, draw, lesioned, levels, nats, read, seen
from resvae.errors import ResvaeError
from resvae.models import HierarchicalVAE, ImageVAE
from resvae.models.levels import redrawn

LARGEST, WIDTH = 230, 720  # pixels: of an image, and of a row of them
ROW = 6  # images of a walk
EXAMPLE = "seed of the example (where there is no picture)"
STYLE = """
.tiles { display: grid; gap: 10px; justify-content: start }
.tiles figure { margin: 0 }
.tiles img { width: 100%; image-rendering: pixelated; border-radius: 4px }
.tiles figcaption { font-size: 13px; text-align: center }
.bars { display: grid; grid-template-columns: max-content 320px max-content; gap: 5px 12px; margin-top: 24px }
.bars b { grid-column: 1 / -1 }
.bars i { height: 16px; align-self: center; border-radius: 3px; background: var(--primary-500) }
.notice { padding: 12px 16px; border-left: 4px solid var(--primary-500); background: var(--background-fill-secondary) }
.upload img { width: 100% !important; height: 100% !important; object-fit: contain }
footer { display: none !important }
"""


def page(vae: ImageVAE, name: str) -> gr.Blocks:
    """The page of a model, with a tab for each thing that can be done with it."""
    with gr.Blocks(title=f"resvae: {name}", analytics_enabled=False, delete_cache=(3600, 86400)) as whole:
        size, params = "x".join(map(str, vae.image_shape)), sum(p.numel() for p in vae.parameters())
        gr.Markdown(f"# {name}\n{type(vae).__name__}, {params:,} parameters, images of {size}")
        with gr.Tabs():
            _draw(vae)
            _picture(vae)
            _between(vae)
            if blocks(vae) or isinstance(vae, HierarchicalVAE):
                _lesion(vae)
            if isinstance(vae, HierarchicalVAE):
                _walk(vae)
    return whole


def serve(whole: gr.Blocks, host: str, port: int) -> str:
    """Start to serve the page, and return its address."""
    _, address, _ = whole.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        max_file_size="50mb",
        css=STYLE,
        theme=gr.themes.Default(),  # it brings its own fonts
    )
    return address


def _draw(vae: ImageVAE) -> None:
    def controls() -> list[Any]:
        first = [_seed(), _number(gr.Slider(1, 64, 16, step=1, label="images"), int)]
        return first + [_number(gr.Slider(0, 1.5, 1, step=0.05, label=f"temperature, {name}")) for name in levels(vae)]

    def show(seed: int, num: int, *temperatures: float) -> str:
        return _tiles(draw(vae, num, temperatures, seed), columns=math.ceil(math.sqrt(num)))

    _tab("Draw", "New images. Temperature 0 is the mean of a level's prior.", controls, show)


def _picture(vae: ImageVAE) -> None:
    def show(file: str | None, seed: int) -> str:
        x, names = _read(vae, file, seed), [*levels(vae)]
        captions = ["picture", "no level sees it", "1 level", *(f"{num} levels" for num in range(2, len(names) + 1))]
        return _tiles(torch.cat([x, seen(vae, x)]), captions, 5) + _bars("KL, nats", names, nats(vae, x))

    told = "A picture as the model is given it, and reconstructions in which only the coarsest levels see it."
    _tab("Your picture", told, lambda: [_upload("picture"), _seed(EXAMPLE)], show)


def _between(vae: ImageVAE) -> None:
    def controls() -> list[Any]:
        with gr.Row():
            files = [_upload("from"), _upload("to")]
        return [_number(gr.Slider(0, 1, 0.5, step=0.05, label="how far")), *files, _seed(EXAMPLE)]

    def show(part: float, a: str | None, b: str | None, seed: int) -> str:
        start, end = _read(vae, a, seed), _read(vae, b, seed, 1)
        return _tiles(torch.cat([start, between(vae, start, end, part), end]), ["from", f"{part:.0%} of the way", "to"])

    _tab("Between", "Images on the line between the latents of two pictures.", controls, show)


def _lesion(vae: ImageVAE) -> None:
    names = [*levels(vae)] if isinstance(vae, HierarchicalVAE) else [], [*blocks(vae)]

    def controls() -> list[Any]:
        first = [_upload("picture"), _seed(EXAMPLE)]
        labels = "levels off: they take their prior's mean", "blocks off: they add nothing"
        return first + [gr.CheckboxGroup(each, label=labels[i], visible=bool(each)) for i, each in enumerate(names)]

    def show(file: str | None, seed: int, off: list[str], removed: list[str]) -> str:
        x, num = _read(vae, file, seed), len(off) + len(removed)
        images = torch.cat([x, lesioned(vae, x), lesioned(vae, x, off, removed)])
        return _tiles(images, ["picture", "reconstruction", f"with {num} switched off"])

    _tab("Lesion", "The reconstruction of a picture without parts of the decoder.", controls, show)


def _walk(vae: HierarchicalVAE) -> None:
    def show(name: str, seed: int) -> str:
        return _tiles(redrawn(vae, levels(vae)[name], ROW, seed=seed))

    names = [*levels(vae)]
    told = "What a level decides: it draws anew in each image, and the noise of all others stays."
    _tab("Walk", told, lambda: [gr.Radio(names, value=names[0], label="redrawn"), _seed()], show)


def _tab(title: str, about: str, controls: Callable[[], list[Any]], show: Callable[..., str]) -> None:
    """A tab of controls beside what ``show`` makes of their values: when the page opens, and when one changes."""

    def told(*values: Any) -> str:
        try:
            return show(*values)
        except ResvaeError as error:
            text = str(error)
            return f'<p class="notice">{html.escape(text[:1].upper() + text[1:])}.</p>'

    with gr.Tab(title):
        gr.Markdown(about)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                inputs = controls()
            with gr.Column(scale=3):
                shown = gr.HTML()
    # One at a time: a lesion changes the model while it lasts, and the random stream is that of the process.
    gr.on(
        None,
        told,
        inputs,
        shown,
        concurrency_id="model",
        concurrency_limit=1,
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
    )


def _seed(label: str = "seed") -> gr.Number:
    return _number(gr.Number(0, label=label, precision=0, minimum=0, maximum=2**32 - 1), int)


def _number(control: Any, kind: type = float) -> Any:
    """The control, where a number that is not allowed counts as the nearest one that is; Gradio's own check fails."""
    control.preprocess = lambda value: kind(min(max(value or 0, control.minimum), control.maximum))
    return control


def _upload(label: str) -> gr.Image:
    """Where a picture is dropped, chosen or taken; its value is the file as it was sent."""
    upload = gr.Image(label=label, type="filepath", height=200, min_width=120, elem_classes="upload", buttons=[])
    upload.preprocess = lambda payload: payload and payload.path  # Gradio's own fails for what is no picture
    return upload


def _read(vae: ImageVAE, file: str | None, seed: int, which: int = 0) -> Tensor:
    """The picture ``[1, C, H, W]`` in [0, 1]; where there is none, one that the model draws."""
    return draw(vae, which + 1, seed=seed)[which:] if file is None else read(file, vae) / 255


def _tiles(images: Tensor, captions: Sequence[str] = (), columns: int | None = None) -> str:
    """Images ``[N, C, H, W]`` in [0, 1] in rows, enlarged so that their pixels can be seen."""
    if images.shape[1] not in (1, 3):  # no colours to speak of: the channels' mean
        images = images.mean(1, keepdim=True)
    columns = columns or len(images)
    pixels = (255 * images.expand(-1, 3, -1, -1)).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    figures = "".join(
        _figure(each, caption) for each, caption in zip(pixels, captions or [""] * len(images), strict=True)
    )
    size = max(images.shape[-1], min(LARGEST, WIDTH // columns))
    return f'<div class="tiles" style="grid-template-columns: repeat({columns}, minmax(0, {size}px))">{figures}</div>'


def _figure(pixels: Any, caption: str) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    told = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="" src="data:image/png;base64,{data}">{told}</figure>'


def _bars(title: str, names: Sequence[str], values: Sequence[float]) -> str:
    """A chart of a bar per value."""
    longest = max(*values, 1e-9)
    rows = "".join(
        f'<span>{html.escape(name)}</span><i style="width: {value / longest:.1%}"></i><span>{value:.1f}</span>'
        for name, value in zip(names, values, strict=True)
    )
    return f'<div class="bars"><b>{html.escape(title)}</b>{rows}</div>'
