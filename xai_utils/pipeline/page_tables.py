"""The tables of a page, whatever made them, in one form: grouped, short numbers, heads that link to the glossary.

A notebook shows a `pandas.DataFrame`, or HTML of its own; `dressed` rewrites each table of the page:
- levels of an index before the last become lines between the rows, and the last, the row's name, stays in view;
- levels of the columns become groups in the head;
- a column of numbers stands right, with what it is sorted by; text stands left;
- of a measured number three digits are shown and the rest on hover, and so is a p in round brackets behind a number;
- an interval in square brackets goes below its number;
- names of methods and metrics link to the glossary; more than `LONG` rows are folded, but for the class main; a box
  scrolls, but for the class guide.
Tables of the class prose, which are read and not compared, get their box alone.
"""

import math
import re
from collections.abc import Callable
from html import escape
from itertools import groupby

from bs4 import BeautifulSoup, Tag

LONG = 20  # rows of an open table
DIGITS = 3
NUMBER = r"[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
BEGINS_WITH_NUMBER = re.compile(rf"\s*({NUMBER})(?![\w.])")
EMPTY = {"", "–", "NaN", "nan", "None", "<NA>"}


def dressed(page: str, link: Callable[[str], str | None] = lambda name: None) -> str:
    """`page`, HTML, with its tables in that form; `link(text)`: where the glossary tells of a head, None: nowhere."""
    return re.sub(r"<table\b.*?</table>", lambda found: _boxed(found[0], link), page, flags=re.DOTALL)


def _boxed(text: str, link) -> str:
    table = BeautifulSoup(text, "html.parser").table
    body = [row for part in table.find_all("tbody") for row in part.find_all("tr")]
    if {"prose", "sortable"} & set(table.get("class", ())) or not table.thead or not body:
        shown = text
    else:
        shown = _rewritten(table, body, link)
    classes = table.get("class", ())
    box = f'<div class="scroll{" whole" if "guide" in classes else ""}" tabindex="0">{shown}</div>'
    folded = len(body) > LONG and "main" not in classes
    return f"<details><summary>all {len(body)} rows</summary>{box}</details>" if folded else box


def _spread(rows) -> list[list[Tag]]:
    """The cells of each row, once for each column and row that they span."""
    found, below = [], {}
    for row in rows:
        cells, waiting = [], iter(row.find_all(["th", "td"]))
        while True:
            if below.get(len(cells), (None, 0))[1]:
                cell, left = below[len(cells)]
                below[len(cells)] = (cell, left - 1)
                cells.append(cell)
                continue
            if (cell := next(waiting, None)) is None:
                break
            for _ in range(int(cell.get("colspan", 1))):
                below[len(cells)] = (cell, int(cell.get("rowspan", 1)) - 1)
                cells.append(cell)
        found.append(cells)
    return found


def _rewritten(table: Tag, body, link) -> str:
    heads, rows = _spread(table.thead.find_all("tr")), _spread(body)
    levels = sum(1 for _ in _while_heads(rows[0])) or 1  # of the index
    width = max(map(len, rows))
    heads = [row + [row[-1]] * (width - len(row)) for row in heads if row]
    named = heads[-1][levels - 1].get_text(strip=True)  # the index's name, in a row of its own below the others
    if len(heads) > 1 and not any(cell.get_text(strip=True) for cell in heads[-1][levels:]):
        heads = heads[:-1]
    columns = [_Column(place, heads, rows) for place in range(levels, width)]
    lines = [
        f'<table class="sortable"><thead>{_groups(columns, link)}<tr><th data-first="ascending">{escape(named)}</th>'
    ]
    for column in columns:
        about = f' data-first="{column.first}"' + ("" if column.is_number else ' class="text"')
        lines.append(f"<th{about}>{column.head}{_told(column.name, link)}</th>")
    lines.append("</tr></thead>")
    for outer, part in groupby(rows, key=lambda row: [cell.get_text(" ", strip=True) for cell in row[: levels - 1]]):
        lines.append("<tbody>")
        if told := escape(", ".join(filter(None, outer))):
            lines.append(f'<tr class="group"><th colspan="{len(columns) + 1}"><span>{told}</span></th></tr>')
        for row in part:
            name = row[levels - 1].get_text(" ", strip=True)
            shown = _linked(row[levels - 1].decode_contents(), name, link)
            cells = "".join(column.cell(row[column.place]) for column in columns)
            lines.append(f'<tr><th data-value="{escape(name)}">{shown}</th>{cells}</tr>')
        lines.append("</tbody>")
    return "".join([*lines, "</table>"])


