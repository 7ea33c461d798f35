"""Runs kept as numbers: what was scored comes back, whole or not at all, and it says how it was made."""

import json
import re
import shutil

import pytest
from conftest import ROOT
from reported import change, project

from xai_utils.evaluation.scores import read_scores
from xai_utils.files import write_text
from xai_utils.papers import claims
from xai_utils.pipeline import beside, git, kept, outputs, parameters, report, site


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A project with the committed run in it, once more kept as "again"; tests that change it take a copy."""
    folder = project(tmp_path_factory.mktemp("kept") / "p")
    kept.keep("again", folder, folder)
    return folder


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "p")


def committed(folder, message="a run"):
    """The folder as the last commit of a repository."""
    git.said(folder, "init", "-q", "-b", "main")
    git.said(folder, "config", "user.name", "someone")
    git.said(folder, "config", "user.email", "someone@example.org")
    git.said(folder, "add", "-A")
    git.said(folder, "commit", "-q", "-m", message)
    return git.said(folder, "rev-parse", "HEAD")


def test_what_was_kept_is_what_was_scored(run):
    """Scores of every image, and each file of numbers byte by byte; no picture, no page; less than half the size."""
    folder, reports = run / "runs" / "again", run / "reports"
    assert kept.scores(folder).equals(read_scores(reports / "scores"))
    own = {kept.ABOUT, kept.SCORES, "protocol.json"}
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert set(files) - own == {name for name in outputs.numbers(run) if not name.startswith("scores/")}
    assert all(path.read_bytes() == (reports / name).read_bytes() for name, path in files.items() if name not in own)
    assert (folder / "protocol.json").read_bytes() == (reports / "scores" / "protocol.json").read_bytes()
    assert sum(path.stat().st_size for path in files.values()) < 500_000


def test_a_kept_run_says_how_it_was_made(run):
    """Parameters at the scale of the run, versions, hashes of data, target and code, and what the papers claim."""
    about = kept.kept(run)["again"]
    assert (about["scale"], about["images"], about["image_size"]) == ("default", 60, 96)
    assert about["parameters"]["prepare_data"]["image_size"] == 96
    assert about["parameters"]["explain"]["rows"]["rise"] == {"masks": 500, "estimator": "paper"}
    assert list(about["parameters"]) == [
        name for name in parameters.STAGES if (ROOT / f"reports/{name}.html").is_file()
    ]
    assert {"python", "torch", "numpy"} <= set(about["versions"])
    lock = parameters.read(run / "dvc.lock")["stages"]
    made = {entry["path"]: entry["md5"] for entry in lock["finetune_target"]["outs"]}
    assert about["hashes"]["made"]["build/target"] == made["build/target"]
    assert {"data/birds", "data/published"} <= set(about["hashes"]["data"])
    assert "xai_utils/files.py" in about["hashes"]["code"]
    assert "build/notebooks/08_evaluate.ipynb" in about["hashes"]["code"]
    verdicts = {(row["paper"], row["claim"]): row["verdict"] for row in about["claims"]}
    assert {paper for paper, _ in verdicts} == {"AKD", "DGLE", "FastCAM", "AMG"}
    pages = (run / "reports" / f"{stage}.html" for stage in ("evaluate", "remove_and_retrain", "train_attention"))
    text = re.sub(r"<[^>]+>", " ", "".join(page.read_text() for page in pages)).replace("&#x27;", "'")
    for (paper, claim), verdict in verdicts.items():  # as the reports of that run have decided
        assert re.search(rf"{re.escape(claim)}\s+(?:{paper}, [^:]{{0,40}}?)?\s*{verdict}", text), claim


def test_the_same_run_gives_the_same_bytes(run, copy):
    """At another place and time: every file, and so what git stores."""
    kept.keep("again", copy, copy, force=True)
    assert outputs.content_hash(copy / "runs") == outputs.content_hash(run / "runs")


def test_a_name_is_taken_once(run):
    """Another run under the name of one that is kept needs to be asked for; the names are those of files."""
    before = outputs.content_hash(run / "runs")
    with pytest.raises(kept.KeptError, match=r"runs/again holds a run already; choose another NAME, or .* FORCE=1"):
        kept.keep("again", run, run)
    for name in ("", "../again", "a/b", "x.html"):
        with pytest.raises(ValueError, match="cannot be the name"):
            kept.keep(name, run, run)
    assert outputs.content_hash(run / "runs") == before


def test_a_run_that_is_too_large_is_not_kept(copy, monkeypatch):
    """The error names the largest files, and nothing is written."""
    contents = {"scores.csv.gz": bytes(900_000), "metrics.json": bytes(90_000), "run.json": bytes(20_000), "a": b""}
    monkeypatch.setattr(kept, "collected", lambda *given: contents)
    told = r"take 1,010 kB, and 1,000 kB may be kept; the largest: scores.csv.gz 900 kB, metrics.json 90 kB, run.json"
    with pytest.raises(kept.KeptError, match=told):
        kept.keep("large", copy, copy)
    assert [path.name for path in (copy / "runs").iterdir()] == ["again"]


def test_half_a_run_is_not_kept(copy):
    """A changed number, a stage that never ran, a link, no run at all: each is named, and nothing is written."""
    reports = copy / "reports"
    change(reports / "metrics.json", lambda value: value["methods"]["akd"].update(passes=0.5))
    with pytest.raises(kept.KeptError, match=r"reports/metrics.json is not what dvc.lock records(.|\n)*make repro"):
        kept.keep("half", copy, copy)
    change(copy / "dvc.lock", lambda lock: lock["stages"].pop("explain"))
    with pytest.raises(kept.KeptError, match="stage explain has not run"):
        kept.keep("half", copy, copy)
    (reports / "more.json").symlink_to(ROOT / "pyproject.toml")
    with pytest.raises(kept.KeptError, match=r"reports/more.json is a link"):
        kept.keep("half", copy, copy)
    with pytest.raises(kept.KeptError, match=r"params.yaml is missing: there is no run of the pipeline in"):
        kept.keep("half", copy / "notebooks", copy)
    assert [path.name for path in (copy / "runs").iterdir()] == ["again"]


def test_a_folder_without_a_lock_is_kept_if_its_numbers_agree(copy):
    """Where DVC has not run, parameters are those of params.yaml, and what the numbers say of their run decides."""
    (copy / "dvc.lock").unlink()
    shutil.move(copy / "notebooks", copy / "elsewhere")
    (copy / "notebooks").symlink_to("elsewhere")
    kept.keep("plain", copy, copy)
    both = kept.kept(copy)
    assert both["plain"]["parameters"]["explain"]["rows"]["rise"] == {"masks": 500, "estimator": "paper"}
    assert (both["plain"]["claims"], both["plain"]["hashes"]) == (both["again"]["claims"], {})
    maps = copy / "build" / "maps" / "explained.json"
    maps.parent.mkdir(parents=True)
    write_text(maps, json.dumps({"run": both["again"]["summary"]["run"] | {"maps": "0123"}}))
    with pytest.raises(kept.KeptError, match=r"build/maps/explained.json is of another run .*maps 0123 instead"):
        kept.keep("unscored", copy, copy)
    change(copy / "reports" / "train_attention.json", lambda value: value["run"].update(target="another 0123"))
    with pytest.raises(kept.KeptError, match=r"train_attention.json is of another run .*target another 0123 instead"):
        kept.keep("mixed", copy, copy)
    assert [path.name for path in sorted((copy / "runs").iterdir())] == ["again", "plain"]


def test_no_place_outside_of_the_project_is_kept(copy):
    """Data and networks of somebody's folders keep their names and lose where they lie."""
    values = {
        "/photos/of me/pets": "…/pets",
        "../beside/pets/": "…/pets",
        "data/../../pets": "…/pets",
        "~/pets": "…/pets",
        "C:\\photos\\pets": "…/pets",
        "hf:/models/net": "hf:…/net",
        "data/pets": "data/pets",
        "resnet50:mine/it.pth": "resnet50:mine/it.pth",
        "1 / 2": "1 / 2",
    }
    assert {value: kept._without_places(value) for value in values} == values
    given = lambda lock: lock["stages"]["prepare_data"]["params"]["params.yaml"]  # noqa: E731

    def elsewhere(lock):
        given(lock).update(dataset="/photos/of me/pets")
        lock["stages"]["prepare_data"]["deps"][1]["path"] = "/photos/of me/pets"

    change(copy / "dvc.lock", elsewhere)
    kept.keep("mine", copy, copy)
    assert "…/pets" in kept.kept(copy)["mine"]["hashes"]["data"]
    for path in (copy / "runs" / "mine").rglob("*.*"):
        assert b"photos" not in path.read_bytes(), path.name


