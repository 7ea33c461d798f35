"""Where a project lies, and how a process begins in it."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REPORTS = Path("reports")


def enter_project():
    """Make the project's root the working folder, whichever folder a notebook was opened from."""
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents, ROOT) if (folder / "params.yaml").is_file()), None)
    if root is None:
        raise FileNotFoundError(f"{here} is in no project: no params.yaml here or above; begin from a clone of it")
    os.chdir(root)


def begin_in_utf_8():
    """Start this process anew where the locale (C, POSIX) would take text and the names of files for ASCII."""
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