def _while_heads(row):
    for cell in row:
        if cell.name != "th":
            return
        yield cell


class _Column:
    """One column: its head and groups, whether it holds numbers, and its cells as they are shown."""

    def __init__(self, place, heads, rows):
        parts = list(dict.fromkeys(id(row[place]) for row in heads))
        cells = [next(row[place] for row in heads if id(row[place]) == part) for part in parts]
        cells = [cell for cell in cells if cell.get_text(strip=True)]
        self.place = place
        self.name = cells[-1].get_text(" ", strip=True) if cells else ""
        self.head = cells[-1].decode_contents() if cells else ""
        self.group = ", ".join(cell.get_text(" ", strip=True) for cell in cells[:-1])
        texts = [row[place].get_text(" ", strip=True) for row in rows if place < len(row)]
        numbers = [BEGINS_WITH_NUMBER.match(text) for text in texts if text not in EMPTY]
        self.is_number = bool(numbers) and all(numbers)
        self.first = "descending" if "↑" in self.name + self.group else "ascending"

    def cell(self, cell) -> str:
        text = cell.get_text(" ", strip=True)
        if not self.is_number:
            value = f' data-value="{escape(text)}"' if text else ""
            return f'<td class="text"{value}>{cell.decode_contents()}</td>'
        if text in EMPTY:
            return "<td>–</td>"
        known = cell.get("data-value") or BEGINS_WITH_NUMBER.match(text)[1].replace(",", "").replace("−", "-")
        shown, title = (cell.decode_contents(), "") if cell.find() else short(text)
        hover = f' title="{escape(title)}"' if title else ""
        return f'<td data-value="{float(known):.10g}"{hover}>{shown}</td>'


def _groups(columns, link) -> str:
    """The line above the heads, where there are groups of columns."""
    if not any(column.group for column in columns):
        return ""
    found = ((group, len(list(part))) for group, part in groupby(columns, key=lambda column: column.group))
    heads = "".join(f"<th colspan={n}>{escape(group)}{_told(group, link)}</th>" for group, n in found)
    return f'<tr class="groups"><th></th>{heads}</tr>'


def short(text: str) -> tuple[str, str]:
    """A cell as HTML: three digits of each number, an interval below; and the title: all digits and p, or "".

    >>> short("0.48812 [0.4409, 0.5], 8.4 × (p 0.002)")
    ('0.488, 8.4 ×<br><small>0.441 – 0.5</small>', '0.48812 [0.4409, 0.5], 8.4 × (p 0.002)')
    """
    told = re.sub(rf"\s*\(p [<> ]*{NUMBER}\)", "", text)
    told = re.sub(r"\d+\.\d+(?:e[-+]?\d+)?", lambda found: _rounded(found[0]), told)
    parts = re.fullmatch(rf"(.*?)\s*\[({NUMBER}), ({NUMBER})\](.*)", told)
    low_high = f"<br><small>{escape(f'{parts[2]} – {parts[3]}')}</small>" if parts else ""
    shown = f"{parts[1]}{parts[4]}" if parts else told
    changed = told != text
    return escape(shown) + low_high, text if changed else ""


def _rounded(number: str) -> str:
    """At most `DIGITS` significant digits of a decimal number; its zeros stay, and of what is tiny the power of ten."""
    value, decimals = float(number), len(number.split(".")[1])
    if "e" in number:
        return f"{value:.{DIGITS}g}"
    if value == 0:
        return f"{value:.{min(decimals, DIGITS)}f}"
    wanted = DIGITS - 1 - math.floor(math.log10(value))
    return f"{value:.{max(0, min(decimals, wanted))}f}" if value >= 10**-4 else f"{value:.2g}"


def _told(name: str, link) -> str:
    """A small link to what the glossary says of a head; it stands beside the button that sorts."""
    address = link(name)
    return f' <a class="about" href="{address}" title="what it is" aria-label="{escape(name)}: what it is">?</a>' if (
        address
    ) else ""  # fmt: skip


def _linked(shown: str, name: str, link) -> str:
    """The name of a row: it may break behind underscores, on a phone, and leads to the glossary."""
    address, told = link(name), shown.replace("_", "_<wbr>") if shown == escape(name) else shown
    return f'<a href="{address}">{told}</a>' if address and "<a " not in shown else told
