"""Kept runs side by side: which are pooled, what their intervals resample, which scores moved, what a run lacks."""

import gzip
import hashlib
import json
import re
import shutil
from collections import Counter
from functools import partial

import numpy as np
import pandas
import pytest
from conftest import ROOT
from markupsafe import escape
from reported import project
from scipy import stats
from test_site import LONGEST

from xai_utils.papers import amg, claims, fastcam, fastcam_claims
from xai_utils.pipeline import compare, kept, pooling, site

METRICS = {"insertion": ("Insertion", "↑"), "deletion": ("Deletion", "↓")}
IMAGES = 12


def scores(shift=0.0, noise=0.0, seed=0, methods=("akd", "rise", "grad_cam"), images=range(IMAGES)):
    """A score frame whose insertion of image n is n / 20 + `shift`, with noise; deletion is that of all methods 0.1."""
    generator, rows = np.random.default_rng(seed), []
    for method in methods:
        for image in images:
            values = {"insertion": image / 20 + shift + noise * generator.normal(), "deletion": 0.1}
            rows.append({"image": image, "label": 0, "target": 0, "method": method, "failed": 0} | values)
    return pandas.DataFrame(rows)


def keep(
    root, name, *, frame=None, seed=0, data="birds 01", target="net 02", md5="d0", parts=None, tables=None, **changes
):
    """A small kept run, as far as `kept` asks: `parts` are JSON files of stages, `tables` (stage -> what writes it to a
    path) are others, `changes` go into run.json.
    """
    folder, frame = root / "runs" / name, scores() if frame is None else frame
    folder.mkdir(parents=True)
    means = frame.groupby("method", sort=False)[list(METRICS)].mean()
    methods = {
        method: {m: dict.fromkeys(("mean", "low", "high"), float(row[m])) for m in METRICS} | {"passes": 1.0}
        for method, row in means.iterrows()
    }
    metrics = {m: {"label": label, "arrow": arrow, "unit": "", "n": 1} for m, (label, arrow) in METRICS.items()}
    summary = {"metrics": metrics, "methods": methods, "protocol": "p", "run": {"data": data, "target": target}}
    files = {f"{stage}.json": json.dumps(numbers).encode() for stage, numbers in (parts or {}).items()}
    files |= {"metrics.json": json.dumps(summary).encode()}
    files |= {"scores.csv.gz": gzip.compress(frame.assign(protocol="0").to_csv(index=False).encode(), mtime=0)}
    for stage, write in (tables or {}).items():
        write(folder / f"{stage}.tsv")
        files[f"{stage}.tsv"] = (folder / f"{stage}.tsv").read_bytes()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    intervals = {"confidence": 0.95, "resamples": 200}
    given = {
        "prepare_data": {"dataset": "data/birds", "seed": seed},
        "evaluate": {"seed": seed, "intervals": intervals, "rows": {"rise": {"masks": 500}}},
    }
    about = {
        "revision": {"commit": "abc"},
        "scale": "default",
        "images": IMAGES,
        "image_size": 96,
        "versions": {"a": "1"},
    }
    about |= {"parameters": given, "hashes": {"data": {"data/birds": md5}, "code": {"x.py": "c0"}}, "claims": []}
    about |= changes | {"files": {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}}
    (folder / "run.json").write_text(json.dumps(about))
    return folder


def conditions(**statistics):
    """What remove_and_retrain.json says of two layers: of each statistic its KAR; ROAR and random rows are 0.5."""
    rows = {"random": 0.5} | statistics
    accuracy = {f"layer/keep/{row}/{layer}": top1 for row, top1 in rows.items() for layer in ("a", "b")}
    return {"accuracy": accuracy | {f"layer/remove/{row}/{layer}": 0.5 for row in rows for layer in ("a", "b")}}


