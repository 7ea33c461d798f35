"""The page of the site on which the scores of single images are explored: two methods against each other, and maps.

Made of what the stages explain and evaluate wrote: reports/maps (sheets of small pictures) and reports/scores.
"""

import csv
import json
from pathlib import Path

FILE, TITLE = "explore.html", "Scores of single images"
SHEETS, RECORD, SCORES = "maps", "maps/sheets.json", "scores"
FIRST = ("insertion", "akd", "rise")  # the metric and the two methods that a page opens with, where they are there


def values(reports: Path) -> dict | None:
    """What the page shows, as JSON holds it; None where the reports have no sheets, or no scores of their images.

    images: per tile the number of the image, its class; metrics: name -> label, arrow, unit; scores: row -> metric ->
    a number for each tile, None where there is none; sheets: row -> its file.
    """
    if not (reports / RECORD).is_file() or not (reports / SCORES).is_dir():
        return None
    sheets = json.loads((reports / RECORD).read_text(encoding="utf-8"))
    metrics = json.loads((reports / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    scores = {}
    for row in sheets["rows"]:
        file = reports / SCORES / f"{Path(sheets['rows'][row]).stem}.csv"
        if not file.is_file():
            continue
        with file.open(encoding="utf-8", newline="") as lines:
            found = {int(line["image"]): line for line in csv.DictReader(lines)}
        numbers = [found.get(image, {}) for image in sheets["images"]]
        scores[row] = {name: [_number(line.get(name)) for line in numbers] for name in metrics}
    if len(scores) < 2:
        return None
    first, *two = FIRST
    two = [name for name in (*two, *scores) if name in scores]
    return {
        "images": [
            {"image": image, "class": name} for image, name in zip(sheets["images"], sheets["classes"], strict=True)
        ],
        "side": sheets["side"],
        "columns": sheets["columns"],
        "metrics": {
            name: {part: about[part] for part in ("label", "arrow", "unit")} for name, about in metrics.items()
        },
        "scores": scores,
        "sheets": {row: f"{SHEETS}/{sheets['rows'][row]}" for row in scores},
        "pictures": f"{SHEETS}/images.jpg",
        "first": {"metric": first if first in metrics else next(iter(metrics)), "across": two[1], "up": two[0]},
    }


def _number(text: str | None) -> float | None:
    value = float(text) if text else float("nan")
    return value if value == value else None
