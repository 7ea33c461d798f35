"""Of which run numbers are: each file of numbers says which data, network and parameters made it.

A stage that reads another's numbers asks whether they are of its own data, network and maps: what was left by a run on
other data must not stand beside this one's as if it belonged there.
"""

import json
from pathlib import Path

from xai_utils.files import files_fingerprint, fingerprint, write_atomically

SHARED = ("data", "target", "maps")  # what stages of one run have in common, as far as they know it


def identity(parameters, *, data="build/data", target="build/target") -> dict[str, str]:
    """data, target and parameters of a run, each a text that stands for all of it: the name and a hash of the content.

    `parameters`: what JSON can hold; `data`: folder of prepared data; `target`: folder of a saved target, None where
    the numbers are of the data alone.
    """
    described = json.loads((Path(data) / "dataset.json").read_text(encoding="utf-8"))
    found = {"data": f"{described['name']} {files_fingerprint(data)[:20]}"}
    if target is not None:
        file = Path(target) / "target.json"
        facts = json.loads(file.read_text(encoding="utf-8"))
        if "digest" not in facts:
            raise ValueError(f"{file} is of an earlier version, without a digest; run the stage finetune_target again")
        found["target"] = f"{facts['architecture']} {facts['digest']}"
    return found | {"parameters": fingerprint(parameters)}


def difference(found, run) -> str:
    """In words, what the run `found` has other than `run`, of data, network and maps; "" where they are the same."""
    if not isinstance(found, dict) or "data" not in found:
        return "it does not say of which, an earlier version wrote it"
    pairs = {key: (found[key], run[key]) for key in SHARED if key in found and key in run}
    return ", ".join(f"{key} {one} instead of {other}" for key, (one, other) in pairs.items() if one != other)


def require_same(found, run, source, stage):
    """ValueError naming `source`, where the run `found` in it is another one than `run`, and the `stage` to run."""
    if told := difference(found, run):
        raise ValueError(f"{source} is of another run ({told}); run the stage {stage} again")


def write(path, numbers, run):
    """Write a file of `numbers` (a dict), JSON, with the `run` that they are of."""
    text = json.dumps(numbers | {"run": run}, indent=1) + "\n"
    write_atomically(Path(path), lambda partial: partial.write_text(text, encoding="utf-8"))


def read(path, run, stage) -> dict:
    """The numbers that the `stage` wrote; ValueError where they are of other data, another network or other maps."""
    numbers = json.loads(Path(path).read_text(encoding="utf-8"))
    require_same(numbers.get("run"), run, path, stage)
    return numbers
