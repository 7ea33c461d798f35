"""What the pipeline wrote, and nothing else, goes out: by dvc.lock, by name, to a branch of its own."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from reported import change, project

from xai_utils.pipeline import outputs, parameters, site


def git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_a_folder_is_hashed_as_dvc_does(tmp_path):
    """Whatever the order of names and depths, and for an empty file."""
    for name in ("b.txt", "a/c.txt", "a-b/d", "a.txt", "a/Z", "é.csv"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name == "a/Z" else name)
    for command in (["init", "--no-scm", "-q"], ["add", "-q", "folder"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=tmp_path, check=True, timeout=120)
    recorded = parameters.read(tmp_path / "folder.dvc")["outs"][0]["md5"]
    assert outputs.content_hash(tmp_path / "folder") == recorded
    assert outputs.content_hash(tmp_path / "nothing") is None


@pytest.fixture
def recorded(tmp_path):
    """A project of two stages, the second reading what the first makes, as one whole run would leave it."""
    folder = project(tmp_path / "p")
    stages = ("evaluate", "figures")
    outs = {
        stage: [{"path": path, "md5": outputs.content_hash(folder / path)} for path in paths]
        for stage, paths in zip(
            stages,
            (("reports/metrics.json",), ("reports/figures", "reports/figures.html", "reports/index.html")),
            strict=True,
        )
    }
    (folder / "dvc.yaml").write_text(json.dumps({"stages": {stage: {"cmd": stage} for stage in stages}}))
    received = {stage: {"params.yaml": {"scale": "default", stage: {"rows": 6}}} for stage in stages}
    lock = {stage: {"cmd": stage, "params": received[stage], "outs": outs[stage]} for stage in stages}
    lock["figures"]["deps"] = [{"path": "reports/metrics.json", "md5": outs["evaluate"][0]["md5"]}]
    (folder / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": lock}))
    git(folder, "init", "-q", "-b", "main")
    git(folder, "config", "user.name", "someone")
    git(folder, "config", "user.email", "someone@example.org")
    (folder / ".gitignore").write_text("site/\n*.json\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "a run")
    git(folder, "init", "-q", "--bare", str(tmp_path / "remote.git"))
    return folder


def test_reports_are_compared_with_the_lock_by_content(recorded):
    """A touched file is the same file; another byte, a missing file, a newer input and an unrun stage are named."""
    assert outputs.outdated(recorded) == []
    os.utime(recorded / "reports" / "figures.html", (0, 0))
    assert outputs.outdated(recorded) == []
    with (recorded / "reports" / "figures.html").open("a") as page:
        page.write(" ")
    (recorded / "reports" / "metrics.json").unlink()
    change(recorded / "dvc.yaml", lambda value: value["stages"].update(more={}))
    change(recorded / "dvc.lock", lambda value: value["stages"]["figures"]["deps"][0].update(md5="0" * 32))
    assert outputs.outdated(recorded) == [
        "stage more has not run: dvc.lock does not know it",
        "reports/metrics.json is missing; stage evaluate makes it",
        "reports/figures.html is not what dvc.lock records; stage figures makes it",
        "stage figures is older than reports/metrics.json, which evaluate has made anew since",
    ]


def test_stages_of_one_run_read_the_same_data_and_code(recorded):
    """A stage that did not run again after a change of what another has read anew is named, with the file."""
    for stage, md5 in (("evaluate", "1" * 32), ("figures", "2" * 32)):
        read = [{"path": "xai_utils/files.py", "md5": md5}, {"path": "data/birds", "md5": "3" * 32}]
        change(
            recorded / "dvc.lock", lambda value, s=stage, r=read: value["stages"][s].setdefault("deps", []).extend(r)
        )
    assert outputs.outdated(recorded) == [
        "stages evaluate and figures ran with different versions of xai_utils/files.py"
    ]


def test_the_site_is_published_beside_the_work(recorded, tmp_path):
    """A branch that keeps its history receives exactly site/; index, branch and working tree stay as they were."""
    remote, target = str(tmp_path / "remote.git"), recorded / "site"
    (recorded / "staged").write_text("not committed yet")
    git(recorded, "add", "staged")
    (recorded / "README.md").write_text("not even staged")
    work = ("status", "--porcelain"), ("rev-parse", "HEAD"), ("branch", "--list")
    before = [git(recorded, *question) for question in work]
    assert re.match(r"published as \w{10} on branch 'gh-pages' of ", site.publish(recorded, target, remote, "gh-pages"))
    files = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    assert {".nojekyll", "index.html", "metrics.json", "figures/methods.jpg"} <= set(files)
    git(tmp_path, "clone", "-q", "-b", "gh-pages", remote, "seen")
    assert sorted(git(tmp_path / "seen", "ls-files").splitlines()) == files
    for name in files:
        assert (tmp_path / "seen" / name).read_bytes() == (target / name).read_bytes(), name
    assert "holds this site already" in site.publish(recorded, target, remote, "gh-pages")
    (tmp_path / "seen" / "CNAME").write_text("example.org")  # somebody else's commit
    git(tmp_path / "seen", "add", "-A")
    git(tmp_path / "seen", "-c", "user.name=other", "-c", "user.email=o@example.org", "commit", "-q", "-m", "by hand")
    git(tmp_path / "seen", "push", "-q")
    site.publish(recorded, target, remote, "gh-pages")
    subjects = git(tmp_path / "remote.git", "log", "--format=%s", "gh-pages").splitlines()
    ours = f"The site of {git(recorded, 'rev-parse', '--short', 'HEAD')}"
    assert subjects == [ours, "by hand", ours]
    assert [git(recorded, *question) for question in work] == before


def test_publishing_refuses_with_a_reason(recorded, tmp_path):
    """A branch of work, a remote that is not there, reports that no longer fit: nothing is made, nothing is pushed."""
    remote = str(tmp_path / "remote.git")
    git(recorded, "push", "-q", remote, "main")
    for where, branch, reason in (
        ("", "gh-pages", "name the git remote to publish to: make publish REMOTE=origin"),
        (remote, "main", "branch 'main' of .* holds something else than a site"),
        (remote, "no..branch", "git check-ref-format refs/heads/no..branch failed"),
        (str(tmp_path / "nowhere"), "gh-pages", "git ls-remote .* failed: .*nowhere"),
    ):
        with pytest.raises(ValueError, match=reason):
            site.publish(recorded, recorded / "site", where, branch)
    (recorded / "reports" / "figures" / "methods.jpg").write_bytes(b"another picture")
    done = subprocess.run(
        [sys.executable, "-m", "xai_utils.pipeline.site", "publish", remote],
        cwd=recorded,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "reports/figures is not what dvc.lock records; stage figures makes it",
        "these reports are not those of one whole run; mend with: make repro",
    ]
    assert not (recorded / "site").exists()
    assert git(tmp_path / "remote.git", "branch", "--list").split() == ["main"]


def pushed(tmp_path):
    """The names of the files on the branch."""
    listed = subprocess.run(
        ["git", "ls-tree", "-r", "-z", "--name-only", "gh-pages"], cwd=tmp_path / "remote.git", capture_output=True
    )
    return sorted(os.fsdecode(name) for name in listed.stdout.split(b"\0") if name)


def test_nothing_goes_that_no_stage_wrote(recorded, tmp_path):
    """Files beside the outputs, folders, hidden files, files put into an output, names that would hide: left out and
    named, before anything is pushed; the outputs themselves go, whatever they are called."""
    figures, reports = recorded / "reports" / "figures", recorded / "reports"
    (figures / "a #1%20é.csv").write_text("1,2")
    change(
        recorded / "dvc.lock",
        lambda lock: lock["stages"]["figures"]["outs"][0].update(md5=outputs.content_hash(figures)),
    )
    git(recorded, "add", "-A")
    git(recorded, "commit", "-q", "-m", "a run with another name")
    strays = [
        "letter.txt",
        "holiday/me.jpg",
        ".env",
        "figures/key.jpg",
        "figures/new/key.txt",
        "a\nb.html",
        "\udcff.csv",
    ]
    for stray in strays:
        (reports / stray).parent.mkdir(exist_ok=True)
        (reports / stray).write_text("private")
    told = []
    site.publish(
        recorded,
        recorded / "site",
        str(tmp_path / "remote.git"),
        "gh-pages",
        tell=lambda text: told.append((text, pushed(tmp_path))),
    )
    (goes, before), (stays, _) = told
    assert before == []
    assert pushed(tmp_path) == sorted(
        [".nojekyll", "index.html", "metrics.json", "figures.html"]
        + [path.relative_to(reports).as_posix() for path in figures.iterdir() if path.name not in ("key.jpg", "new")]
        + [f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("[01]*.ipynb")]
        + [f"docs/{path.name}" for path in (ROOT / "docs").iterdir()]
    )
    assert goes.startswith(f"site/ holds {len(pushed(tmp_path))} files, ")
    assert all(name.rsplit("/", 1)[-1] in goes for name in pushed(tmp_path))
    assert stays.startswith("left out, for no stage wrote it: ")
    for name in ("letter.txt", "holiday/", ".env", "figures/key.jpg", "figures/new/", "scores/", "evaluate.html"):
        assert f" reports/{name}" in stays
    assert r"'reports/a\nb.html'" in stays
    assert r"'reports/\udcff.csv'" in stays
    assert 'href="figures/a%20%231%2520%C3%A9.csv"' in (recorded / "site" / "index.html").read_text()


def test_links_are_refused(recorded, tmp_path):
    """In the place of an output, within one, beside them: nothing is read through a link, made or pushed."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "passwd").write_text("private")
    outside = ("reports/linked", "reports/figures/linked")
    for place in (*outside, "reports/figures.html", "reports", "notebooks/11_figures.ipynb"):
        link, elsewhere = recorded / place, other if place in outside else tmp_path / "the very content"
        if elsewhere != other:
            link.rename(elsewhere)
        link.symlink_to(elsewhere)
        said = f"the site follows no link; remove it, or put what it leads to in its place: {place}$"
        with pytest.raises(site.SiteError, match=said):
            site.build(recorded, recorded / "site")
        with pytest.raises(site.SiteError, match=said):
            site.publish(recorded, recorded / "site", str(tmp_path / "remote.git"), "gh-pages")
        link.unlink()
        if elsewhere != other:
            elsewhere.rename(link)
    assert outputs.outdated(recorded) == []
    assert not (recorded / "site").exists()
    assert pushed(tmp_path) == []


def test_an_output_that_was_changed_is_no_stray(recorded):
    """Another picture in the place of one, or one that is gone, is no longer the folder that was recorded."""
    figures = recorded / "reports" / "figures"
    first, second, *_ = sorted(figures.iterdir())
    said = ["reports/figures is not what dvc.lock records; stage figures makes it"]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    assert outputs.outdated(recorded) == said
    first.write_bytes(content)
    (figures / "stray").touch()
    assert outputs.outdated(recorded) == []
    second.unlink()
    assert outputs.outdated(recorded) == said


def test_what_dvc_yaml_does_not_name_is_not_published(recorded):
    """An output of a stage that was taken out of dvc.yaml, or outside of reports/, is none."""
    change(recorded / "dvc.yaml", lambda value: value["stages"].pop("figures"))
    change(
        recorded / "dvc.lock",
        lambda lock: lock["stages"]["evaluate"]["outs"].extend(
            {"path": path, "md5": outputs.content_hash(recorded / path)}
            for path in ("params.yaml", "reports/../pyproject.toml")
        ),
    )
    assert outputs.reports(recorded).written == ["metrics.json"]
