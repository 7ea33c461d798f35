"""Run one notebook as one stage:  python -m xai_utils.pipeline STAGE

Parameters are checked first; the notebook's prints appear live; the executed copy is normalised and rendered to
reports/STAGE.html. A stage that fails keeps its executed notebook in .runs/ and removes what it had half written.
"""

import argparse
import ctypes
import html
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

# jsonschema imports it only to check IRIs, and it builds a grammar for 4 s in every process
sys.modules.setdefault("rfc3987_syntax", None)

import nbformat  # noqa: E402

from xai_utils import files  # noqa: E402
from xai_utils.pipeline import (  # noqa: E402
    cells,
    check,
    dependencies,
    lockfile,
    parameters,
    raw_data,
    recorded,
    report,
    terminal,
)
from xai_utils.pipeline.project import REPORTS, ROOT, begin_in_utf_8, enter_project  # noqa: E402

HEADLINE = ("insertion", "deletion", "faithfulness_offset", "average_drop", "box_average_precision", "part_truth")
FRONT_PAGE = REPORTS / "index.html"  # the pipeline writes it behind the stage whose output dvc.yaml says it is
STAGE = "XAI_STAGE"  # in the environment of a notebook that the pipeline runs: its stage
STRIPPED, RUNS, FAILED = Path("build/notebooks"), Path("build/runs"), Path(".runs")
LEFTOVERS = (Path("build"), Path(".checkpoints"), FAILED, REPORTS)  # where a killed stage may have left some


def begin(stage: str, names: dict):
    """Let the notebook of `stage` begin in the project's root; where a person runs it, in a place of its own.

    `names`: its `globals()`, where the parameters cell has run: by hand they are checked as params.yaml's are.
    """
    enter_project()
    if STAGE not in os.environ:
        from xai_utils.pipeline import by_hand

        by_hand.begin(stage, names)


def end():
    """What a notebook does last: where a person ran it, it says where the results are."""
    if STAGE not in os.environ:
        from xai_utils.pipeline import by_hand

        by_hand.end()


def findings(*sentences: str):
    """Show what came out, as a list: the last thing of a notebook, the first one of its page.

    `sentences` are Markdown without HTML, made from this run's numbers; empty ones are left out.
    """
    from IPython.display import Markdown, display

    text = "\n".join(f"- {html.escape(sentence, quote=False)}" for sentence in sentences if sentence)
    display(Markdown(f"{report.FINDINGS}\n\n{text}"), metadata={"findings": True})


def progress(text: str):
    """Show `text` live in the terminal and not in the report, which must not tell a resumed run from a whole one."""
    print(text, file=sys.stderr, flush=True)