def retrained(path, repetitions=1, **statistics):
    """The records of the same conditions, on ten images, and of networks that were not masked."""
    shares = {("keep", row): share for row, share in statistics.items()} | {("keep", "random"): 0.5}
    shares |= {("remove", row): 0.5 for row in ("random", *statistics)} | {("none", "none"): 1.0}
    records = [
        {"level": "layer", "mode": mode, "row": row, "layer": layer, "percent": None, "repetition": repetition}
        | {"hits": [int(image < round(10 * share)) for image in range(10)]}
        for (mode, row), share in shares.items()
        for layer in ("a", "b")
        for repetition in range(repetitions)
    ]
    fastcam.write_records(path, records)


def shown(table):
    """(row, column) -> text and small text of what the macro `scores` shows."""
    heads = [column["label"] for column in table["columns"]]
    return {
        (row["method"], head): (cell["text"], cell["interval"])
        for row in table["rows"]
        for head, cell in zip(heads, row["cells"], strict=True)
    }


def tables(root, *names):
    """Title -> what `paper_tables` shows of these runs."""
    groups = pooling.grouped(pooling.chosen(root, names))
    summaries = {name: pooling.scored(group) for name, group in groups.items()}
    found = compare.paper_tables(groups, summaries, ROOT / "data" / "published")
    return {table["title"]: shown(table) for table in found}


def test_runs_that_differ_in_the_seed_alone_are_one_group(tmp_path):
    """Another parameter, other data under the same name, or the same seed again: another group, "one run". What decides
    no score, a figure's parameter or who computes, parts nothing."""
    for seed in range(3):
        keep(tmp_path, f"b{seed}", seed=seed, data=f"birds 0{seed}")
    about = json.loads((tmp_path / "runs" / "b1" / "run.json").read_text())
    about["parameters"] |= {"figures": {"seed": 1, "rise_images": 8}}
    about["parameters"]["evaluate"]["compute"] = {"prefetch": 4, "scheduler": "tcp://127.0.0.1:8786"}
    (tmp_path / "runs" / "b1" / "run.json").write_text(json.dumps(about))
    keep(tmp_path, "again", seed=1)
    keep(tmp_path, "other", seed=3, md5="d1")
    folder = keep(tmp_path, "fewer", seed=4)
    about = json.loads((folder / "run.json").read_text())
    about["parameters"]["evaluate"]["rows"]["rise"]["masks"] = 499
    (folder / "run.json").write_text(json.dumps(about))
    keep(tmp_path, "smaller", seed=5, parts={"prepare_data": {"validation": 3, "run": {"data": "birds 05"}}})
    runs = pooling.chosen(tmp_path, ["b0", "b1", "b2", "again", "other", "fewer", "smaller"])
    groups = {heading: list(group) for heading, group in pooling.grouped(runs).items()}
    alone = {f"{name} (one run)": [name] for name in ("again", "other", "fewer", "smaller")}
    assert groups == {"b0 (3 seeds)": ["b0", "b1", "b2"]} | alone


def test_intervals_resample_runs_and_images():
    """As a slow loop over the same draws says: images of one name together, others alone, missing scores left out."""
    generator = np.random.default_rng(1)
    frames = [
        pandas.DataFrame({"m": generator.normal(run, 1, 6), "only here" if run else "there": 0.0}, index=names)
        for run, names in enumerate([list("abcdef"), list("cdefgh"), list("uvwxyz")])
    ]
    frames[1].loc["c", "m"] = np.nan
    found = pooling.pooled(frames, seed=4, resamples=300, confidence=0.9)
    assert list(found) == ["m"]
    images = list("abcdefghuvwxyz")
    draws, means = np.random.default_rng(4), []
    runs, drawn = (draws.multinomial(n, np.full(n, 1 / n), size=300) for n in (3, len(images)))
    for of_runs, of_images in zip(runs, drawn, strict=True):
        each = []
        for frame in frames:
            values = [v for name, count in zip(images, of_images, strict=True) for v in [frame["m"].get(name)] * count]
            values = [v for v in values if v is not None and not np.isnan(v)]
            each.append(np.mean(values) if values else np.nan)
        means.append(np.dot(of_runs, each) / 3)
    low, high = np.nanquantile(means, [0.05, 0.95])
    mean = np.mean([frame["m"].mean() for frame in frames])
    assert found["m"] == pytest.approx({"mean": mean, "low": low, "high": high})


