"""Scoring saved maps end to end: what is scored, compared, written and read back."""

import csv
import json
import math

import numpy as np
import pandas
import pytest
import torch
import toy_tasks
from PIL import Image

from xai_utils import datasets, networks, runs
from xai_utils.evaluation import scores
from xai_utils.files import DiskFull
from xai_utils.metrics.localisation import break_zero_ties, pointing_game
from xai_utils.metrics.perturbation import deletion, faithfulness

SIZE, COUNT = 24, 7
METRICS = ["insertion", "deletion", "faithfulness", "faithfulness_offset", "box_average_precision", "pointing_game"]
CURVES = {name: {"pixels_per_step": 224 * 224 / 6} for name in ("insertion", "deletion")}
OPTIONS = {"faithfulness": {"min_gap": 0.0}, "faithfulness_offset": {"min_gap": 0.0}}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A folder with 7 of 8 prepared images, an untrained target and maps of two methods, one of them broken once."""
    folder = tmp_path_factory.mktemp("scored")
    random = np.random.default_rng(0)
    (folder / "source" / "validation").mkdir(parents=True)
    with (folder / "source" / "boxes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "x0", "y0", "x1", "y1"])
        for number in range(8):
            name = f"validation/{'ab'[number % 2]}/{number}.png"
            (folder / "source" / name).parent.mkdir(exist_ok=True)
            Image.fromarray(random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(folder / "source" / name)
            if number != 2:  # one image without a box
                writer.writerow([name, 2, 4, 14, 9])
    datasets.prepare(folder / "source", folder / "data", image_size=SIZE, geometry="squash")
    torch.manual_seed(0)
    networks.save(networks.build("small_resnet", ["a", "b"]).eval(), folder / "target")
    (folder / "maps").mkdir()
    explained = {
        "split": "validation",
        "indices": [0, 1, 2, 3, 5, 6, 7],
        "targets": [0, 1, 0, 1, 1, 0, 1],
        "methods": {"first": {}, "second": {}},
        "passes": {"first": 1.0, "second": 2.0},
        "run": runs.identity({}, data=folder / "data", target=folder / "target") | {"maps": "of a test"},
    }
    (folder / "maps" / "explained.json").write_text(json.dumps(explained))
    for method in explained["methods"]:
        maps = random.normal(size=(COUNT, SIZE, SIZE)).astype(np.float32)
        if method == "second":
            maps[3, 1, 1] = np.nan
        np.save(folder / "maps" / f"{method}.npy", maps)
    return folder


def settings(folder, **changes):
    folders = {name: str(folder / name) for name in ("target", "data", "maps")}
    return folders | {"metrics": METRICS, "curves": CURVES, "options": OPTIONS, "chunk": 50, "batch": 3} | changes


def test_scores_equal_the_metrics_on_their_own(scored):
    """What is scored from files is what each metric says of the same maps; a broken map has failed, and only it."""
    lines = []
    result = scores.score_maps(settings(scored), log=lines.append)
    assert lines[0].startswith("first: 7 images scored, 0 without a map; 1 of 2, about ")
    assert lines[1:] == ["second: 7 images scored, 1 without a map; 2 of 2"]
    assert result["failed"]["second"].tolist() == [False, False, False, True, False, False, False]
    split, model = datasets.load(scored / "data").validation, networks.load(scored / "target")
    indices, target = result["indices"], torch.from_numpy(result["targets"])
    images, masks = split.tensor(indices), split.box_masks(indices)
    maps = break_zero_ties(torch.from_numpy(np.load(scored / "maps" / "first.npy")))
    expected = {
        "deletion": deletion(model, images, target, maps, **CURVES["deletion"]),
        "faithfulness": faithfulness(model, images, target, maps, min_gap=0),
        "pointing_game": pointing_game(model, images, target, maps, masks=masks),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(result["scores"]["first"][name], values, rtol=1e-3, atol=1e-4, err_msg=name)
    assert result["curves"]["first"]["insertion"].shape == (7,)
    assert result["fractions"]["deletion"] == pytest.approx(np.arange(7) / 6)
    assert result["protocol"]["curves"]["deletion"] == {"baseline": "mean", "points": 7, "pixels_per_step": 96}
    broken = [result["scores"]["second"][name][3] for name in METRICS]
    assert np.isnan(broken).all()
    assert np.isfinite(result["curves"]["second"]["insertion"]).all()  # the mean of the other six
    assert result["part_area"] is None


def test_maps_at_hand_score_like_those_of_a_folder(scored):
    """Arrays and tensors (N, 1, H, W) in memory give the frame of the files, the broken map included."""
    expected = scores.score_frame(scores.score_maps(settings(scored)))
    split, model = datasets.load(scored / "data").validation, networks.load(scored / "target")
    indices = [0, 1, 2, 3, 5, 6, 7]
    arrays = {method: np.load(scored / "maps" / f"{method}.npy") for method in ("first", "second")}
    given = {"first": arrays["first"], "second": torch.from_numpy(arrays["second"])[:, None]}
    found = scores.score_methods(
        model,
        split.tensor(indices),
        torch.tensor([0, 1, 0, 1, 1, 0, 1]),
        given,
        labels=split.labels[indices],
        masks=split.box_masks(indices),
        metrics=METRICS,
        curves=CURVES,
        options=OPTIONS,
    )
    assert list(found) == list(expected)
    assert found["image"].tolist() == [*range(7), *range(7)]
    pandas.testing.assert_frame_equal(found.drop(columns="image"), expected.drop(columns="image"), rtol=1e-3, atol=1e-4)
    assert scores.score_table(found, ["insertion"], seed=0)["insertion_n"].tolist() == [6, 6]
    with pytest.raises(ValueError, match=r"maps are \(6, 24, 24\) and images \(7, 3, 24, 24\); give one map per image"):
        scores.score_methods(model, split.tensor(indices), None, {"first": arrays["first"][1:]}, metrics=["deletion"])


def test_the_protocol_tells_which_score_is_followed(scored):
    """The softmax probability, unless a curve or a metric is asked for another one: then which has which."""
    told = scores.score_maps(settings(scored, metrics=["insertion", "pointing_game"]))["protocol"]["score"]
    assert told == "softmax probability of the explained class"
    changes = {"metrics": ["insertion", "deletion", "average_drop", "percentage_in"]}
    changes |= {"curves": CURVES | {"deletion": CURVES["deletion"] | {"score": "logit"}}}
    changes |= {"options": {"average_drop": {"score": "sigmoid"}, "percentage_in": {"score": "logit"}}}
    result = scores.score_maps(settings(scored, **changes))
    assert result["protocol"]["score"] == (
        "softmax probability of the explained class (insertion); logit of the explained class (deletion, "
        "percentage_in); sigmoid of the logit of the explained class (average_drop)"
    )
    plain = scores.score_maps(settings(scored, metrics=["deletion"]))
    assert not np.allclose(result["curves"]["first"]["deletion"], plain["curves"]["first"]["deletion"])


def test_settings_are_checked(scored):
    """A missing or unknown setting, metric, curve, split or a map of another shape is refused with the choices."""
    for changes, message in [
        ({"steps": 3}, "unknown.*steps.*optional are curves"),
        ({"metrics": ["accuracy"]}, "choose among insertion"),
        ({"curves": {"removal": {}}}, "choose among insertion"),
    ]:
        with pytest.raises(ValueError, match=message):
            scores.score_maps(settings(scored, **changes))
    with pytest.raises(ValueError, match="lack \\['data', 'maps', 'metrics'\\]"):
        scores.score_maps({"target": "somewhere"})


def test_maps_must_fit_what_was_explained(scored, tmp_path):
    """A file with fewer maps than explained images is named, and so is a folder without maps."""
    explained = json.loads((scored / "maps" / "explained.json").read_text())
    (tmp_path / "explained.json").write_text(json.dumps(explained))
    np.save(tmp_path / "first.npy", np.zeros((COUNT - 1, SIZE, SIZE), dtype=np.float32))
    with pytest.raises(ValueError, match=r"first\.npy holds 6 maps of 7"):
        scores.score_maps(settings(scored, maps=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match="run the stage explain"):
        scores.score_maps(settings(scored, maps=str(tmp_path / "nothing")))


def made_up_scores():
    """Two methods on five images: B failed on image 4, image 3 has no object, categories x, x, x, y, y."""
    about = {"image": [0, 1, 2, 3, 4], "label": list("xxxyy"), "target": [0] * 5}
    gap = math.nan
    a = {"method": "A", "failed": 0, "deletion": [0.1, 0.2, 0.3, 0.4, 9.0], "pointing_game": [1, 1, 0, gap, 1]}
    b = {"method": "B", "failed": [0, 0, 0, 0, 1], "deletion": [0.3, 0.4, 0.5, 0.6, gap]}
    b["pointing_game"] = [0, 1, 0, gap, gap]
    return pandas.concat([pandas.DataFrame(about | a), pandas.DataFrame(about | b)], ignore_index=True)


def test_table_compares_methods_on_the_same_images():
    """Image 4, where B failed, counts for neither mean and in B's failures; image 3 leaves the pointing game only."""
    table = scores.score_table(made_up_scores(), ["deletion", "pointing_game"], seed=0)
    assert table.index.tolist() == ["A", "B"]
    assert table["deletion"].tolist() == pytest.approx([0.25, 0.45])
    assert table["deletion_n"].tolist() == [4, 4]
    assert table["pointing_game"].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert table["pointing_game_n"].tolist() == [3, 3]
    assert table["failures"].tolist() == [0, 1]
    assert (table["deletion_low"] < table["deletion"]).all()
    assert (table["deletion"] < table["deletion_high"]).all()
    assert table.equals(scores.score_table(made_up_scores(), ["deletion", "pointing_game"], seed=0))


