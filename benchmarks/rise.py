"""How many masks RISE needs, drawn one by one or balanced: python benchmarks/rise.py [--json PATH] [--docs FOLDER]

Maps of held-out images by more and more masks: their rank correlation with a map of many masks of other seeds, half of
them drawn one by one and half balanced, and their insertion and deletion. Of the target and the data of the last run,
or, with --photographs FOLDER, of EfficientNet-Lite0, trained on ImageNet, and the images there. Maps of 1000 balanced
masks are compared with those of 8000 masks drawn one by one, image by image. --docs puts the figure and the table of
the JSON files beside this one into FOLDER (benchmarks.md) and measures nothing.
"""

import argparse
import json
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from timing import count, new_file, processor

from xai_utils import datasets, networks, plots
from xai_utils.datasets.fitting import fit
from xai_utils.datasets.on_disk import read_image
from xai_utils.explainers.masking import ESTIMATORS, rise_by_masks
from xai_utils.files import write_text
from xai_utils.metrics import deletion, insertion
from xai_utils.metrics.statistics import paired_test, summary
from xai_utils.networks.architectures import COMES_WITH

HERE = Path(__file__).resolve().parent
MEASURED = {"birds": HERE / "rise.json", "photographs": HERE / "rise_photographs.json"}
COUNTS = (125, 250, 500, 1000, 2000, 4000, 8000)
FEW, MANY = 1000, 8000  # balanced masks, and masks drawn one by one, that are compared
SCORES = {"rank correlation": 1, "insertion": 1, "deletion": -1}  # whether higher is better
STEP = 896  # pixels of a step of the curves, at 224 pixels
PROCESSES = 2  # of one thread each


def of_the_last_run(number):
    """Its target, held-out images (N, 3, H, W), and the baseline that its insertion begins with."""
    split, target = datasets.load(HERE.parent / "build/data").validation, networks.load(HERE.parent / "build/target")
    return target, split.tensor(split.subset(number, 0)), "blur"


