"""AMG's Tables 2 to 4 and what it claims of them: this run's numbers beside the printed ones.

`intervals` are the confidence and resamples of `statistics.summary`.
"""

from pathlib import Path

import numpy as np
import pandas
import torch

from xai_utils.explainers.attention_gate import amg
from xai_utils.explainers.cam import CHANNEL_WEIGHTS, cam_maps, smooth_grad_cam_plus_plus
from xai_utils.files import write_text
from xai_utils.images import unit_range
from xai_utils.metrics import METRICS
from xai_utils.metrics.confidence import PERCENTS, PRINTED, all_scores
from xai_utils.metrics.statistics import SIGNIFICANT, holm, paired_test, summary
from xai_utils.papers.claims import CLAIMS, GATES, row_of

METHODS = {  # of Tables 3 and 4: ours -> printed
    "grad_cam": "Grad-CAM",
    "grad_cam_plus_plus": "Grad-CAM++",
    "smooth_grad_cam_plus_plus": "SmoothGrad-CAM++",
    "xgrad_cam": "XGrad-CAM",
    "amg": "Ours",
}
SPACES = ("black", "mean")  # what the map hides: zero in pixel space, zero in the network's normalised space
NETWORKS = {"resnet": "ResNet-50", "googlenet": "GoogLeNet", "vgg": "VGG19"}  # a part of our names -> printed
BATCH = 32  # images explained at once
HELD = 64  # images in memory at once, with their maps
NOTES = (
    "Table 2: the printed accuracies are not 1 - the printed top-5 error (they differ by 0.0034, 0.0189 and 0.0293), "
    "and too high for top-1 on ImageNet.",
    "Table 3: on the last map of a network with global average pooling Grad-CAM and XGrad-CAM are the same map, and so "
    "are Grad-CAM++ and Smooth Grad-CAM++; the printed numbers differ.",
    "Table 4: the paper does not define its numbers; they exceed 1, so they are no probabilities: mean logits here.",
)


def _printed(published, name, index):
    return pandas.read_csv(Path(published) / f"amg_{name}.csv", index_col=index)


def _text(about, digits):
    return f"{about['mean']:.{digits}f} [{about['low']:.{digits}f}, {about['high']:.{digits}f}]"


def black_boxes(logits: dict, labels: dict, published, *, seed, **intervals) -> pandas.DataFrame:
    """Table 2: top-1, top-5 and top-5 error of each network in percent, with intervals, beside the printed numbers.

    `logits`: architecture -> (N, K) for the held-out images; `labels`: architecture -> (N,), the right columns of it.
    """
    paper, rows = _printed(published, "table2_models", "metric"), {}
    for name, found in logits.items():
        order = found.argsort(dim=1, descending=True, stable=True)[:, :5]
        hits = (order == labels[name][:, None]).double() * 100
        shares = {"top-1": hits[:, 0], "top-5": hits.sum(1), "top-5 error": 100 - hits.sum(1)}
        options = {"seed": seed} | intervals
        rows[name] = {label: _text(summary(values.numpy(), hit=100, **options), 1) for label, values in shares.items()}
        kind = next((printed for part, printed in NETWORKS.items() if part in name), None)
        printed = paper[kind] if kind else {"mean_accuracy": "", "top5_error_percent": ""}
        rows[name] |= {"paper": kind or "", "paper, accuracy": printed["mean_accuracy"]}
        rows[name]["paper, top-5 error"] = printed["top5_error_percent"]
    return pandas.DataFrame.from_dict(rows, orient="index")