def notebooks(folder=Path("notebooks")) -> dict[str, Path]:
    """Stage -> its notebook NN_STAGE.ipynb, in the order of the numbers."""
    found = {path.stem.split("_", 1)[1]: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    return {stage: found[stage] for stage in found if stage in parameters.STAGES}


def stripped(path: Path):
    """The notebook without outputs: what runs, and what stages depend on."""
    try:
        return report.strip(nbformat.read(path, as_version=4))
    except Exception as error:
        raise ValueError(f"{path} is no notebook ({error}); restore it with: git checkout {path}") from None


def depended_on(path: Path):
    """The notebook as a stage depends on it: without outputs, and of its parameters the names, not the values."""
    notebook = stripped(path)
    if (cell := report.parameters_cell(notebook)) is not None:
        cell.source = "\n".join(cells.names(cell.source))
    return notebook


def strip_all(source=Path("notebooks"), target=STRIPPED):
    """Copies that stages depend on, so that looking at a notebook, or trying other values in it, reruns nothing."""
    copies = {path.name: depended_on(path) for path in sorted(source.glob("*.ipynb"))}
    with files.new_folder(target) as folder:
        for name, notebook in copies.items():
            report.save(notebook, folder / name)


def run(stage: str) -> int:
    """Run `stage` on the parameters of params.yaml; the exit status."""
    try:
        check.require(stage)
        given = parameters.resolve(parameters.read(), stage)
        source = _notebook_of(stage)
        _check_parameters_cell(source, given)
        # whichever of the raw inputs changed, a run begins with this stage
        if stage == "prepare_data" and (problems := raw_data.problems(given["dataset"])):
            raise ValueError("\n".join(problems))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    live()
    return perform(stage, source, given, parameters.read()["scale"], parameters.read("dvc.yaml")["stages"])


def perform(stage: str, source: Path, given: dict, scale: str, described: dict) -> int:
    """Execute the notebook `source` on the parameters `given` and leave its page in reports/; the exit status.

    `described`: the stages of this run, as dvc.yaml has them.
    """
    executed = FAILED / f"{stage}.ipynb"
    for path in (FAILED, RUNS, REPORTS):
        try:
            with files.partial_folder(path / "writable"):
                pass
        except OSError as error:
            print(error, file=sys.stderr)
            return 1
    for path in LEFTOVERS:
        files.sweep(path)
    begun = time.monotonic()
    progress(terminal.announcement(stage, scale, RUNS, described))
    failure = execute(stage, source, executed, given)
    if failure is not None:
        remove_outputs(described[stage])
        print(f"\nstage {stage} failed{failure}\nits notebook as far as it ran: {executed}", file=sys.stderr)
        return 1
    result = report.normalise(nbformat.read(executed, as_version=4), root=Path.cwd())
    report.render(result, REPORTS / f"{stage}.html", pages(), recorded.about(scale))
    report.save(result, RUNS / f"{stage}.ipynb")
    if FRONT_PAGE.as_posix() in dependencies.outputs(described[stage]):
        from xai_utils.pipeline import front

        front.write(notebooks())
    executed.unlink()
    terminal.record(stage, scale, time.monotonic() - begun)
    return 0


def pages() -> list[tuple[str, str]]:
    """(file, title) of all reports, the index first, the glossary last: what each page links to."""
    from xai_utils.pipeline import glossary

    titles = [(f"{name}.html", report.title(stripped(path))) for name, path in notebooks().items()]
    return [("index.html", report.FRONT), *titles, (glossary.PAGE, glossary.TITLE)]


def _notebook_of(stage: str) -> Path:
    try:
        return notebooks()[stage]
    except KeyError:
        raise FileNotFoundError(f"notebooks/ holds no NN_{stage}.ipynb; restore it with git checkout") from None


def _check_parameters_cell(source: Path, given: dict):
    """papermill only warns of a parameter that the notebook does not have; a typo must not run with a default."""
    cell = report.parameters_cell(stripped(source))
    if cell is None:
        raise parameters.ParameterError(f"{source.name}: no cell has the tag 'parameters'")
    declared = set(cells.names(cell.source))
    if declared != set(given):
        raise parameters.ParameterError(
            f"{source.name}: its parameters cell must name exactly what params.yaml gives; "
            f"missing: {', '.join(sorted(set(given) - declared)) or 'none'}; "
            f"too many: {', '.join(sorted(declared - set(given))) or 'none'}"
        )


def execute(stage: str, source: Path, executed: Path, given: dict, **hooks) -> str | None:
    """Run the notebook `source` with the parameters `given` into `executed`; None, or what went wrong and where.

    `hooks`: nbclient's, such as on_cell_start(cell=, cell_index=), called when `executed` holds all cells before.
    """
    import papermill
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisPython(AsyncKernelManager):
        """The interpreter that runs this module runs the notebook, whatever kernels are installed."""

        def __init__(self, **options):  # no port, and no warning about TCP
            super().__init__(**options | {"transport": "ipc", "connection_file": str(sockets / "kernel.json")})

        @property
        def kernel_spec(self):
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python")

    os.environ[STAGE] = stage
    os.environ["PYTHONPATH"] = str(ROOT)  # this checkout's package, not an installed one
    os.environ["PYTHONUTF8"] = "1"  # as this process (`begin_in_utf_8`)
    for what in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):  # bytes; glibc keeps what a step of a training
        os.environ.setdefault(what, str(2**30))  # has freed for the next, which need not ask for new pages
    # PyTorch's threads (libgomp) look for work for 10 ms before they sleep, on the cores that onnxruntime's need
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        with files.scratch_folder("xai-kernel") as sockets:  # whose names may not be long
            papermill.execute_notebook(
                stripped(source),
                str(executed),
                given,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                record_timing=False,
                coalesce_streams=True,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
                kernel_manager_class=ThisPython,
                **hooks,
            )
    except papermill.PapermillExecutionError as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))  # without the colours
        lines = [line for line in plain.splitlines() if line.strip()]
        first = error.source.strip().splitlines()[0] if error.source.strip() else ""
        return f" in cell {error.cell_index} ({first} …):\n" + "\n".join([*lines[-12:], *_space(error.evalue)])
    except KeyboardInterrupt:
        return ": interrupted"
    except Exception as error:  # a kernel that was killed, a full disk: the same words and the same tidying
        return "\n".join([f": {type(error).__name__}: {error}", *_space(error)])
    return None