def test_an_interval_of_several_seeds_is_wider_than_that_of_their_images():
    """Three runs that agree on every image say what one says; where they differ, the interval grows."""
    one = pandas.DataFrame({"m": np.arange(20.0)})
    options = {"seed": 0, "resamples": 2000}
    alone, same = pooling.pooled([one], **options)["m"], pooling.pooled([one] * 3, **options)["m"]
    assert same["mean"] == alone["mean"] == 9.5
    assert same["high"] - same["low"] == pytest.approx(alone["high"] - alone["low"], rel=0.1)
    apart = pooling.pooled([one - 8, one, one + 8], **options)["m"]
    assert apart["mean"] == 9.5
    assert apart["high"] - apart["low"] > 1.5 * (alone["high"] - alone["low"])


def test_scores_of_a_group_are_those_that_all_its_runs_have(tmp_path):
    """The mean of the runs' means; a method of one run alone is left out; one run says what its metrics.json says."""
    keep(tmp_path, "b0", frame=scores(0.0))
    keep(tmp_path, "b1", frame=scores(0.2, methods=("akd", "rise")), seed=1)
    [(heading, group)] = pooling.grouped(pooling.chosen(tmp_path)).items()
    found = pooling.scored(group)
    assert list(found["methods"]) == ["akd", "rise"]
    about = found["methods"]["akd"]["insertion"]
    assert about["mean"] == pytest.approx(np.arange(IMAGES).mean() / 20 + 0.1)
    assert about["low"] < about["mean"] < about["high"]
    table = compare.all_scores({heading: found, "other": {"metrics": {}, "methods": {"rise": {}, "lime": {}}}})
    assert [row["method"] for row in table["rows"]] == ["rise"]
    assert table["others"] == ["akd", "lime"]
    assert shown(table)["rise", "Insertion, other\N{NO-BREAK SPACE}↑"] == ("–", "")
    alone = pooling.chosen(tmp_path, ["b1"])
    assert pooling.scored(alone) == alone["b1"]["summary"]


def test_what_a_run_lacks_is_a_dash(tmp_path):
    """Beside the printed numbers; the mean is of those that have the row, and says of how many."""
    prepared = {"prepare_data": {"validation": 10}, "distill_surrogate": {"student": {"validation_accuracy": 0.8}}}
    keep(tmp_path, "one", parts=prepared | {"finetune_target": {"top1": 0.9, "images": 20}})
    keep(tmp_path, "two", md5="d1", frame=scores(0.1, methods=("akd",)), parts={"finetune_target": {"top1": None}})
    found = tables(tmp_path)
    one, two = "one (one run)", "two (one run)"
    accuracy = found["AKD, Table 2: top-1, and how often the student answers as the target does"]
    assert [accuracy[row, one][0] for row in ("target", "student", "agreement")] == ["0.900", "0.800", "–"]
    assert {accuracy[row, two] for row in ("target", "student", "agreement")} == {("–", "")}
    assert accuracy["target", "mean here"] == ("0.900", "1 of 2")
    assert (accuracy["target", "paper: CUB-200"], accuracy["target", "paper: mean"]) == (("0.8172", ""), ("0.8623", ""))
    insertion = found["AKD, Table 4: insertion"]
    assert [insertion["akd", column][0] for column in (one, two, "mean here")] == ["0.275", "0.375", "0.325"]
    assert [insertion["rise", column][0] for column in (one, two, "mean here")] == ["0.275", "–", "0.275"]
    assert [insertion["lime", column] for column in (one, two, "mean here")] == [("–", "")] * 3
    assert insertion["lime", "paper: ImageNet"] == ("0.6940", "")
    for title, cells in found.items():
        if "FastCAM" in title:
            assert {cells[key] for key in cells if key[1] in (one, two, "mean here")} == {("–", "")}, title


