"""``resvae demo``: a page in the browser to play with a trained VAE."""

import os
import socket
from threading import Event

from resvae.errors import ResvaeError, one_line
from resvae.storage import load_vae

# Gradio reads them when it is imported: it would count its users, and look for a newer version of itself.
SILENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


def demo(model: str = "cifar10-hierarchical", port: int = 7860, host: str = "127.0.0.1") -> None:
    """Open a page to play with a VAE: resvae demo MODEL. It needs no network; Ctrl+C ends it.

    Args:
        model: a run's folder, a .ckpt, a saved folder or the name of shipped weights.
        port: of the page's address.
        host: of the page; 127.0.0.1 is seen from this machine alone, 0.0.0.0 from all that reach it.
    """
    if not 1 <= port <= 65535:
        raise ResvaeError(f"port: {port} is not allowed; 1 to 65535")
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise ResvaeError(f"port: {port} of host {host} cannot be used ({one_line(error)}); choose another") from error
    vae = load_vae(model)
    os.environ.update(SILENT)
    for name in ("no_proxy", "NO_PROXY"):  # Gradio asks its own server whether it stands
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "localhost", host]))
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ResvaeError("demo: the page needs the package gradio: pip install '.[demo]'") from error
    from resvae.demo.page import page, serve

    whole = page(vae, model)
    try:
        print(f"{model} is at {serve(whole, host, port)} (Ctrl+C ends it)", flush=True)
        Event().wait()
    finally:
        whole.close(verbose=False)
