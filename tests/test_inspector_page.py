"""The inspector as a page of its own: served as `make inspect` serves it, used in a browser, asked by others."""

import http.client
import io
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from conftest import ROOT, free_port
from inspected import HOSTILE, make, noise
from PIL import Image
from playwright.sync_api import Error

from xai_utils.explainers import EXPLAINERS

NAMED = "more pictures"  # a folder beside the project, and a name of this machine, that the command line gives
HOST = "Box.example:8000"
BROWSER = "import pathlib, sys; pathlib.Path(__file__).with_name('opened').write_text(sys.argv[1])"
PATIENCE = 150_000  # milliseconds: a page begins with a kernel that imports torch, on a machine that may be busy


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The printed address of the page of a small project, served by the command of the Makefile, and its folder."""
    folder = make(tmp_path_factory.mktemp("a project") / "p")
    (folder.parent / NAMED).mkdir()
    noise(77, 80).save(folder.parent / NAMED / "named.png")
    (folder.parent / "browser.py").write_text(BROWSER)
    given = [f"FOLDERS={str(folder.parent / NAMED)!r}", f"HOSTS={HOST}"]
    asked = subprocess.run(
        ["make", "-n", "--no-print-directory", "inspect", *given], cwd=ROOT, capture_output=True, text=True, check=True
    )
    python, *command = shlex.split(asked.stdout.strip().splitlines()[-1])
    assert python == "python"
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONDONTWRITEBYTECODE", "JUPYTER_TOKEN", "JUPYTER_TOKEN_FILE")
    }
    environment |= {"PYTHONPATH": str(ROOT), "BROWSER": f"'{sys.executable}' '{folder.parent}/browser.py' %s"}
    log = folder / "voila.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, *command, f"--port={free_port()}"],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + PATIENCE / 1000
        while not (printed := re.search(r"http://127.0.0.1:\d+/\?token=\w{32,}$", log.read_text(), re.MULTILINE)):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield printed[0], folder
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def picture(locator):
    """What the browser draws there, float (H, W, 3); seen again where a message replaced it in between."""
    deadline = time.monotonic() + PATIENCE / 1000
    while True:
        try:
            return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB"), dtype=float)
        except Error:
            if time.monotonic() > deadline:
                raise


def changed(page, locator, act):
    """Do `act` and wait until the picture's source is another; how much its pixels differ on average, of 255."""
    before, source = picture(locator), locator.get_attribute("src")
    act()
    deadline = time.monotonic() + PATIENCE / 1000
    while locator.get_attribute("src") == source:
        assert time.monotonic() < deadline, "the picture stays as it was"
        page.wait_for_timeout(50)
    return np.abs(picture(locator) - before).mean()


# In each frame: the name above the second method's pictures, the picture of its map, and its alt text.
WATCH = """() => { window.watched = []; const look = () => {
  const column = document.querySelectorAll('.xai-column')[1], shots = column.querySelectorAll('.shot img');
  if (shots.length) watched.push([column.querySelector('h3').textContent, shots[1].src, shots[1].alt]);
  requestAnimationFrame(look) }; look() }"""

# What can be set, or is a picture, and has no name.
UNNAMED = """() => [...document.querySelectorAll('.xai-inspector *')]
  .filter(each => each.matches('button, select, input, img, svg[role], [role=slider]') && each.checkVisibility()
    && !each.matches('img[width="1"], input[type=file]') && !(each.matches('button') && each.textContent.trim())
    && !each.getAttribute('aria-label') && !each.alt
    && ![...(each.labels || [])].some(label => label.textContent.trim()))
  .map(each => each.outerHTML.slice(0, 200))"""


# Texts that are less than 4.5 times as light as what they stand on, or the other way round; not those over pictures.
FAINT = """() => { const pen = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true}), found = [];
  const light = colours => { for (pen.fillStyle of ['#fff', ...colours]) pen.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map(each => each / 255).map(each =>
      each <= .04045 ? each / 12.92 : ((each + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b + .05; };
  const under = each => each ? [...under(each.parentElement), getComputedStyle(each).backgroundColor] : [];
  const texts = document.createTreeWalker(document.querySelector('.xai-inspector'), NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) { const each = texts.currentNode.parentElement, style = getComputedStyle(each);
    if (!texts.currentNode.data.trim() || !each.checkVisibility() || each.matches('style, .xai-thumbnails *')) continue;
    const ground = under(each), own = light([...ground, each.matches('text') ? style.fill : style.color]);
    if (Math.max(own / light(ground), light(ground) / own) < 4.5) found.push(each.outerHTML.slice(0, 200)); }
  return found }"""