def test_the_run_of_a_revision_or_an_experiment_is_kept(copy):
    """What git holds there, whatever lies in the working tree now; a name that means no run says what there is."""
    commit = committed(copy)
    git.said(copy, "update-ref", f"refs/exps/{commit[:2]}/{commit[2:]}/tame-lion", commit)
    git.said(copy, "rm", "-q", "-r", "reports")
    git.said(copy, "commit", "-q", "-m", "no reports")
    lion = {"commit": commit, "experiment": "tame-lion", "based_on": commit}
    for name, about in (("main~1", {"commit": commit}), ("tame-lion", lion)):
        with kept.checked_out(copy, name) as (folder, revision):
            assert revision == about
            assert outputs.outdated(folder) == []
            assert not (folder / "notebooks").exists()
    with kept.checked_out(copy, "tame-lion") as (folder, revision):
        kept.keep("lion", folder, copy, revision=revision)
    assert kept.kept(copy)["lion"]["revision"] == revision
    assert kept.kept(copy)["lion"]["summary"] == kept.kept(copy)["again"]["summary"]
    git.said(copy, "update-ref", f"refs/exps/{commit[2:4]}/{commit[4:]}/tame-lion", "HEAD")
    for name, told in (
        ("main", r"the revision 'main' holds no reports/ with a dvc.lock"),
        ("nothing", "REV=nothing is neither a revision of git nor the name of an experiment here"),
        ("--all", "REV=--all is neither"),
        ("tame-lion", rf"REV=tame-lion is the name of 2 experiments; give a commit: .*{commit}"),
    ):
        with pytest.raises(kept.KeptError, match=told), kept.checked_out(copy, name):
            pass


