"""The inspector as a page of its own: served as `make inspect` serves it, used in a real browser."""

import io
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from inspected import HOSTILE, make, noise
from PIL import Image

from xai_utils.explainers import EXPLAINERS

PATIENCE = 150_000  # milliseconds: a page begins with a kernel that imports torch, on a machine that may be busy


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of the page of a small project, served by the very command of the Makefile."""
    folder = make(tmp_path_factory.mktemp("a project") / "p")
    asked = subprocess.run(
        ["make", "-n", "--no-print-directory", "inspect"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    command = shlex.split(asked.stdout.strip().splitlines()[-1])
    assert command[0] == "voila"
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    log = folder / "voila.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", *command, "--no-browser", f"--port={port}"],
            cwd=folder,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + PATIENCE / 1000
        while True:
            try:  # a static file, for the page itself would start a kernel
                urllib.request.urlopen(f"http://127.0.0.1:{port}/voila/static/voila.js", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/", folder
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def picture(locator):
    """What the browser draws there, float (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB"), dtype=float)


def changed(page, locator, act):
    """Do `act` and wait until the picture's source is another; how much its pixels differ on average, of 255."""
    before, source = picture(locator), locator.get_attribute("src")
    act()
    deadline = time.monotonic() + PATIENCE / 1000
    while locator.get_attribute("src") == source:
        assert time.monotonic() < deadline, "the picture stays as it was"
        page.wait_for_timeout(50)
    return np.abs(picture(locator) - before).mean()


def test_the_page_answers_in_a_browser(served, browser, tmp_path):
    """Load, change a method, move a slider, click, upload, refuse, save: pictures change, text stays text, no request
    leaves this machine."""
    address, folder = served
    page = browser.new_page(viewport={"width": 1280, "height": 1500}, accept_downloads=True)
    dialogs, elsewhere = [], []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.on("requestfinished", lambda request: None if request.url.startswith((address, "data:", "blob:"))
            else elsewhere.append(request.url))  # fmt: skip
    page.goto(address, timeout=PATIENCE)
    column = page.locator(".xai-column").nth(1)
    overlay = column.locator(".shot img").first
    overlay.wait_for(timeout=PATIENCE)
    assert "enter_project" not in page.content()

    # a class that attacks HTML is text wherever it stands
    assert HOSTILE in page.locator(".bars").inner_text()
    options = page.locator("select option").all_text_contents()
    assert any(HOSTILE in option.replace("\xa0", " ") for option in options)  # ipywidgets keeps spaces from breaking
    assert page.locator("img[src='x']").count() == 0

    picker, gradient = column.locator("select").first, EXPLAINERS["gradient"].label
    assert changed(page, overlay, lambda: picker.select_option(gradient)) > 3
    handle = page.locator(".xai-controls .noUi-handle").first
    assert changed(page, overlay, lambda: (handle.click(), handle.press("Home"))) > 3

    overlay.click(position={"x": 20, "y": 30})
    page.locator(".xai-results th", has_text="pixel").wait_for(timeout=PATIENCE)

    good, bad = tmp_path / "good.png", tmp_path / "<b>bad<b>.png"
    noise(99, 80).save(good)
    bad.write_bytes(b"no image")
    card = page.locator(".xai-card .shot img")
    page.get_by_role("button", name="upload", exact=True).click()

    def upload(file):
        with page.expect_file_chooser(timeout=PATIENCE) as chooser:
            page.get_by_role("button", name="choose an image").click(timeout=PATIENCE)
        chooser.value.set_files(file)

    assert changed(page, card, lambda: upload(good)) > 3
    shown = card.get_attribute("src")
    upload(bad)
    page.locator(".xai-error", has_text="<b>bad<b>.png: not a readable image").wait_for(timeout=PATIENCE)
    assert card.get_attribute("src") == shown

    page.get_by_role("button", name="save what is shown").click()
    with page.expect_download(timeout=PATIENCE) as download:
        page.locator("a[download$='.png']").click(timeout=PATIENCE)
    with Image.open(Path(download.value.path())) as saved:
        assert "good.png" in saved.text["settings"]

    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert dialogs == []
    assert elsewhere == []
    assert sorted(path.name for path in folder.iterdir()) == [
        "build", "images", "notebooks", "params.yaml", "voila.json", "voila.log"
    ]  # fmt: skip
    page.close()


def test_only_this_machine_can_open_the_page(served):
    """The server listens on the loopback address itself and on no other."""
    address, _ = served
    with pytest.raises((ConnectionRefusedError, TimeoutError)):
        socket.create_connection(("127.0.0.2", int(address.rstrip("/").rsplit(":", 1)[1])), timeout=2)