def of_photographs(number, folder, size):
    """EfficientNet-Lite0, images (N, 3, size, size), evenly spread over those of the folder, and RISE's baseline."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    paths = [paths[place] for place in np.linspace(0, len(paths) - 1, min(number, len(paths))).astype(int)]
    fitted = [fit(read_image(path), np.zeros((0, 4)), size, "crop")[0] for path in paths]
    pixels = np.stack([np.asarray(each) for each in fitted]).transpose(0, 3, 1, 2)
    target = networks.build("efficientnet_lite0", None, pretrained_from=COMES_WITH["efficientnet_lite0"])
    return target.eval(), torch.from_numpy(pixels).float() / 255, "rise_blur"


def of_one(model, image, begins, converged, place):
    """Score -> estimator -> masks -> its value for an image (1, 3, H, W)."""
    found = {score: {name: {} for name in ESTIMATORS} for score in SCORES}
    curves = {"pixels_per_step": STEP, "chunk": 16}
    with torch.inference_mode():
        target = model(image).argmax(1).clone()
    options = {"counts": COUNTS, "converged": converged, "seed": place, "chunk": 4}
    for estimator, masks, maps, correlation in rise_by_masks(model, image, target, **options):
        scores = {
            "rank correlation": correlation,
            "insertion": insertion(model, image, target, maps, baseline=begins, **curves),
            "deletion": deletion(model, image, target, maps, **curves),
        }
        for score, value in scores.items():
            found[score][estimator][masks] = round(value.item(), 5)
    return found


def of_some(chosen, converged, first):
    """What `of_one` finds for every `PROCESSES`-th image from the `first` on."""
    torch.set_num_threads(1)
    target, images, begins = chosen
    model, found = networks.engine(target, images[:1]), []
    for place in range(first, len(images), PROCESSES):
        print(f"image {place + 1} of {len(images)}", file=sys.stderr)
        found.append(of_one(model, images[place : place + 1], begins, converged, place))
    return found


def measured(chosen, converged):
    """Score -> estimator -> masks -> values, one per image; each process takes every `PROCESSES`-th image."""
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        shares = list(pool.map(partial(of_some, chosen, converged), range(PROCESSES)))
    each = [shares[place % PROCESSES][place // PROCESSES] for place in range(len(chosen[1]))]
    return {
        score: {name: {masks: [one[score][name][masks] for one in each] for masks in COUNTS} for name in ESTIMATORS}
        for score in SCORES
    }


def compared(found):
    """Score -> the paired test of FEW balanced masks against MANY drawn one by one, and both means."""
    tests = {}
    for score, sign in SCORES.items():
        few, many = found[score]["balanced"][str(FEW)], found[score]["paper"][str(MANY)]
        test = paired_test(few, many, seed=0)
        verdict = ("worse", "better")[sign * test["difference"] > 0] if test["p"] < 0.05 else "undecided"
        tests[score] = test | {"few": float(np.mean(few)), "many": float(np.mean(many)), "verdict": verdict}
    return tests


def figure(files):
    """The scores over the number of masks, a row for each file."""
    with rc_context({"font.size": 9}):
        drawn = Figure(figsize=(9, 2.6 * len(files)), layout="constrained")
        axes = drawn.subplots(len(files), len(SCORES), squeeze=False)
        for row, (name, facts) in zip(axes, files.items(), strict=True):
            for axis, score in zip(row, SCORES, strict=True):
                for estimator, colour in zip(ESTIMATORS, ("#c2410c", "#4b5563"), strict=True):
                    about = [summary(facts["scores"][score][estimator][str(masks)], 0) for masks in COUNTS]
                    axis.plot(COUNTS, [each["mean"] for each in about], color=colour, label=estimator)
                    axis.fill_between(
                        COUNTS,
                        *([each[end] for each in about] for end in ("low", "high")),
                        color=colour,
                        alpha=0.15,
                        lw=0,
                    )
                axis.set(xscale="log", title=f"{name}: {score}", xlabel="masks")
                axis.set_xticks(COUNTS[::2], [f"{masks:,}" for masks in COUNTS[::2]])
                axis.minorticks_off()
        axes[0, 0].legend(frameon=False)
    return drawn


def told(files):
    """The table and what was measured, as Markdown."""
    lines = [f"| | {FEW:,} balanced masks | {MANY:,} drawn one by one | difference | |", "|---|---:|---:|---:|---|"]
    for name, facts in files.items():
        for score, test in compared(facts["scores"]).items():
            difference = "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**test)
            verdict = f"{test['verdict']}, p = {test['p']:.2g}"
            lines.append(f"| {name}, {score} | {test['few']:.3f} | {test['many']:.3f} | {difference} | {verdict} |")
    notes = [
        f"{name}: {facts['network']}, {facts['images']} images of {facts['size']} pixels, beside maps of "
        f"{facts['converged']:,} masks"
        for name, facts in files.items()
    ]
    return "\n".join(["![RISE's scores over the number of masks](rise.png)", "", *lines, "", f"{'; '.join(notes)}."])


def write_docs(folder):
    files = {name: json.loads(path.read_text("utf-8")) for name, path in MEASURED.items() if path.is_file()}
    plots.save(figure(files), folder / "rise.png")
    page = folder / "benchmarks.md"
    start, end = "<!-- rise: `make bench` writes this -->\n", "\n<!-- end of rise -->"
    text = page.read_text("utf-8")
    inside = re.compile(f"(?<={re.escape(start)}).*?(?={re.escape(end)})", re.DOTALL)
    write_text(page, inside.sub(lambda _: told(files), text))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=new_file, help="write the measurements there")
    parser.add_argument("--images", type=count, default=60)
    parser.add_argument("--converged", type=count, default=64_000, help="masks of the map that is taken as true")
    parser.add_argument("--photographs", type=Path, help="images for a network trained on ImageNet")
    parser.add_argument("--size", type=count, default=224, help="pixels of a side of the photographs")
    parser.add_argument("--docs", type=Path, help="write figure and table of what was measured there")
    given = parser.parse_args()
    if given.docs:
        write_docs(given.docs)
        return
    if given.photographs:
        chosen = of_photographs(given.images, given.photographs, given.size)
    else:
        chosen = of_the_last_run(given.images)
    target, images, _ = chosen
    facts = {"network": target.architecture, "images": len(images), "size": images.shape[-1]} | processor()
    facts |= {"converged": given.converged, "scores": measured(chosen, given.converged)}
    text = json.dumps(facts) + "\n"
    if given.json:
        given.json.write_text(text, encoding="utf-8")
    for score, test in compared(json.loads(text)["scores"]).items():
        print(f"{score}: {test['few']:.4f} and {test['many']:.4f}, p {test['p']:.3g}")


if __name__ == "__main__":
    main()