def test_the_interval_of_top_1_is_that_of_its_images(tmp_path):
    """Of one run as of hits; of two on the same data as if the same images were wrong: no narrower than one's."""
    parts = {"finetune_target": {"top1": 0.75, "images": 40}}
    for name, seed in (("b0", 0), ("b1", 1)):
        keep(tmp_path, name, seed=seed, parts=parts)
    runs = pooling.chosen(tmp_path)
    alone, both = pooling.accuracies({"b0": runs["b0"]}), pooling.accuracies(runs)
    exact = stats.binomtest(30, 40).proportion_ci(0.95)
    assert (alone["target"]["low"], alone["target"]["high"]) == pytest.approx((exact.low, exact.high))
    assert both["target"]["mean"] == 0.75
    assert both["target"]["high"] - both["target"]["low"] > 0.8 * (alone["target"]["high"] - alone["target"]["low"])


def test_fastcam_tables_pool_runs_and_conditions(tmp_path):
    """By hand: scores from the mean top-1 with an interval over seeds and images; shares over all layers and groups."""
    for seed, kar in enumerate((0.6, 0.8)):
        table = {"remove_and_retrain": partial(retrained, smoe_scale=kar, mean=0.6 - 0.1 * seed)}
        keep(tmp_path, f"b{seed}", seed=seed, tables=table)
    keep(tmp_path, "alone", md5="d1", parts={"remove_and_retrain": conditions(smoe_scale=0.4)})
    keep(tmp_path, "other", md5="d2", parts={"remove_and_retrain": conditions(smoe_scale=0.4, mean=0.5)})
    found = tables(tmp_path, "b0", "b1", "alone", "other")
    both, alone, other = "b0 (2 seeds)", "alone (one run)", "other (one run)"
    table = found["FastCAM, Table 1: difference score"]
    # two layers, each KAR - 0.5: 0.4 of the mean 0.7; 0.6 drawn twice alone is 0.2, and images vary, too
    text, interval = table["smoe_scale", both]
    low, high = map(float, interval.split(" – "))
    assert text == "0.40"
    assert 0 <= low < 0.2 < 0.6 < high
    assert (table["smoe_scale", alone], table["mean", alone]) == (("-0.20", ""), ("–", ""))
    assert table["smoe_scale", "mean here"] == ("0.00", "")
    assert table["mean", "mean here"] == ("0.05", "2 of 3")
    assert [table["smoe_scale", f"paper: {name}"][0] for name in ("ImageNet", "mean")] == ["1.70", "1.40"]
    assert table["shannon_entropy", both] == ("–", "")
    quartiles = found["FastCAM, Table 7: percent of conditions in which a statistic is among the best, difference"]
    # of two statistics the best one is among the best 25 %, both among the best 75 %; of one nothing is said
    assert [quartiles["smoe_scale, top 25 %", name][0] for name in (both, alone, other)] == ["100.0", "–", "0.0"]
    assert quartiles["mean, top 25 %", "mean here"] == ("50.0", "2 of 3")
    assert quartiles["mean, top 75 %", other][0] == "100.0"
    assert quartiles["smoe_scale, top 25 %", "paper: 15 conditions"][0] == "53.33"


def test_what_differs_is_named(tmp_path):
    """Parameters by dotted names with both values, versions, code; what only one run knows of itself, once."""
    keep(tmp_path, "one")
    folder = keep(tmp_path, "two", versions={"a": "2", "b": "1"}, hashes={"code": {"x.py": "c1", "y.py": "c2"}})
    about = json.loads((folder / "run.json").read_text())
    about["parameters"]["evaluate"]["rows"] = {"rise": {"masks": 9}, "lime": {"samples": 5}}
    (folder / "run.json").write_text(json.dumps(about))
    keep(tmp_path, "three", revision={}, hashes={})
    runs = pooling.chosen(tmp_path)
    found = compare.differences(runs["one"], runs["two"])
    masks, samples = {"evaluate.rows.rise.masks": ("500", "9")}, {"evaluate.rows.lime.samples": ("–", "5")}
    assert found["parameters"] == masks | samples
    assert found["versions"] == {"a": ("1", "2"), "b": ("–", "1")}
    assert found["code"] == {"x.py": ("c0", "c1"), "y.py": ("–", "c2")}
    assert found["run"] == found["revision"] == {}
    found = compare.differences(runs["one"], runs["three"])
    assert found["code"] == found["data"] == found["revision"] == {"all": ("known", "–")}
    assert "code" not in compare.differences(runs["three"], runs["three"])


