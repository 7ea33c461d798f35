"""What a run says in the terminal: which stage of how many, how long it takes, and at last what came out."""

import json
from functools import cache
from pathlib import Path

from xai_utils.files import write_json
from xai_utils.pipeline import dependencies, parameters
from xai_utils.progress import span

SECONDS = Path(".runs/seconds.json")  # scale -> stage -> seconds that it took here last
HEADLINES = ("insertion", "deletion", "box_average_precision", "part_truth", "grid_pointing")


def remaining(stage: str, described: dict, made: dict[str, float]) -> list[str]:
    """The stages that are still to run when `stage` begins, in the order of STAGES.

    `described`: the stages of dvc.yaml; `made`: when those that were ever done were done last. A stage is to run when
    it never was, or when one that it reads from is to run or was done later.
    """

    @cache
    def waits(name):
        deps = set(described[name].get("deps", []))
        read = [other for other in parameters.STAGES if deps & set(dependencies.outputs(described.get(other, {})))]
        return name == stage or name not in made or any(waits(other) or made[other] > made[name] for other in read)

    return [name for name in parameters.STAGES if name in described and name != stage and waits(name)]


def announcement(stage: str, scale: str, runs: Path, described: dict | None = None) -> str:
    """One line: which stage of how many begins, about how long it takes, and those after it.

    Times are those of the last run here at this scale; before one, dvc.yaml's of the default scale (`meta`).
    `described`: the stages of the run, as dvc.yaml has them (None: all of them).
    """
    described = described or parameters.read("dvc.yaml")["stages"]
    done = {name: runs / f"{name}.ipynb" for name in parameters.STAGES if name in described}
    made = {name: file.stat().st_mtime for name, file in done.items() if file.is_file()}
    after = remaining(stage, described, made)
    known = {name: described[name].get("meta", {}).get("seconds") for name in described if scale == "default"}
    known |= recorded().get(scale, {})
    line = f"stage {len(done) - len(after)} of {len(done)}, {stage}"
    if all(known.get(name) for name in (stage, *after)):
        line += f": about {span(known[stage])}"
        line += f", and about {span(sum(known[name] for name in after))} for what follows" if after else ""
    return line


def record(stage: str, scale: str, seconds: float) -> None:
    """Remember how long a stage took."""
    found = recorded()
    found.setdefault(scale, {})[stage] = round(seconds, 1)
    SECONDS.parent.mkdir(exist_ok=True)
    write_json(SECONDS, found)


def recorded() -> dict[str, dict[str, float]]:
    """Scale -> stage -> the seconds that it took here last."""
    try:
        return json.loads(SECONDS.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no run yet; it is no more than an estimate
        return {}


def headlines(reports: Path) -> list[str]:
    """The numbers of the last run that come first: the target's accuracy, the best method of each of HEADLINES."""
    target, summary = (json.loads((reports / f"{name}.json").read_bytes()) for name in ("finetune_target", "metrics"))
    lines = ["target: no accuracy, for no held-out image has a class that it knows"]
    if target["top1"] is not None:
        lines = [f"target: {target['top1']:.1%} top-1 on {target['images']} held-out images"]
    for name in HEADLINES:
        about = summary["metrics"].get(name)
        means = {method: row[name] for method, row in summary["methods"].items() if row.get(name)} if about else {}
        if means:
            best = (min if about["arrow"] == "↓" else max)(means, key=lambda method: means[method]["mean"])
            mean, low, high = (f"{means[best][each]:.3g}" for each in ("mean", "low", "high"))
            lines.append(f"{about['label']} {about['arrow']}: {best} {mean} [{low}, {high}], best of {len(means)}")
    return [*lines, f"open {reports / 'index.html'}"]