# What the keyboard can reach, in the order of the page; from here on, what it has reached, and whether that is seen.
REACHABLE = """() => { window.reached = [];
  window.reachable = [...document.querySelectorAll(
    '.xai-inspector :is(a, button, select, input, [tabindex="0"], [contenteditable])')].filter(
    each => each.checkVisibility() && !each.disabled && (each.tabIndex >= 0 || each.isContentEditable));
  document.addEventListener('focusin', ({target}) => { const {outlineStyle, outlineWidth} = getComputedStyle(target);
    window.reached.push([target, outlineStyle === 'solid' && parseFloat(outlineWidth) >= 2]) });
  window.reachable[0].focus(); return window.reachable.length }"""
MISSED = """() => window.reachable.filter((each, place) => { const [target, seen] = window.reached[place] || [];
  return target !== each || !seen }).map(each => each.outerHTML.slice(0, 200))"""


def unnamed(page):
    return page.evaluate(UNNAMED)


def missed(page):
    """What keys do not reach in its order, or reach without showing it."""
    for _ in range(page.evaluate(REACHABLE) - 1):
        page.keyboard.press("Tab")
    return page.evaluate(MISSED)


def test_the_page_answers_in_a_browser(served, browser, tmp_path):
    """Load, pick a thumbnail, change a method, move a slider, click, upload, refuse, save, reopen: pictures change and
    never stand under another's name, text stays text, all has a name for a screen reader, is reached by keys and can be
    read in the light and in the dark, no request leaves this machine."""
    printed, folder = served
    address = printed.split("?")[0]
    page = browser.new_page(viewport={"width": 1280, "height": 1500}, accept_downloads=True)
    page.set_default_timeout(PATIENCE)
    dialogs, elsewhere = [], []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.on("requestfinished", lambda request: None if request.url.startswith((address, "data:", "blob:"))
            else elsewhere.append(request.url))  # fmt: skip
    page.goto(printed)
    column = page.locator(".xai-column").nth(1)
    overlay = column.locator(".shot img").first
    overlay.wait_for()
    assert "enter_project" not in page.content()
    page.locator(".xai-inspector .about", has_text="it knows 1000 classes").wait_for()
    assert "chelsea" in page.get_by_label("photograph", exact=True).inner_text()
    thumbnail = page.get_by_role("button", name="coffee")
    thumbnail.focus()
    assert thumbnail.evaluate("each => getComputedStyle(each).backgroundImage").startswith('url("data:image/jpeg')
    card = page.locator(".xai-card .shot img")
    assert changed(page, card, lambda: page.keyboard.press("Enter")) > 3
    assert "A cup of coffee" in card.get_attribute("alt")
    assert page.evaluate("document.activeElement.textContent") == "coffee, shown"  # the keyboard stays where it was
    assert unnamed(page) == []
    page.get_by_role("status").get_by_text("4 of 4 maps are there").wait_for()
    assert page.locator(".xai-inspector").get_attribute("aria-busy") == "false"
    assert missed(page) == []
    assert page.evaluate(FAINT) == []
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("getComputedStyle(document.body).backgroundColor === 'rgb(17, 17, 17)'")
    assert page.evaluate(FAINT) == []

    # the network of this project is the second choice: its page follows
    page.get_by_label("network", exact=True).select_option(index=1)
    page.locator(".xai-inspector .about", has_text="tiny_resnet answers; it knows 2 classes").wait_for()
    # a class that attacks HTML is text wherever it stands
    assert HOSTILE in page.locator(".bars").inner_text()
    options = page.locator("select option").all_text_contents()
    assert any(HOSTILE in option.replace("\xa0", " ") for option in options)  # ipywidgets keeps spaces from breaking
    assert page.locator("img[src='x']").count() == 0

    picker, gradient = column.get_by_label("method 2"), EXPLAINERS["gradient"].label
    page.evaluate(WATCH)
    assert changed(page, overlay, lambda: picker.select_option(gradient)) > 3
    for method in ("smoe", "grad_cam", "sobel_edges", "gradient", "smoe", "gradient"):
        picker.select_option(EXPLAINERS[method].label)
        page.wait_for_timeout(30)
    column.locator("h3", has_text=gradient).wait_for()
    overlay.wait_for()
    watched = page.evaluate("window.watched")
    assert len({name for name, *_ in watched}) > 1  # what was shown before and after; more where the page keeps up
    owners = {}
    for name, map_alone, alt in watched:
        assert alt.startswith(f"{name[2:]} for ")  # "2 Grad-CAM"
        assert owners.setdefault(map_alone, name) == name
    handle = page.get_by_role("slider", name="opacity").first
    assert changed(page, overlay, lambda: (handle.click(), handle.press("Home"))) > 3

    overlay.click(position={"x": 20, "y": 30})
    page.locator(".xai-results th", has_text="pixel").wait_for()
    link = page.get_by_role("link", name="link to what is shown").get_attribute("href")

    good, bad = tmp_path / "good.png", tmp_path / "<b>bad<b>.png"
    noise(99, 80).save(good)
    bad.write_bytes(b"no image")
    page.get_by_label("image from").select_option("an upload")

    def upload(file):
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="choose an image").click()
        chooser.value.set_files(file)

    assert changed(page, card, lambda: upload(good)) > 3
    shown = card.get_attribute("src")
    upload(bad)
    page.locator(".xai-error", has_text="<b>bad<b>.png: not a readable image").wait_for()
    assert card.get_attribute("src") == shown

    page.get_by_label("image from").select_option("a file")
    box = page.get_by_placeholder("path of an image")
    for path, caption in ((folder.parent / NAMED / "named.png", "named.png"), ("images/plain/1.png", "1.png")):
        box.fill(str(path))
        box.press("Enter")
        page.locator(".xai-card figcaption", has_text=re.compile(f"^{caption}$")).wait_for()
    box.fill(str(good))
    box.press("Enter")
    page.locator(".xai-error", has_text=f'make inspect FOLDERS="{tmp_path}"').wait_for()
    with page.expect_download() as download:  # of one click
        page.get_by_role("button", name="save PNG").click()
    with Image.open(Path(download.value.path())) as saved:
        assert '"image_name": "1.png"' in saved.text["settings"]
    with page.expect_download() as download:
        page.get_by_role("button", name="save JSON").click()
    page.get_by_label("image from").select_option("data set")
    page.locator(".xai-card figcaption", has_text="validation").wait_for()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="open a saved JSON").click()
    chooser.value.set_files(download.value.path())
    page.locator(".xai-card figcaption", has_text=re.compile("^1.png$")).wait_for()
    page.get_by_label("compare with another").check()
    page.locator(".xai-column .pair", has_text="B: ").first.wait_for()
    assert unnamed(page) == []

    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1280, "height": 1500})
    assert dialogs == []
    assert elsewhere == []
    assert sorted(path.name for path in folder.iterdir()) == [
        "build", "images", "notebooks", "params.yaml", "voila.json", "voila.log"
    ]  # fmt: skip

    # the kernel's channels: for this page alone, which ends the kernel when it is closed
    log = folder / "voila.log"
    (kernel,) = re.findall(r"Kernel started: (\S+)", log.read_text())
    cookie = {"Cookie": "; ".join(f"{each['name']}={each['value']}" for each in page.context.cookies())}
    channels, here = (f"/api/kernels/{kernel}/channels", SOCKET), {"Origin": address.rstrip("/")}
    assert status(served, *channels, **here) == 403
    assert status(served, *channels, **cookie, Origin="http://elsewhere.example") == 403
    assert status(served, *channels, **cookie, **here, Host="elsewhere.example") == 403
    assert status(served, *channels, **cookie, **here) == 101
    page.goto(address + link)  # the cookie of this page lets its link in
    page.locator(".xai-inspector .about", has_text="tiny_resnet").wait_for()
    page.locator(".xai-results th", has_text="pixel").wait_for()
    page.locator(".xai-column").nth(1).locator("h3", has_text=gradient).wait_for()
    source = page.get_by_label("image from").evaluate("each => each.selectedOptions[0].text")
    assert source.split() == ["data", "set"]
    page.goto("about:blank")
    deadline = time.monotonic() + PATIENCE / 1000
    while (text := log.read_text()).count("Kernel shutdown") < text.count("Kernel started") or kernel not in text:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    page.close()


SOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
KERNEL = "/api/kernels/11111111-2222-3333-4444-555555555555"
STATIC = "/voila/static/voila.js"


def reply(served, path, headers=None, method="GET", **more):
    """What the server answers to one request: its status and its text."""
    connection = http.client.HTTPConnection(urlsplit(served[0]).netloc, timeout=60)
    connection.request(method, path, headers={**(headers or {}), **more})
    response = connection.getresponse()
    found = response.status, "" if response.status == 101 else response.read().decode()
    connection.close()
    return found


def status(*asked, **more):
    return reply(*asked, **more)[0]


def test_only_this_machine_can_open_the_page(served):
    """The server listens on the loopback address itself and on no other."""
    with pytest.raises((ConnectionRefusedError, TimeoutError)):
        socket.create_connection(("127.0.0.2", urlsplit(served[0]).port), timeout=2)


def test_the_page_answers_under_names_of_this_machine_only(served):
    """Whatever is asked for, a host that is neither local nor named is refused, even with the token."""
    query = "?" + urlsplit(served[0]).query
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:80", HOST):
        assert status(served, STATIC, Host=host) == 200, host
    for host in ("elsewhere.example", "localhost.elsewhere.example:80", "127.0.0.1.elsewhere.example", "192.168.1.2"):
        for path in ("/", STATIC, "/login", "/nowhere", KERNEL):
            code, text = reply(served, path + query, Host=host)
            assert code == 403, (host, path)
            assert "answers to localhost, 127.0.0.1, ::1, box.example; another name" in text
        assert status(served, KERNEL + "/channels" + query, SOCKET, Host=host) == 403


