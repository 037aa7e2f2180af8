"""The page in a browser: each tab is used as a person uses it."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_runs import ENVIRONMENT
from PIL import Image

from resvae import HierarchicalVAE, save

BROWSER = shutil.which("chromium")
MISSING = [name for name in ("playwright", "gradio") if find_spec(name) is None]  # gradio itself is not imported here
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium (Debian: apt-get install chromium)"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (pip install '.[dev]')"),
]
ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
LONG = 60_000  # milliseconds: a busy machine


def start(model: str, folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A server of the model's page, which may not be ready yet; and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "resvae", "demo", model, "--port", str(port), "--device", "cpu"]
    uploads = {"GRADIO_TEMP_DIR": str(folder / f"uploads of {port}")}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may be deaf to it
    with (folder / f"{port}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=ENVIRONMENT | uploads)
    signal.signal(signal.SIGINT, before)
    return process, f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def addresses(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Two pages, of a hierarchical model and of one with a single latent, from two servers."""
    folder = tmp_path_factory.mktemp("pages")
    torch.manual_seed(0)
    vae = HierarchicalVAE((1, 1), (1, 2), 2, (3, 8, 8), (8, 8), (1, 2))
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(0.2 * torch.randn_like(p))
    servers = {name: start(name, folder) for name in (str(save(vae, folder / "levels")), "digits")}
    try:
        for name, (process, address) in servers.items():
            assert process.stdout is not None
            assert process.stdout.readline() == f"{name} is at {address} (Ctrl+C ends it)\n"
        yield {Path(name).name: address for name, (_, address) in servers.items()}
    finally:
        for process, _ in servers.values():
            process.send_signal(signal.SIGINT)
        for process, _ in servers.values():
            process.wait(60)
    for process, address in servers.values():
        assert process.returncode == 130
        told = (folder / f"{address[:-1].rpartition(':')[2]}.log").read_text()
        assert told == "resvae: interrupted\n"  # no traceback, no warning
        assert not [path for path in folder.glob("uploads of */**/*.png") if path.is_file()]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(browser, addresses) -> Iterator[tuple[Any, list[str]]]:
    """The page of the hierarchical model, and all that it has asked the network for."""
    page, asked = browser.new_page(), list[str]()
    page.set_default_timeout(LONG)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(addresses["levels"])
    yield page, asked
    page.close()


@pytest.fixture
def tab(opened) -> Callable[[str], Any]:
    """Opens the tab of this name, and returns it once it shows pictures."""
    page, _ = opened

    def open_tab(name: str) -> Any:
        page.get_by_role("tab", name=name).click()
        panel = page.get_by_role("tabpanel")  # of the open tab: the others are hidden
        panel.locator(".tiles img").first.wait_for()
        return panel

    return open_tab


def pictures(panel: Any) -> list[str]:
    return panel.locator(".tiles img").evaluate_all("images => images.map(image => image.src)")


def changed(panel: Any, act: Callable[[], object]) -> list[str]:
    """The pictures that the tab shows once they are others than before ``act``."""
    last, before, end = [], pictures(panel), time.monotonic() + LONG / 1000
    act()
    while (after := pictures(panel)) in (before, []) or after != last:  # they do not all change at once
        assert time.monotonic() < end, "nothing has changed"
        last = after
        panel.page.wait_for_timeout(100)
    return after


def write(panel: Any, name: str, number: int) -> list[str]:
    return changed(panel, lambda: panel.get_by_role("spinbutton", name=name).fill(str(number)))


def slide(panel: Any, name: str, number: float) -> list[str]:
    return changed(panel, lambda: panel.get_by_role("slider", name=name).fill(str(number)))


def test_drawn_images_follow_the_seed_the_number_and_the_temperatures(tab):
    panel = tab("Draw")
    first = pictures(panel)
    assert len(set(first)) == 16
    assert not set(first) & set(write(panel, "seed", 1))
    assert len(slide(panel, "for images", 4)) == 4
    for level in ("level 0, 4x4", "level 1, 8x8", "level 2, 8x8"):
        last = slide(panel, f"temperature, {level}", 0)
    assert len(set(last)) == 1