def maps_of_family(
    model, images, target, gates: dict, *, smooth_samples: int, seed: int, average_cams=True, begun=0
) -> dict:
    """(layer, method) -> maps (N, H, W) of METHODS; `gates`: layer -> its gate, or None where AMG has none.

    `smooth_samples` and `average_cams` are Smooth Grad-CAM++'s, whose noise follows the seed and how many images came
    before, `begun`.
    """
    maps, smooth = {}, {"samples": smooth_samples, "average_cams": average_cams}
    for rows in torch.arange(len(images)).split(BATCH):
        part = model, images[rows], target[rows]
        for layer, gate in gates.items():
            found = cam_maps(*part, methods=list(CHANNEL_WEIGHTS), layer=layer)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + begun + int(rows[0]))
            found["smooth_grad_cam_plus_plus"] = smooth_grad_cam_plus_plus(
                *part, layer=layer, generator=generator, **smooth
            )
            if gate is not None:
                found["amg"] = amg(*part, gate=gate)
            for method in (name for name in METHODS if name in found):
                maps.setdefault((layer, method), []).append(found[method])
    return {key: torch.cat(parts) for key, parts in maps.items()}


def confidence_scores(model, images, target, maps: dict, *, chunk=64) -> pandas.DataFrame:
    """One row per layer, method, space and image, with the columns of `confidence.all_scores`."""
    frames = []
    for (layer, method), found in maps.items():
        for space in SPACES:
            values = all_scores(model, images, target, found, baseline=space, chunk=chunk)
            about = {"layer": layer, "method": method, "space": space, "image": np.arange(len(images))}
            frames.append(pandas.DataFrame(about | {name: each.numpy() for name, each in values.items()}))
    return pandas.concat(frames, ignore_index=True)


def held_out_scores(model, split, indices, target, gates: dict, *, smooth_samples: int, seed: int, chunk=64):
    """`confidence_scores` of `maps_of_family` for the images `indices` (N,) of a `Split` and their classes (N,).

    HELD images at a time, so that memory does not grow with N. The classes and `gates` are on the model's device.
    """
    frames = []
    for begun in range(0, len(indices), HELD):
        rows = slice(begun, begun + HELD)
        asked = model, split.tensor(indices[rows], target.device), target[rows]
        maps = maps_of_family(*asked, gates, smooth_samples=smooth_samples, seed=seed, begun=begun)
        frame = confidence_scores(*asked, maps, chunk=chunk)
        frames.append(frame.assign(image=frame["image"] + begun))
    groups = pandas.concat(frames).groupby(["layer", "method", "space"], sort=False)
    return pandas.concat([frame for _, frame in groups], ignore_index=True)


def write_claimed(path, frame, images) -> None:
    """What `claims` needs of `confidence_scores`, as tab separated text; `images`: their numbers in the data (N,)."""
    metrics = [claim.metric for claim in CLAIMS if claim.source == GATES]
    table = frame[["space", "layer", "method", "image", *metrics]].assign(image=np.asarray(images)[frame["image"]])
    write_text(Path(path), table.to_csv(sep="\t", index=False, float_format="%.6g", lineterminator="\n"))


def _cells(frame, metric, *, digits, seed, higher_is_better=True, **intervals) -> pandas.Series:
    """(space, layer, method) -> mean and interval; ▲ better, ▼ worse than Grad-CAM of that layer and space.

    Marked where the paired test's p is below 0.05 after Holm's correction for all comparisons of this metric.
    """
    wide = frame.pivot(index="image", columns=["space", "layer", "method"], values=metric)
    hit = METRICS[metric].hit if metric in METRICS else 1 if metric.startswith("accuracy") else None
    cells = {key: _text(summary(wide[key], seed, hit=hit, **intervals), digits) for key in wide}
    pairs = {key: (*key[:2], "grad_cam") for key in wide if key[2] != "grad_cam" and (*key[:2], "grad_cam") in wide}
    tests = {key: paired_test(wide[key], wide[rival], seed=seed, **intervals) for key, rival in pairs.items()}
    for key, p in zip(tests, holm([test["p"] for test in tests.values()]), strict=True):
        if p < SIGNIFICANT:
            cells[key] += " ▲" if (tests[key]["difference"] > 0) == higher_is_better else " ▼"
    return pandas.Series(cells).rename_axis(["space", "layer", "method"])


