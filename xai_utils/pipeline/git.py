"""What is asked of git."""

import os
import subprocess
from pathlib import Path


class GitError(ValueError):
    """A git command failed; the message is git's."""


def output(root: Path, *arguments: str, environment=None) -> bytes:
    """What a git command in the folder `root` writes; `environment`: variables besides those of this process."""
    environment = os.environ | (environment or {})
    done = subprocess.run(["git", *arguments], cwd=root, env=environment, capture_output=True)
    if done.returncode:
        said = os.fsdecode(done.stderr).strip() or f"exit status {done.returncode}"
        raise GitError(f"git {' '.join(arguments)} failed: {said}")
    return done.stdout


def said(root: Path, *arguments: str, environment=None) -> str:
    """`output` as text, without the blanks at its ends."""
    return os.fsdecode(output(root, *arguments, environment=environment)).strip()