def test_scores_that_moved_are_found_by_pairs_of_images(tmp_path):
    """A small shift of every image shows in pairs and not in two samples; scores that are the same have not moved."""
    keep(tmp_path, "one", frame=scores(noise=0.002))
    keep(tmp_path, "two", frame=scores(0.05, noise=0.002, seed=1))
    elsewhere = scores(0.05, noise=0.002, seed=1)
    keep(tmp_path, "three", frame=elsewhere, data="birds 02")
    keep(tmp_path, "four", frame=elsewhere.assign(target=1))
    runs = pooling.chosen(tmp_path)
    found = compare.moved(runs["one"], runs["two"])
    assert (found["tested"], found["images"]) == (6, IMAGES)
    assert [(row["method"], row["metric"]) for row in found["rows"]] == [
        (method, "insertion") for method in ("akd", "rise", "grad_cam")
    ]
    one, two, difference, low, high = map(float, found["rows"][0]["texts"])
    assert two - one == pytest.approx(difference, abs=0.0011)
    assert 0.045 < low < difference < high < 0.055
    assert found["rows"][0]["p"] == "< 0.0001"
    for name in ("three", "four"):  # other images, or the same explained for another class
        assert compare.moved(runs["one"], runs[name]) == {"rows": [], "tested": 6, "images": 0}
    assert compare.moved(runs["one"], runs["one"])["rows"] == []


def test_means_of_other_images_that_differ_are_found(tmp_path):
    """Two samples far apart; p is corrected for all scores, so that one in twenty does not move by chance."""
    keep(tmp_path, "one", frame=scores(noise=0.002))
    keep(tmp_path, "two", frame=scores(0.6, methods=("akd", "lime"), images=range(8)), data="pets 03")
    keep(tmp_path, "three", frame=scores(0.2), data="pets 04")
    keep(tmp_path, "four", frame=scores(0.2, methods=("akd",)), data="pets 05")
    keep(tmp_path, "plain", frame=scores())
    runs = pooling.chosen(tmp_path)
    found = compare.moved(runs["one"], runs["two"])
    assert [(row["method"], row["metric"]) for row in found["rows"]] == [("akd", "insertion")]
    assert (found["tested"], found["images"]) == (2, 0)
    p = stats.ttest_ind(np.arange(IMAGES) / 20, np.arange(IMAGES) / 20 + 0.2, equal_var=False).pvalue
    assert 0.05 / 6 < p < 0.05 / 2
    assert compare.moved(runs["plain"], runs["three"])["rows"] == []  # one of six scores
    assert [row["p"] for row in compare.moved(runs["plain"], runs["four"])["rows"]] == [f"{2 * p:.4f}"]