def test_pointing_game_by_category():
    """With a hit in category y (1 of 1) and 2 of 3 in x: over categories 5/6, over images 3/4; so are the intervals."""
    frame = made_up_scores()
    frame = frame[frame["method"] == "A"]
    table = scores.score_table(frame, ["pointing_game"], seed=0)
    assert table.loc["A", "pointing_game"] == pytest.approx(3 / 4)
    assert table.loc["A", "pointing_game_by_category"] == pytest.approx(5 / 6)
    ends = table.loc["A", ["pointing_game_by_category_low", "pointing_game_by_category_high"]]
    assert ends.tolist() == pytest.approx([1 / 2, 1])  # none or all of x hit, and always y: (0 + 1) / 2
    assert table.loc["A", "pointing_game_low"] < 1 / 2


def test_methods_are_compared_in_pairs():
    """B - A is 0.2 on the four shared images, p = 2 / 2^4; one comparison needs no correction."""
    table = scores.compare_methods(made_up_scores(), "deletion", reference="A", seed=0)
    assert table.index.tolist() == ["B"]
    assert table.loc["B", ["difference", "p", "p_holm", "n"]].tolist() == pytest.approx([0.2, 0.125, 0.125, 4])
    with pytest.raises(ValueError, match="choose among A, B"):
        scores.compare_methods(made_up_scores(), "deletion", reference="C", seed=0)


