"""What all tests share: one thread, a fixed seed, and the real data where it lies beside the checkout."""

import os
import shutil
import socket
from pathlib import Path

# before torch is imported, here and in what tests start (kernels, servers, commands): where both cores are busy, two
# threads of a small operation wait for each other, and a stage takes half as long again
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


LONGEST = ("stages", "own_report", "devices", "demo", "training_distributed", "inspector_page", "retraining_experiment",
           "pretrained", "by_hand")  # fmt: skip


def pytest_collection_modifyitems(items):
    """The longest files first: begun last, one would keep a worker busy while the other has nothing left to do."""
    first = [f"test_{name}.py" for name in LONGEST]
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))


@pytest.fixture(autouse=True)
def _deterministic():
    torch.set_num_threads(1)  # small tensors: a second thread costs more than it gives
    torch.manual_seed(0)


@pytest.fixture
def toy_architectures(monkeypatch):
    """The networks of toy_networks.py have names, so that what is made of them can be opened again."""
    from toy_networks import NETWORKS

    from xai_utils.networks import ARCHITECTURES

    for name, network in NETWORKS.items():
        monkeypatch.setitem(ARCHITECTURES, name, network)


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder with real images and a pretrained network; tests skip where it is absent (CI requires it)."""
    folder = Path(os.environ.get("XAI_REAL_DATA", ROOT.parent / "shared" / "real"))
    if not folder.is_dir():
        if os.environ.get("XAI_REQUIRE_REAL"):
            pytest.fail(f"{folder} is missing and XAI_REQUIRE_REAL is set")
        pytest.skip(f"no real data at {folder}; set XAI_REAL_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def browser():
    """Chromium of the system, driven by playwright; tests skip where there is none (CI requires it)."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        if os.environ.get("XAI_REQUIRE_BROWSER"):
            pytest.fail("no chromium on PATH and XAI_REQUIRE_BROWSER is set")
        pytest.skip("no chromium on PATH; install it with: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    switches = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium, args=switches)
        yield running
        running.close()