def test_nobody_comes_in_without_the_token(served):
    """No page, no kernel, no channel, no picture beside the notebook; who asks is told where the token stands."""
    address, folder = served
    log = folder / "voila.log"
    kernels = log.read_text().count("Kernel started")
    for path in ("/", "/?token=", "/?token=wrong", "/voila/render/inspect.ipynb"):
        code, text = reply(served, path)
        assert (code, text) == (302, ""), path
    assert reply(served, "/login?next=%2F") == (
        403,
        "open the address that `make inspect` has printed: it ends in the token that opens this page\n",
    )
    assert status(served, "/login", method="POST") == 403
    for method in ("GET", "DELETE"):
        assert status(served, KERNEL, method=method) == 403
    assert status(served, KERNEL + "/channels", SOCKET) == 403
    assert status(served, "/voila/api/shutdown/" + KERNEL.rsplit("/", 1)[1], method="POST") == 403
    noise(1).save(folder / "notebooks" / "beside.png")
    assert status(served, "/voila/files/beside.png?" + urlsplit(address).query) == 403
    (folder / "notebooks" / "beside.png").unlink()
    for path in ("/voila/static/../../voila.json", "/voila/templates/lab/static/../../../../voila.json"):
        assert status(served, path) in (403, 404, 500), path
    assert log.read_text().count("Kernel started") == kernels


def test_the_browser_is_given_the_token_in_a_file_of_this_user(served):
    """The arguments of a browser are everybody's to read; the file that they name leads to the printed address."""
    printed, folder = served
    opened, deadline = folder.parent / "opened", time.monotonic() + PATIENCE / 1000
    while not (opened.is_file() and (address := opened.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    file = Path(urlsplit(address).path)
    assert "token" not in address
    assert printed in file.read_text()
    assert file.stat().st_mode & 0o077 == 0


def test_a_folder_that_is_not_there_is_said_at_once(monkeypatch, tmp_path):
    """Before anything is served: the folder, and how several are written."""
    from xai_utils.widgets import server

    monkeypatch.setattr("sys.argv", ["server", str(tmp_path), f"{tmp_path}/nowhere"])
    with pytest.raises(SystemExit, match=r'/nowhere is no folder; make inspect FOLDERS="…" takes folders of images'):
        server.main()