def test_a_checkout_tells_its_revision_and_what_differs(copy):
    """The commit that is checked out, and the changed files of the code; nothing of a repository that is not ours."""
    assert kept._revision(copy) == {}
    commit = committed(copy)
    assert kept._revision(copy) == {"commit": commit}
    write_text(copy / "dvc.yaml", (copy / "dvc.yaml").read_text() + "# more\n")
    assert kept._revision(copy) == {"commit": commit, "changed since": ["dvc.yaml"]}
    git.said(copy, "rm", "-q", "--cached", "dvc.yaml")
    git.said(copy, "commit", "-q", "-m", "another project")
    assert kept._revision(copy) == {}


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "metrics.json").write_text("{}"), "metrics.json is not what was kept"),
        (lambda folder: (folder / "curves" / "deletion.csv").unlink(), "curves/deletion.csv is missing"),
        (lambda folder: (folder / "bird.jpg").touch(), "bird.jpg does not belong there"),
        (lambda folder: (folder / "run.json").write_text('{"files": '), "is no kept run"),
        (lambda folder: (folder / "run.json").unlink(), "is no kept run"),
        (lambda folder: change(folder / "run.json", lambda about: about.pop("claims")), "run.json lacks 'claims'"),
    ],
)
def test_a_damaged_run_stops_the_site(copy, damage, told):
    """What was changed, lost or added is named by the check, by the site and by the table of README.md."""
    damage(copy / "runs" / "again")
    for use in (site.check, beside.markdown, lambda root: site.build(root, root / "site")):
        with pytest.raises(kept.KeptError, match=rf"runs/again.*{told}.*; restore it with git, or keep it again"):
            use(copy)
    assert not (copy / "site").exists()


def with_rise(folder, insertion):
    """The run in `folder`, where RISE's insertion is the same for all images, whatever this machine's birds gave."""
    reports = folder / "reports"
    scored = reports / "scores" / "rise.csv"
    head, *lines = (line.split(",") for line in scored.read_text().splitlines())
    for line in lines:
        line[head.index("insertion")] = str(insertion)
    scored.write_text("\n".join(",".join(line) for line in (head, *lines)) + "\n")

    def same(summary):
        score = summary["methods"]["rise"]["insertion"]
        summary["methods"]["rise"]["insertion"] = dict.fromkeys(score, insertion)

    change(reports / "metrics.json", same)
    return folder


