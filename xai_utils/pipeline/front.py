"""The front page of the reports: made by the pipeline when the last stage has left its pictures."""

import json
from pathlib import Path

from xai_utils.evaluation import maps, tables, trust
from xai_utils.pipeline import report
from xai_utils.pipeline.project import REPORTS

PICTURE = REPORTS / "figures" / "methods.jpg"


def write(notebooks: dict[str, Path], about: str | None = None):
    """Write reports/index.html from what the stages evaluate and figures have left; `notebooks`: of all stages.

    `about`: of what run it is, a sentence; None: the network, the number of images and the data.
    """
    summary, made = json.loads((REPORTS / "metrics.json").read_bytes()), maps.load("build/maps")
    if about is None:
        network, data = made.run["target"].split()[0], json.loads(Path("build/data/dataset.json").read_bytes())["name"]
        about = f"The network is {network}, explained on {len(made.indices)} held-out images of {data}."
    advice = trust.prose(summary["trust"]["sentences"]) if summary.get("trust") else ""
    told = {"table": tables.html(summary), "protocol": summary["protocol"], "guide": summary["guide"]}
    report.write_index(REPORTS, notebooks, PICTURE, about=about, advice=advice, **told)