def drop_and_increase(frame, published, *, seed, **intervals) -> pandas.DataFrame:
    """Table 3: rows (layer, method); average drop and percent increase in each space, beside the printed ones."""
    paper = _printed(published, "table3_drop_increase", "metric")
    options, columns = {"digits": 1, "seed": seed} | intervals, {}
    for label, metric, printed, better in (
        ("average drop ↓", "average_drop", "average_drop_percent", False),
        ("increase ↑", "percent_increase", "percent_increase", True),
    ):
        found = _cells(frame, metric, higher_is_better=better, **options).unstack("space")
        columns |= {(label, space): found[space] for space in SPACES}
        names = found.index.get_level_values("method")
        columns[label, "paper"] = pandas.Series([paper.loc[printed, METHODS[name]] for name in names], found.index)
    return _ordered(pandas.DataFrame(columns))


def _ordered(table) -> pandas.DataFrame:
    """The rows by layer, and in each by method as METHODS has them; levels in front (the space) stay together."""
    place = {name: number for number, name in enumerate(METHODS)}
    return table.sort_index(key=lambda level: level.map(place) if level.name == "method" else level, kind="stable")


def percentage_in(frame, published, *, score="logit", seed, **intervals) -> pandas.DataFrame:
    """Table 4: rows (space, layer, method), a column per share of pixels shown; logits have the printed rows below."""
    if score not in PRINTED:
        raise ValueError(f"score {score!r} is unknown; choose one of {', '.join(PRINTED)}")
    options = {"digits": 2, "seed": seed} | intervals
    table = _ordered(pandas.DataFrame({f"{at} %": _cells(frame, f"{score}_{at}", **options) for at in PERCENTS}))
    if score != "logit":
        return table
    paper = _printed(published, "table4_percentage_in", "percent_in").T.map("{:.2f}".format)
    paper.columns = table.columns
    paper.index = pandas.MultiIndex.from_tuples(
        [("paper", "", {printed: ours for ours, printed in METHODS.items()}[name]) for name in paper.index]
    )
    return pandas.concat([table, paper])


def differences(maps: dict) -> pandas.DataFrame:
    """The largest difference of two methods' maps, each stretched to [0, 1]: rows pair, columns layer.

    Smooth Grad-CAM++ is meant without averaging of maps (`average_cams=False`), as the closed forms are.
    """
    pairs = (("grad_cam", "xgrad_cam"), ("grad_cam_plus_plus", "smooth_grad_cam_plus_plus"))
    pairs += (("grad_cam", "grad_cam_plus_plus"), ("grad_cam", "amg"))
    rows = {}
    for one, other in pairs:
        for layer in dict.fromkeys(layer for layer, _ in maps):
            if {(layer, one), (layer, other)} <= set(maps):
                gap = unit_range(maps[layer, one]) - unit_range(maps[layer, other])
                rows.setdefault(f"{one}, {other}", {})[layer] = f"{float(gap.abs().max()):.1e}"
    return pandas.DataFrame.from_dict(rows, orient="index").fillna("")


def claims(*frames, seed, **intervals) -> list[dict]:
    """What the paper says of its own method, in every space and layer of `confidence_scores`: rows as of `row_of`.

    `frames`: of one run, or of several with other seeds, of which what all have counts. Empty where AMG was not scored.
    """
    parts = [dict(tuple(frame.groupby(["space", "layer"], sort=False))) for frame in frames]
    shared = [key for key in parts[0] if all(key in each for each in parts)]
    settings = {", ".join(key): [each[key] for each in parts] for key in shared}
    rows = [row_of(claim, settings, seed=seed, **intervals) for claim in CLAIMS if claim.source == GATES]
    return [row for row in rows if row]


def is_slower(times: dict) -> str:
    """Whether AMG is slower than the others, in words; `times`: method -> time over a plain pass, a `cost.Ratio`."""
    if "amg" not in times:
        return "AMG was not timed"
    told, own = {}, times["amg"]
    for name in (name for name in METHODS if name in times and name != "amg"):
        apart = "slower than" if own.median > times[name].median else "faster than"
        told.setdefault(apart if own.apart(times[name]) else "not apart from", []).append(name)
    return "AMG is " + "; ".join(f"{word} {', '.join(names)}" for word, names in told.items())


def html(table: pandas.DataFrame) -> str:
    """The table as HTML."""
    return table.to_html(border=0)