def without_parts(folder):
    """Another whole run in `folder`, as far as files tell, that has no part truth."""
    reports = folder / "reports"
    for path in (reports / "scores").glob("*.csv"):
        lines = [line.split(",") for line in path.read_text().splitlines()]
        gone = lines[0].index("part_truth")
        path.write_text("\n".join(",".join(part for n, part in enumerate(line) if n != gone) for line in lines) + "\n")

    def drop(summary):
        summary["metrics"].pop("part_truth")
        for row in summary["methods"].values():
            row.pop("part_truth")

    change(reports / "metrics.json", drop)
    (folder / "dvc.lock").unlink()
    return folder


def test_the_readme_shows_runs_side_by_side(copy, tmp_path, monkeypatch):
    """A line per run with the best methods; the claims that part; nothing where none is kept."""
    shutil.rmtree(copy / "runs")
    readme = tmp_path / "README.md"
    blocks = "\n".join(
        f"<!-- {part}: `make readme` writes this -->\nold\n<!-- end of {part} -->" for part in report.PARTS
    )
    readme.write_text(f"before\n{blocks}\nafter\n")
    assert beside.markdown(copy) == ""
    report.update_readme(readme, results="| new |", runs="")
    shown = readme.read_text()
    assert "-->\n| new |\n<!-- end of results" in shown
    assert "-->\n<!-- end of runs -->\nafter" in shown
    with_rise(copy, 1.0)
    monkeypatch.setattr(claims, "TRAININGS", 1)  # so that a claim with trained rivals may hold in one run
    other = with_rise(without_parts(shutil.copytree(copy, tmp_path / "other")), 0.25)
    kept.keep("again", other, copy)  # of the same images and target: one column is enough
    given = (other / "params.yaml").read_text()
    (other / "params.yaml").write_text(given.replace("image_size: {default: 96", "image_size: {default: 128"))
    kept.keep("pets", other, copy)
    text = beside.markdown(copy)
    report.update_readme(readme, results="| new |", runs=text)
    assert f"-->\n{text}\n<!-- end of runs" in readme.read_text()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert table[0] == ["images", "best insertion", "best grid pointing", "best part truth"]
    birds, pets = table[2:]
    assert birds[0].startswith("birds: 60 held-out images of birds at 96 pixels")
    assert pets[0].startswith("[pets](runs/pets/): 60 held-out images of birds at 128 pixels")
    assert birds[1] == "`rise` 1.000 [1.000, 1.000]"
    assert "rise" not in pets[1]
    assert birds[3] != "–"
    assert pets[3] == "–"
    assert "again" not in text
    assert "- AKD, *RISE inserts best*: holds on birds; fails on pets." in text
    assert "AKD is faster than RISE" not in text  # holds on both


def test_a_readme_without_markers_is_left_alone(tmp_path):
    """Which marker is missing is said before anything is written."""
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results: `make readme` writes this -->\n<!-- end of results -->\n")
    with pytest.raises(ValueError, match="lacks the markers '<!-- runs: `make readme`"):
        report.update_readme(readme, results="new", runs="")
    assert "new" not in readme.read_text()


def test_the_readme_counts_the_claims_of_several_seeds():
    """Those of the papers, of the group with most runs; a single run decides none."""
    verdicts = {"birds": dict(enumerate(["holds", "fails", "undecided", "undecided"])), "pets": {0: "fails"}}
    told = beside._counted(verdicts, {"birds": ["seed 0", "seed 1"], "pets": ["pets"]})
    assert told == "Over 2 seeds of birds 1 of the papers' claims hold, 1 fail and 2 are undecided.\n\n"
    assert beside._counted(verdicts, {"birds": ["seed 0"]}) == ""
    of_both = {("AKD", "RISE inserts best"): "holds", ("this repository", "ours deletes best"): "fails"}
    assert beside.of_the_papers(of_both) == {("AKD", "RISE inserts best"): "holds"}