def test_scores_and_curves_go_to_disk_and_are_read_back(scored, tmp_path):
    """A file per method with six digits and the digest of the protocol; curves of every image; no partial folder."""
    folders = {"scores": str(tmp_path / "new" / "scores"), "drawn": str(tmp_path / "new" / "curves")}
    result = scores.score_maps(settings(scored, **folders))
    lines = (tmp_path / "new" / "scores" / "second.csv").read_text().splitlines()
    assert lines[0].startswith("image,label,target,method,failed,insertion")
    assert len(lines) == COUNT + 1
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["curves", "scores"]
    again = scores.read_scores(folders["scores"])
    pandas.testing.assert_frame_equal(again, scores.score_frame(result), rtol=1e-5, check_dtype=False)
    drawn = np.load(tmp_path / "new" / "curves" / "second.insertion.npy")
    assert drawn.shape == (COUNT, 7)
    assert np.isnan(drawn[3]).all()
    np.testing.assert_allclose(np.nanmean(drawn, 0), result["curves"]["second"]["insertion"])


def test_scores_of_another_protocol_are_never_mixed(scored, tmp_path):
    """A method's file from a run with other options, or of a method that this run has not, is named; so is no file."""
    new, old = str(tmp_path / "new"), str(tmp_path / "old")
    scores.score_maps(settings(scored, scores=new))
    assert len(scores.read_scores(new)) == 2 * COUNT
    scores.score_maps(settings(scored, scores=old, curves=CURVES | {"deletion": {"pixels_per_step": 6272}}))
    (tmp_path / "new" / "second.csv").write_bytes((tmp_path / "old" / "second.csv").read_bytes())
    with pytest.raises(ValueError, match=r"second.csv was scored by another protocol than protocol.json; evaluate"):
        scores.read_scores(new)
    (tmp_path / "old" / "third.csv").write_bytes((tmp_path / "old" / "second.csv").read_bytes())
    with pytest.raises(ValueError, match=r"holds scores of another run: third; evaluate again"):
        scores.read_scores(old)
    with pytest.raises(FileNotFoundError, match=r"holds no scores.*run the stage evaluate"):
        scores.read_scores(tmp_path / "none")


def test_scores_of_another_run_are_never_mixed(scored, tmp_path):
    """Maps of another target are not scored; scores and curves of other maps are not read where a run is named."""
    folders = {"scores": str(tmp_path / "scores"), "drawn": str(tmp_path / "curves")}
    run = scores.score_maps(settings(scored, **folders))["run"]
    assert run["maps"] == "of a test"
    assert len(scores.read_scores(folders["scores"], run)) == 2 * COUNT
    assert next(iter(scores.read_curves(folders["drawn"], run))) == "first.deletion"
    for read, folder in ((scores.read_scores, folders["scores"]), (scores.read_curves, folders["drawn"])):
        with pytest.raises(ValueError, match=r"protocol.json is of another run \(maps of a test instead of others\)"):
            read(folder, run | {"maps": "others"})
    torch.manual_seed(7)
    networks.save(networks.build("small_resnet", ["a", "b"]).eval(), tmp_path / "target")
    with pytest.raises(ValueError, match=r"maps is of another run \(target small_resnet \w+ instead of small_resnet"):
        scores.score_maps(settings(scored, target=str(tmp_path / "target")))


def test_a_broken_evaluation_leaves_the_scores_before_it(scored, tmp_path, monkeypatch):
    """An error in the second method, or a full disk, leaves the earlier run's folder as it was and no other."""
    folder = tmp_path / "scores"
    scores.score_maps(settings(scored, scores=str(folder)))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def breaking(line):
        raise KeyboardInterrupt(line)

    with pytest.raises(KeyboardInterrupt):
        scores.score_maps(settings(scored, scores=str(folder), batch=2), log=breaking)
    monkeypatch.setattr(pandas.DataFrame, "to_csv", toy_tasks.disk_full)
    with pytest.raises(DiskFull, match=rf"cannot write {folder}/\w+.csv \(No space left on device\)"):
        scores.score_maps(settings(scored, scores=str(folder), drawn=str(tmp_path / "curves")))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]