def _space(error) -> list[str]:
    """How much space there is, where an error tells that there is too little."""
    return [f"{reason}: {files.free_space(Path())}"] if (reason := files.full_disk(error)) else []


def remove_outputs(about: dict):
    """What a failed stage, as dvc.yaml describes it, had written so far is no result."""
    for path in map(Path, dependencies.outputs(about)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def live():
    """Print at once, also through a pipe, and end with the parent: what dvc ran must not write beside the next run."""
    sys.stdout.reconfigure(line_buffering=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def write_derived():
    """Write anew what follows from elsewhere: parameters cells from params.yaml, code dependencies into dvc.yaml."""
    for stage, path in notebooks().items():
        cells.write(path, stage)
    text = Path("dvc.yaml").read_text(encoding="utf-8")
    files.write_text(Path("dvc.yaml"), dependencies.written(text, notebooks()))


def headline(summary: dict) -> str:
    """What README.md shows of reports/metrics.json: what came out, and which method to use when, as Markdown."""
    from xai_utils.evaluation import guide

    found = "\n".join(f"- {sentence}" for sentence in guide.findings(summary))
    return "\n\n".join(filter(None, (found, guide.markdown(summary.get("guide", [])))))


def main():
    begin_in_utf_8()
    parser = argparse.ArgumentParser(prog="python -m xai_utils.pipeline", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("stage", nargs="?", help=", ".join(parameters.STAGES))
    what.add_argument("--check", action="store_true", help="check the parameters of all stages and run nothing")
    what.add_argument("--plan", action="store_true", help="measure for a minute what a run would cost, and run nothing")
    what.add_argument("--write", action="store_true", help="write parameters cells and code dependencies anew")
    what.add_argument("--strip", action="store_true", help=f"copy notebooks without outputs to {STRIPPED}")
    what.add_argument("--headlines", action="store_true", help="print the numbers of the last run that come first")
    what.add_argument(
        "--readme", action="store_true", help="put the last results, and kept runs beside them, into README.md"
    )
    told = "for --plan: other parameters, as dvc exp run -S takes them"
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help=told)
    chosen = parser.parse_args()
    try:
        enter_project()
        if "DVC_STAGE" in os.environ:
            lockfile.keep()
        if chosen.check:
            lockfile.mend()
            said = check.problems(notebook=lambda stage, given: _check_parameters_cell(_notebook_of(stage), given))
            sys.exit("\n".join(said) or None)
        elif chosen.plan:
            from xai_utils.pipeline import plan

            values = parameters.changed(parameters.read(), chosen.set)
            took = terminal.recorded().get(values["scale"], {})
            print("\n".join(plan.told(plan.plan(values, tell=progress), values, took)))
        elif chosen.write:
            write_derived()
        elif chosen.strip:
            raw_data.pull()
            strip_all()
        elif chosen.headlines:
            print("\n".join(terminal.headlines(REPORTS)))
        elif chosen.readme:
            from xai_utils.pipeline import beside

            results = headline(json.loads((REPORTS / "metrics.json").read_bytes()))
            report.update_readme(Path("README.md"), results=results, runs=beside.markdown(Path()))
        else:
            with files.held(FAILED):  # one stage at a time in a checkout
                sys.exit(run(chosen.stage))
    except OSError as error:  # no project, no space, no permission
        sys.exit(str(error))