def test_a_picture_is_shown_by_levels_with_their_nats(tab, tmp_path):
    panel = tab("Your picture")
    names_and_nats = panel.locator(".bars span")
    drawn, before = pictures(panel), names_and_nats.all_inner_texts()
    assert (len(drawn), len(before)) == (1 + 4, 2 * 3)
    Image.radial_gradient("L").resize((50, 40)).save(tmp_path / "mine.png")
    mine = changed(panel, lambda: panel.locator("input[type=file]").set_input_files(tmp_path / "mine.png"))
    assert len(set(mine)) == 5
    assert mine[1] == drawn[1]  # no level sees it
    assert not {mine[0], *mine[2:]} & set(drawn)
    after = names_and_nats.all_inner_texts()
    assert after[::2] == before[::2] == ["level 0, 4x4", "level 1, 8x8", "level 2, 8x8"]
    assert after[1::2] != before[1::2]
    assert sorted(changed(panel, panel.get_by_role("button", name="Remove Image").click)) == sorted(drawn)


@pytest.mark.parametrize(("name", "told"), [("small.png", "9x5 pixels are too few"), ("text.png", "is not an image")])
def test_a_wrong_file_is_a_sentence_on_the_page(tab, tmp_path, name, told):
    panel = tab("Lesion")
    Image.new("L", (9, 5)).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no picture")
    panel.locator("input[type=file]").set_input_files(tmp_path / name)
    panel.locator(".notice").wait_for()
    assert told in panel.locator(".notice").inner_text()
    assert pictures(panel) == []
    assert len(changed(panel, panel.get_by_role("button", name="Remove Image").click)) == 3


def test_a_slider_leads_from_one_picture_to_another(tab, tmp_path):
    panel = tab("Between")
    start, middle, end = pictures(panel)
    assert len({start, middle, end}) == 3
    assert slide(panel, "how far", 0.9)[::2] == [start, end]
    near = pictures(panel)[1]
    assert near != middle
    Image.radial_gradient("L").save(tmp_path / "mine.png")
    other = changed(panel, lambda: panel.locator("input[type=file]").last.set_input_files(tmp_path / "mine.png"))
    assert other[0] == start
    assert not {end, near} & set(other)


def test_levels_and_blocks_are_switched_off_and_on(tab):
    panel = tab("Lesion")
    whole = pictures(panel)
    assert whole[1] == whole[2] != whole[0]
    for name in ("level 1, 8x8", "stages.1.1"):
        box = panel.get_by_role("checkbox", name=name)
        without = changed(panel, box.check)
        assert without[:2] == whole[:2]
        assert without[2] != whole[2]
        assert changed(panel, box.uncheck) == whole


def test_a_walk_redraws_one_level(tab):
    panel = tab("Walk")
    first = pictures(panel)
    assert len(set(first)) == 6
    other = changed(panel, panel.get_by_role("radio", name="level 2, 8x8").check)
    assert other[0] == first[0]  # all levels have its noise
    assert len(set(other) | set(first)) == 11
    assert not set(write(panel, "seed", 5)) & set(other)


def test_a_model_with_one_latent_has_the_tabs_that_make_sense(browser, addresses):
    page = browser.new_page()
    page.goto(addresses["digits"])
    page.locator(".tiles img").first.wait_for(timeout=LONG)
    assert page.get_by_role("tab").all_inner_texts() == ["Draw", "Your picture", "Between", "Lesion"]
    panel = page.get_by_role("tabpanel")
    assert len(set(slide(panel, "temperature, latents", 0))) == 1
    page.get_by_role("tab", name="Lesion").click()
    panel.get_by_role("checkbox").first.wait_for(timeout=LONG)
    names = ["stages.0.0", "stages.1.0 (changes the shape)"]
    assert panel.get_by_role("group").locator("label").all_inner_texts() == names
    page.close()


def test_the_page_asks_its_own_server_alone(opened, addresses):
    _, asked = opened
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((addresses["levels"], "data:", "blob:"))] == []