def test_claims_are_decided_over_the_runs_of_a_group(tmp_path):
    """Those of scores by all runs at once, whichever images each has; what the runs' stages decided is counted."""
    verdicts = {"FastCAM has the highest SUM": "holds"}, {"FastCAM has the highest SUM": "undecided"}
    for seed in range(3):
        told = {claim: {"verdict": each, "here": "a; b", "p": None} for claim, each in verdicts[seed // 2].items()}
        parts = {"remove_and_retrain": {"claims": told, "run": {"data": "birds 01", "target": "net 02"}}}
        gradient = scores(0.1, 0.01, seed, ("grad_cam_plus_plus",), range(seed, IMAGES + seed))
        frame = pandas.concat([scores(0.0, 0.01, seed + 9, ("grad_cam",), range(seed, IMAGES + seed)), gradient])
        frame = frame.rename(columns={"insertion": "box_average_precision"}).assign(insertion=0.5)
        keep(tmp_path, f"b{seed}", seed=seed, frame=frame, parts=parts)
    runs = pooling.chosen(tmp_path)
    both, alone = pooling.claimed(runs), pooling.claimed({"b2": runs["b2"]})
    plus_plus = ("DGLE", "Grad-CAM++ explains better than Grad-CAM (M_I)")
    assert both[plus_plus]["verdict"] == "holds"
    assert "+0.1" in both[plus_plus]["here"]
    highest = ("FastCAM", "FastCAM has the highest SUM")
    assert both[highest]["verdict"] == "holds 2, undecided 1"
    assert both[highest]["here"] == "b0: a; b; b1: a; b; b2: a; b"
    assert (alone[highest]["verdict"], alone[highest]["here"]) == ("undecided", "a; b")


def test_runs_that_retrained_nothing_say_so(tmp_path):
    """Two runs without networks of their own, one with: neither a table nor a verdict of a part of them."""
    text, off = "SMOE Scale has the highest difference score", fastcam_claims.OFF["layer"]
    for seed in range(3):
        row = {"verdict": "not run", "here": off, "p": None} if seed else {"verdict": "holds", "here": "a", "p": 0.01}
        about = {"remove_and_retrain": {"claims": {text: row}, "run": {"data": "birds 01", "target": "net 02"}}}
        write = partial(retrained, smoe_scale=0.9, mean=0.6) if not seed else partial(fastcam.write_records, records=[])
        keep(tmp_path, f"b{seed}", seed=seed, parts=about, tables={"remove_and_retrain": write})
    runs = pooling.chosen(tmp_path)
    assert pooling.claimed(runs)["FastCAM", text]["verdict"] == "holds 1, not run 2"
    alone = {"b1": runs["b1"]}
    assert pooling.claimed(alone)["FastCAM", text]["here"] == off
    assert pooling.layer_values(runs) == pooling.layer_values(alone) == {}
    [group] = pooling.grouped(alone)
    table = tables(tmp_path, "b1")["FastCAM, Table 1: difference score"]
    assert table["smoe_scale", group] == ("–", "")


def test_trainings_of_three_runs_decide_what_one_leaves_open(tmp_path):
    """ROAR and KAR, and gates: none decides alone, three together do; without their numbers, count."""
    text = "SMOE Scale has the highest difference score"
    told = {text: {"verdict": claims.TOO_FEW, "here": "a", "p": None}}
    about = {"remove_and_retrain": {"claims": told, "run": {"data": "birds 01", "target": "net 02"}}}
    about |= {"prepare_data": {"classes": 10, "run": {"data": "birds 01"}}}
    metrics = [claim.metric for claim in claims.CLAIMS if claim.source == claims.GATES]

    def gates(path, seed):
        frame = scores(0.0, 0.01, seed, ("amg", "grad_cam"), range(seed, IMAGES + seed))
        frame = frame.assign(layer="a", space="black", image=frame["image"] - seed)
        better = frame["insertion"] + np.where(frame["method"] == "amg", 1.0, 0.0)
        amg.write_claimed(path, frame.assign(**dict.fromkeys(metrics, better)), range(seed, IMAGES + seed))

    for seed in range(4):
        table = {"train_attention": partial(gates, seed=seed)}
        if seed < 3:
            table |= {"remove_and_retrain": partial(retrained, smoe_scale=0.9, mean=0.6 + 0.1 * (seed == 1))}
        keep(tmp_path, f"b{seed}", seed=seed, parts=about, tables=table)
    runs = pooling.chosen(tmp_path)
    three = pooling.claimed({name: runs[name] for name in ("b0", "b1", "b2")})
    assert three["FastCAM", text]["verdict"] == "holds"
    assert three["FastCAM", text]["here"].startswith("smoe_scale − mean = +0.53 [")
    assert three["AMG", "AMG has the highest increase"]["verdict"] == "holds"
    assert three["AMG", "AMG has the lowest average drop"]["verdict"] == "fails"
    two = pooling.claimed({name: runs[name] for name in ("b0", "b1")})
    assert two["FastCAM", text]["verdict"] == two["AMG", "AMG has the highest increase"]["verdict"] == claims.TOO_FEW
    assert pooling.claimed(runs)["FastCAM", text]["verdict"] == claims.TOO_FEW


def test_the_list_of_kept_runs_has_their_verdicts(tmp_path):
    """Each run with its seed, each claim of scores once, a column per group; a dash where its methods were not run."""
    gradient = scores(0.5, 0.01, 1, ("grad_cam_plus_plus",))
    frame = pandas.concat([scores(0.0, 0.01, 2, ("grad_cam",)), gradient])
    keep(
        tmp_path, "b3", seed=3, frame=frame.rename(columns={"insertion": "box_average_precision"}).assign(insertion=0.5)
    )
    keep(tmp_path, "cars", frame=scores(), data="cars 05", md5="d5")
    lines = pooling.markdown(tmp_path).splitlines()
    assert [line.endswith(" | 3 |") for line in lines if "](b3/)" in line] == [True]
    assert "| claim | b3 (one run) | cars (one run) |" in lines
    assert "| DGLE: Grad-CAM++ explains better than Grad-CAM (M_I) | holds | – |" in lines


def test_what_orders_methods_as_the_truth_does_is_listed_for_every_group(tmp_path):
    """Insertion in the order of grid pointing, deletion in the reverse one; another network has the same order.

    Then which method for what: the best of each cost. Another seed is no other network.
    """
    methods = ("rise", "lime", "gradient", "grad_cam", "smoe")
    frame = pandas.concat([scores(place / 10, 0.01, place, (name,)) for place, name in enumerate(methods)])
    frame = frame.assign(grid_pointing=frame["insertion"], deletion=frame["insertion"])
    keep(tmp_path, "one", frame=frame)
    keep(tmp_path, "two", frame=frame, seed=1, target="net 03")
    given = json.loads((tmp_path / "runs" / "one" / "run.json").read_text())["parameters"]
    given["prepare_data"]["geometry"] = "squash"
    keep(tmp_path, "other", frame=frame, target="vit 01", parameters=given)
    groups = pooling.grouped(pooling.chosen(tmp_path))
    found = pooling.believed(groups)
    of_birds, across = "one (2 seeds): Grid pointing", "one (2 seeds) as other (one run)"
    assert set(found.columns) == {of_birds, "other (one run): Grid pointing", across}
    assert found.loc["Insertion", of_birds] == found.loc["Insertion", across] == "1.00 [1.00, 1.00]"
    assert found.loc["Deletion", of_birds] == "-1.00 [-1.00, -1.00]"
    lines = pooling.markdown(tmp_path).splitlines()
    assert any(line.startswith("| Insertion | 1.00 [1.00, 1.00] | ") for line in lines)
    assert any(line.startswith("| the class, beside others, one pass, nothing to train | `smoe` ") for line in lines)


def test_a_run_that_is_not_kept_is_named(tmp_path):
    """Which there are is said; where none is kept, how to keep one; a damaged run and missing tables are named."""
    with pytest.raises(pooling.CompareError, match=r"no run is kept in runs/; keep one with: make keep NAME=pets"):
        compare.build(tmp_path)
    keep(tmp_path, "one")
    folder = keep(tmp_path, "two")
    with pytest.raises(pooling.CompareError, match=r"no run is kept as 'six', 'x'; choose among one, two$"):
        compare.build(tmp_path, ["one", "six", "x"])
    with pytest.raises(pooling.CompareError, match=r"data/published, the printed numbers, is missing; .* make data"):
        compare.build(tmp_path)
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(kept.KeptError, match=r"runs/two: metrics.json is not what was kept"):
        compare.build(tmp_path, ["one"])


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A project with the committed kept run and a run at another seed, and the page of both."""
    folder = project(tmp_path_factory.mktemp("compared") / "p")
    shutil.copytree(ROOT / "runs" / "pets", folder / "runs" / "pets")
    (folder / "data").mkdir()
    (folder / "data" / "published").symlink_to(ROOT / "data" / "published")
    other = shutil.copytree(ROOT / "runs" / "pets", folder / "runs" / "seed+1")
    about = json.loads((other / "run.json").read_text())
    for values in about["parameters"].values():
        values["seed"] = 1
    about["scale"] = "<b>bold</b>"
    (other / "run.json").write_text(json.dumps(about))
    compare.build(folder)
    return folder


def test_the_page_has_what_it_promises(compared):
    """The runs, every claim with a verdict, the papers' seven tables, a table of scores, the pair; text as text."""
    text = (compared / site.COMPARED).read_text()
    expected = {"AKD, Table 2": 1, "AKD, Table 4": 2, "FastCAM, Table 1": 2, "FastCAM, Table 7": 2}
    assert Counter(re.findall(r"<h3>(\w+, Table \d)", text)) == expected
    assert "pets (2 seeds)" in text
    assert "scale &lt;b&gt;bold&lt;/b&gt;" in text
    assert "&lt;br&gt;" not in text
    found, listed = pooling.claimed(pooling.chosen(compared)), [(each.paper, each.text) for each in claims.CLAIMS]
    table = text[text.index("What the papers claim") : text.index("by which numbers")]
    assert re.findall(r'<th scope="row">([^<]+)', table) == [
        f"{paper}: {escape(claim)}" for paper, claim in listed if (paper, claim) in found
    ]
    assert "0 of 286 scores moved, paired on 60 images" in text
    assert "<summary>parameters: 11 differ</summary>" in text or "<summary>parameters: 10 differ</summary>" in text
    assert "prepare_data.seed</th><td>0</td><td>1</td>" in text
    before = (compared / site.COMPARED).read_bytes()
    compare.build(compared)
    assert (compared / site.COMPARED).read_bytes() == before


def test_the_site_shows_the_page_of_the_runs_that_are_kept(compared):
    """Linked from the front page beside the runs'; where a run was kept anew since, left out, and said."""
    told = []
    site.build(compared, compared / "site", told.append)
    front, page = ((compared / "site" / name).read_text() for name in ("index.html", "compare.html"))
    assert f'<a href="compare.html">{site.COMPARISON}</a><p>' in front
    assert 'href="runs/seed%2B1.html"' in page
    assert site.report_content(compared / site.COMPARED) == site.report_content(compared / "site" / "compare.html")
    assert not any("left out" in line for line in told)
    with (compared / "runs" / "seed+1" / "run.json").open("a") as file:
        file.write("\n")
    site.build(compared, compared / "site", told.append)
    assert not (compared / "site" / "compare.html").exists()
    assert "left out: build/compare.html is of another run seed+1 than is kept now; make it anew" in " ".join(told)


def test_the_page_fits_a_phone_and_a_screen(compared, browser):
    """At 390 and 1400 pixels the page does not scroll sideways: its tables do, in their boxes."""
    for width in (390, 1400):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto((compared / site.COMPARED).as_uri())
        for details in page.locator("details").all():
            details.evaluate("(element) => { element.open = true; }")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("#scores").count() == 1
        page.close()


def test_the_page_of_all_kept_runs_is_no_longer_than_ten_screens(tmp_path, browser):
    """Also with every run that the project keeps; a pair of runs takes a line until it is opened."""
    folder = project(tmp_path / "p")
    shutil.copytree(ROOT / "runs", folder / "runs")
    (folder / "data").mkdir()
    (folder / "data" / "published").symlink_to(ROOT / "data" / "published")
    page = browser.new_page(viewport={"width": 1400, "height": 800})
    page.goto(compare.build(folder).absolute().as_uri())
    assert page.evaluate("document.documentElement.scrollHeight") <= LONGEST
    pairs = page.locator("details.pair")
    assert pairs.count() == len(kept.kept(folder)) - 1
    assert not any(each.is_visible() for each in pairs.locator("table").all())
    page.close()
