"""Kill every stage, fill its disk, start it twice: the numbers must stay those of an undisturbed run.

    python tests/faults.py [--seed 0] [--rounds 2] [--only STAGE] [--side-by-side 2]

Clones of the last commit run in a temporary folder at the smoke scale, one of them undisturbed. In each of the others
something goes wrong at every stage, at a moment drawn from the seed; then the run is started again with the same
command and nothing else, until it is through. At the end every file of build/, reports/ and .runs/ and every hash of
an out in dvc.lock is compared with the undisturbed run's. The exit status is 1 if anything differs, is left over,
still runs, or could not be started again. A full disk needs a small one: Linux, and leave to mount it (unshare).
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from ruamel.yaml import YAML
from scratch import ROOT, change

RUN = ("sh", "-c", "python -m xai_utils.pipeline --check && dvc repro")  # as `make repro`; the data are there
# of the statistics two: each takes ten trainings and runs no other code
SMALL = {"scale": "smoke", "remove_and_retrain.statistics": ["smoe_scale", "mean"]}
STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
UNEQUAL = "measure_speed"  # its results are times
NOTES = (".runs/dvc.lock", ".runs/seconds.json")  # a copy, and how long stages took
NAMESPACE = "FAULTS_NAMESPACE"  # set in the namespace where small disks can be mounted

GROUP, KERNEL, TERM, INTERRUPT = KILLS = ("SIGKILL, group", "SIGKILL, kernel", "SIGTERM, dvc", "SIGINT, group")
FULL, SECOND = "full disk", "second run"
CELLS, PAPERMILL, OUT = WHILE_RUNNING = ("in a cell", "papermill writes", "an out appears")
COMMITS, LOCK = AFTERWARDS = ("DVC commits", "dvc.lock written")
# where the disk is filled: as soon as one of these names is new
FILLED = {
    "prepare_data": "build/*data*",
    "finetune_target": ".checkpoints/finetune_target/*/*",
    "explain": "build/*maps*",
    "evaluate": "build/*curves*",
}
SMALL_DISK = "256m"


@dataclass(frozen=True)
class Fault:
    """What goes wrong in which stage, and when; `share`, in [0, 1], says how far the moment has got."""

    stage: str
    kind: str
    moment: str
    share: float
    ended: str = "never came"


class Started:
    """The run, started in a process group of its own; its output goes to a file."""

    def __init__(self, project: Path, log: Path):
        self.log, self.project, self.seen = log, project, set()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PATH"] = f"{ROOT / '.venv/bin'}:{environment['PATH']}"
        environment["PYTHONPATH"] = str(project)
        with log.open("w") as file:
            self.process = psutil.Popen(
                RUN, cwd=project, env=environment, stdout=file, stderr=file, start_new_session=True
            )

    def running(self) -> bool:
        return self.process.poll() is None

    def found(self, pattern: str) -> psutil.Process | None:
        """The first process of the run whose command line has `pattern`."""
        try:
            processes = [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return None
        self.seen.update(processes)
        for process in processes:
            try:
                if re.search(pattern, " ".join(process.cmdline())):
                    return process
            except psutil.Error:  # it has just ended
                continue
        return None

    def wait_for(self, stage: str) -> psutil.Process | None:
        """The command of `stage`, as soon as it runs; None when the run has ended, or is at a later stage."""
        later = list(STAGES)[list(STAGES).index(stage) + 1 :]
        while self.running():
            if process := self.found(command_of(stage)):
                return process
            if self.found("|".join(map(command_of, later)) or "(?!)"):
                return None
            time.sleep(0.05)
        return None

    def ended(self) -> str:
        """How it ended: its status or signal, and the first line that tells of an error."""
        try:
            status = self.process.wait(3600)
        except psutil.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return f"hung; see {self.log}"
        name = signal.Signals(-status).name if status < 0 else f"status {status}"
        said = self.log.read_text(errors="replace").replace(f"{self.project}/", "")
        for telling in (r"(?:stage \w+ failed: |[\w.]*Error: |cannot |ERROR: (?!failed to reproduce)).*", "ERROR: .*"):
            if status and (found := re.search(f"^{telling}", said, re.MULTILINE)):
                return f"{name}: {found[0]}"
        return name


def command_of(stage: str) -> str:
    """A pattern of the end of its command line."""
    return re.escape(STAGES[stage]["cmd"].split(" ", 1)[1]) + "$"


def outs(stage: str) -> list[str]:
    entries = [entry for kind in ("outs", "metrics") for entry in STAGES[stage].get(kind, [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def cloned(folder: Path, small_disk: bool) -> Path:
    """A clone of the last commit, at the smoke scale, on a file system of its own if `small_disk`."""
    project = folder / "a project"
    project.mkdir(parents=True)
    if small_disk:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "faults", project], check=True)
    subprocess.run(["git", "clone", "-q", "--shared", ROOT, project], check=True)
    subprocess.run([ROOT / ".venv/bin/dvc", "pull", "-q", "data.dvc"], cwd=project, check=True)
    change(project / "params.yaml", **SMALL)
    return project


def ordered(scratch: Path) -> list[str]:
    """The stages in the order in which DVC runs them."""
    said = subprocess.run(
        [ROOT / ".venv/bin/dvc", "repro", "--dry", "--force"],
        cwd=cloned(scratch / "order", False),
        check=True,
        capture_output=True,
        text=True,
    )
    return re.findall("Running stage '(.*)'", said.stdout)


def plan(seed: int, rounds: int, order: list[str], small_disk: bool) -> list[list[Fault]]:
    """Rounds of faults in the order of the stages: a kill of each stage in each round, all ways equally often."""
    draw, deck, planned = random.Random(seed), [], []
    twice = draw.sample(order, min(4, len(order)))
    ways = [
        (kind, moment)
        for kind in KILLS
        for moment in (WHILE_RUNNING + AFTERWARDS if kind != KERNEL else (CELLS, PAPERMILL))
    ]
    for number in range(rounds):
        faults = []
        for stage in order:
            if small_disk and stage in FILLED and number < 2:
                faults.append(Fault(stage, FULL, (OUT, COMMITS)[number], draw.random()))
            barred = (CELLS, PAPERMILL) if stage == "strip" else ()  # it has no kernel
            if all(way[1] in barred for way in deck):
                deck += draw.sample(ways, len(ways))
            way = next(way for way in deck if way[1] not in barred)
            deck.remove(way)
            faults.append(Fault(stage, *way, draw.random()))
            if number == 1 and stage in twice:
                faults.append(Fault(stage, SECOND, CELLS, draw.random()))
        planned.append(faults)
    return planned


def stamps(project: Path, pattern: str) -> dict[Path, tuple]:
    """File -> what changes when it is written, of those that are there."""
    found = {}
    for path in project.glob(pattern):
        with contextlib.suppress(OSError):  # it has just gone
            about = path.stat()
            found[path] = (about.st_mtime_ns, about.st_size, about.st_ino)
    return found


def waited(fault: Fault, run: Started) -> psutil.Process | None:
    """Wait for the fault's moment; the stage's command, None if the run ended before."""
    command = run.wait_for(fault.stage)
    if command is None:
        return None
    pattern, count, pause = "dvc.lock", 1, 0.0  # what is written, how often, and seconds after it
    if fault.moment in (CELLS, PAPERMILL):  # papermill writes before and after each cell
        pattern, pause = f".runs/{fault.stage}.ipynb", 2 * fault.share * (fault.moment == CELLS)
        for notebook in (run.project / "notebooks").glob(f"*_{fault.stage}.ipynb"):
            count += int(fault.share * 2 * len(json.loads(notebook.read_text())["cells"]))
    elif fault.moment == OUT:
        pattern = FILLED[fault.stage] if fault.kind == FULL else outs(fault.stage)[0]
    elif fault.moment == COMMITS:
        pause = fault.share * (fault.kind != FULL)
    last, due = stamps(run.project, pattern), None
    while run.running():
        if (now := stamps(run.project, pattern)) != last:
            count, last = count - bool(now.items() - last.items()), now
        over = not psutil.pid_exists(command.pid)
        begins, latest = (over, count <= 0) if fault.moment == COMMITS else (count <= 0, over and fault.moment != LOCK)
        if begins and due is None:
            due = time.monotonic() + pause
        if latest or (due is not None and time.monotonic() >= due):
            return command
        time.sleep(0.0005)
    return None


def strike(fault: Fault, run: Started, command: psutil.Process):
    """Let it go wrong."""
    if fault.kind == GROUP:
        os.killpg(run.process.pid, signal.SIGKILL)
    elif fault.kind == INTERRUPT:
        os.killpg(run.process.pid, signal.SIGINT)
    elif fault.kind == TERM:
        (run.found("(bin/|-m )dvc repro") or run.process).send_signal(signal.SIGTERM)
    elif fault.kind == KERNEL:
        while (kernel := run.found("-m ipykernel_launcher")) is None and psutil.pid_exists(command.pid):
            time.sleep(0.01)
        (kernel or command).kill()
    elif fault.kind == FULL:
        room = int(fault.share * 2**16) if fault.moment == OUT else 0  # bytes
        fill(run.project / "ballast", room)


def fill(ballast: Path, room: int):
    """Leave about `room` bytes on the disk of `ballast`, to which others write meanwhile."""
    with ballast.open("wb") as file:
        while (size := shutil.disk_usage(ballast.parent).free - room) > 0:
            try:
                return os.posix_fallocate(file.fileno(), 0, size)
            except OSError:  # it has just become less
                room += 2**12


def disturbed(folder: Path, faults: list[Fault], small_disk: bool):
    """A clone, run until all `faults` have happened and it is through: (what happened, its results, what is wrong)."""
    project = cloned(folder, small_disk)
    run, seen, happened, wrong = Started(project, folder / "0.log"), set(), [], []
    for number, fault in enumerate(faults, 1):
        command = waited(fault, run)
        if command is None and not run.running() and (ended := run.ended()) != "status 0":
            wrong.append(f"{fault.stage}: started again it ended with {ended}; see {run.log}")
            break
        if command and fault.kind == SECOND:
            second = Started(project, folder / f"second-{number}.log")
            fault = replace(fault, ended=second.ended())
            seen |= second.seen
        elif command:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):  # it has just ended by itself
                strike(fault, run, command)
            fault = replace(fault, ended=run.ended())
            (project / "ballast").unlink(missing_ok=True)
        happened.append(fault)
        seen |= run.seen
        print(
            f"{folder.name}: {fault.stage}: {fault.kind}, {fault.moment} {fault.share:.0%}: {fault.ended}", flush=True
        )
        if not run.running():
            run = Started(project, folder / f"{number}.log")
    if not wrong and (ended := run.ended()) != "status 0":
        wrong.append(f"the last start ended with {ended}; see {run.log}")
    wrong += [f"still runs: {process}" for process in psutil.wait_procs(seen | run.seen, timeout=30)[1]]
    found = results(project) if not wrong else {}
    if small_disk:  # it goes when this process ends
        with contextlib.suppress(shutil.Error):  # of a socket
            shutil.copytree(project, folder / "as it was left", symlinks=True)
        subprocess.run(["umount", "--lazy", project], check=True)
    return happened, found, wrong


def results(project: Path) -> dict[str, str]:
    """Path -> hash of all that a run leaves in build/, reports/ and .runs/, and of all outs in dvc.lock."""
    found = {path.name: "" for path in project.iterdir()}  # nothing else beside them
    for path in (path for top in ("build", "reports", ".runs") for path in (project / top).rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(project))] = hashlib.sha256(content).hexdigest()
    for stage, about in YAML(typ="safe").load(project / "dvc.lock")["stages"].items():
        found |= {f"{stage}: {out['path']}": out["md5"] for out in about["outs"]}
    return {name: value for name, value in found.items() if UNEQUAL not in name and name not in NOTES}


def may_mount() -> bool:
    """Whether small disks can be mounted here; this script begins anew where they can, in a namespace of mounts."""
    if NAMESPACE in os.environ:
        return True
    with tempfile.TemporaryDirectory() as folder:
        trial = ["unshare", "-Urm", "mount", "-t", "tmpfs", "-o", "size=1m", "faults", folder]
        if shutil.which("unshare") is None or subprocess.run(trial, capture_output=True).returncode:
            return False
    os.environ[NAMESPACE] = "entered"
    os.execvp("unshare", ["unshare", "-Urm", sys.executable, *sys.argv])


def table(rounds: list[tuple[list[Fault], list[str]]]) -> str:
    """Every fault, and whether all results of its stage are those of the undisturbed run."""
    rows = [("round", "stage", "fault", "moment", "how it ended", "same result")]
    for number, (happened, wrong) in enumerate(rounds, 1):
        for fault in happened:
            places = [f"{fault.stage}: ", *(f"differs or is left over: {out}" for out in outs(fault.stage))]
            bad = any(place in what for what in wrong for place in places)
            moment = f"{fault.moment}, {fault.share:.0%}"
            rows.append((str(number), fault.stage, fault.kind, moment, fault.ended[:100], "NO" if bad else "yes"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the moments and their order")
    parser.add_argument("--rounds", type=int, default=2, help="in each of them every stage is killed once")
    parser.add_argument("--only", choices=STAGES, help="disturb this stage alone")
    parser.add_argument("--side-by-side", type=int, default=2, help="clones that run at a time")
    chosen = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else what a script in the background starts ignores it
    small_disk, begun = may_mount(), time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="faults-"))
    os.environ["DVC_SITE_CACHE_DIR"] = str(scratch / "site-cache")
    print(f"in {scratch}", flush=True)
    for stage in ordered(scratch):
        STAGES[stage] = STAGES.pop(stage)
    order = [stage for stage in STAGES if chosen.only in (None, stage)]
    planned = [[], *plan(chosen.seed, chosen.rounds, order, small_disk)]
    with ThreadPoolExecutor(chosen.side_by_side) as pool:
        folders = [scratch / (f"round {number}" if number else "undisturbed") for number in range(len(planned))]
        (_, truth, failed), *rounds = pool.map(disturbed, folders, planned, [False] + [small_disk] * chosen.rounds)
    if failed:
        sys.exit("\n".join(failed))
    for _, found, wrong in rounds:
        names = sorted(name for name in found | truth if found.get(name) != truth.get(name)) if found else []
        wrong += [f"differs or is left over: {name}" for name in names]
    print(f"\n{table([(happened, wrong) for happened, _, wrong in rounds])}\n")
    if not small_disk:
        print("full disk: skipped, since this user cannot mount a small one here (unshare -Urm)")
    came = [fault.kind for happened, _, _ in rounds for fault in happened if fault.ended != Fault.ended]
    killed, full, second = (sum(kind in kinds for kind in came) for kinds in (KILLS, (FULL,), (SECOND,)))
    minutes = (time.monotonic() - begun) / 60
    print(f"{killed} kills, {full} full disks, {second} second runs in {minutes:.0f} min, seed {chosen.seed}")
    if wrong := [f"round {number}: {what}" for number, (_, _, some) in enumerate(rounds, 1) for what in some]:
        sys.exit("\n".join([*wrong, f"kept: {scratch}"]))
    print("every result is that of the undisturbed run, and nothing is left over")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
