"""Named tensors on disk that survive a kill, a full disk and a damaged file.

A checkpoint is a folder with one tensor file and the record that names it:

    checkpoint.json               what made the tensors, and their file's name and SHA-256
    0123456789abcdef.safetensors  the tensors, named after the start of their SHA-256

The record is replaced last, in one step, so that whatever moment a process dies at, the folder holds either the old
checkpoint or the new one. There is no pickle: loading a checkpoint never runs code. The folder belongs to
the checkpoint alone (other tensor files in it are removed), and one process at a time writes it.
"""

import json
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from xai_utils import files
from xai_utils.files import sha256, write_json
from xai_utils.networks.stored import write_tensors

RECORD = "checkpoint.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read or used; the message names the path and the way out."""


@contextmanager
def held(folder: Path):
    """Keep other processes from the checkpoint in `folder`, and remove what those that have ended left there."""
    with files.held(folder):
        sweep(folder)
        yield


def save(folder: Path, tensors: Mapping[str, torch.Tensor], record: Mapping) -> None:
    """Make `tensors` (on any device) and `record` (JSON) the checkpoint in `folder`, in place of the one before.

    The old tensor file is removed only when the new record is on the disk. A full disk or another failure of writing
    raises CheckpointError; the old checkpoint stays usable and no new file stays behind.
    """
    tensors = _unshared(tensors)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / "tensors.safetensors"
        write_tensors(tensors, fresh)
        digest = sha256(fresh)
        named = fresh.replace(folder / f"{digest[:16]}.safetensors")
        write_json(folder / RECORD, {"file": named.name, "sha256": digest, **record})
    except (OSError, SafetensorError) as error:
        sweep(folder)
        raise CheckpointError(
            f"cannot write the checkpoint in {folder}: {error}. The one before it, if there was one, is untouched."
        ) from error
    sweep(folder)


def read_record(folder: Path) -> dict | None:
    """The record of the checkpoint in `folder`, None where there is none; CheckpointError if it is damaged."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not {"file", "sha256"} <= record.keys():
            raise ValueError("it names no tensor file")
    except (ValueError, AttributeError) as error:
        raise _damaged(folder, path, error) from error
    return record


def load(folder: Path) -> tuple[dict[str, torch.Tensor], dict] | None:
    """(tensors on the CPU, record) of the checkpoint in `folder`, None where there is none.

    CheckpointError names the file that is missing, cut short or changed: its SHA-256 is compared with the record's.
    """
    record = read_record(folder)
    if record is None:
        return None
    path = folder / record["file"]
    try:
        if sha256(path) != record["sha256"]:
            raise ValueError(f"its SHA-256 is not the one in {RECORD}")
        return load_file(path), record
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(folder, path, error) from error


def sweep(folder: Path) -> None:
    """Remove what the record does not name: older tensor files and pieces that a kill or a failure left."""
    record = read_record(folder)
    files.sweep(folder)
    for path in folder.glob("*.safetensors"):
        if record is None or path.name != record["file"]:
            path.unlink(missing_ok=True)


def flatten(tree, name: str) -> tuple[dict[str, torch.Tensor], object]:
    """Take the tensors out of nested dicts and lists: ({name: tensor}, the rest, fit for JSON). `unflatten` undoes it.

    {"state": {0: {"step": 3, "mean": T}}} under the name "optimizer" gives {"optimizer.state.0.mean": T} and
    {"state": {0: {"step": 3, "mean": {"tensor": "optimizer.state.0.mean"}}}}.
    """
    if isinstance(tree, torch.Tensor):
        return {name: tree}, {"tensor": name}
    if not isinstance(tree, dict | list | tuple):
        return {}, tree
    items = list(tree.items() if isinstance(tree, dict) else enumerate(tree))
    parts = [flatten(value, f"{name}.{key}") for key, value in items]
    tensors = {key: tensor for found, _ in parts for key, tensor in found.items()}
    plain = [rest for _, rest in parts]
    return tensors, dict(zip([key for key, _ in items], plain, strict=True)) if isinstance(tree, dict) else plain


def unflatten(plain, tensors: Mapping[str, torch.Tensor]):
    """Put the tensors back where `flatten` took them out; JSON's "0" becomes the key 0 again, tuples stay lists."""
    if isinstance(plain, list):
        return [unflatten(value, tensors) for value in plain]
    if not isinstance(plain, dict):
        return plain
    if plain.keys() == {"tensor"}:
        return tensors[plain["tensor"]].clone()  # loaded tensors lie in the mapped file; these will be written to
    return {int(key) if str(key).isdigit() else key: unflatten(value, tensors) for key, value in plain.items()}


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Plain tensors in main memory; those that share storage (tied weights) are copied, since the format needs it."""
    plain, storages = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return plain


def _damaged(folder: Path, path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({error}). Delete the folder {folder} and run again to start afresh.")
