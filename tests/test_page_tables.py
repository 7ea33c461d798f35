"""Tables of pages: whatever made one, its name and head stay, numbers are short, and nothing is lost."""

import pandas
import pytest

from xai_utils.pipeline.page_tables import LONG, dressed, short


@pytest.mark.parametrize(
    ("text", "shown", "title"),
    [
        ("0.99483", "0.995", "0.99483"),
        ("116.25", "116", "116.25"),
        ("0.500", "0.500", ""),
        ("1,234,567", "1,234,567", ""),
        ("0.00001", "1e-05", "0.00001"),
        ("+0.051 (p 0.0031) ✓", "+0.051 ✓", "+0.051 (p 0.0031) ✓"),
        ("97.25 [88.12, 99.00] ▲", "97.2 ▲<br><small>88.1 – 99.0</small>", "97.25 [88.12, 99.00] ▲"),
        ("0.5 <b>", "0.5 &lt;b&gt;", ""),
    ],
)
def test_a_cell_shows_three_digits_and_tells_the_rest_on_hover(text, shown, title):
    """Measured numbers are rounded, counts are not, an interval stands below, a p is in the title alone."""
    assert short(text) == (shown, title)


def test_levels_of_an_index_become_lines_and_the_last_one_stays_in_view():
    """Of (space, layer, method) the method is the row's head; numbers carry a sorting key, text stands left."""
    index = pandas.MultiIndex.from_tuples(
        [("black", "layer4", "amg"), ("black", "layer4", "rise"), ("mean", "layer4", "amg")],
        names=["space", "layer", "method"],
    )
    columns = pandas.MultiIndex.from_tuples([("drop ↓", "here"), ("drop ↓", "paper"), ("increase ↑", "here")])
    frame = pandas.DataFrame([["1.50 [1.00, 2.00]", 3.25, "so"], ["0.5", None, "and"], ["-2", 1, "so"]], index, columns)
    page = dressed(frame.to_html(border=0), {"amg": "glossary.html#method-amg"}.get)
    assert page.count("<tbody>") == page.count('<tr class="group">') == 2
    assert "<span>black, layer4</span>" in page
    assert page.count('<th data-value="amg"><a href="glossary.html#method-amg">amg</a></th>') == 2
    assert '<tr class="groups"><th></th><th colspan=2>drop ↓</th><th colspan=1>increase ↑</th></tr>' in page
    assert '<th data-first="ascending">method</th>' in page
    assert '<td data-value="1.5">1.50<br><small>1.00 – 2.00</small></td>' in page
    assert "<td>–</td>" in page
    assert '<td class="text" data-value="and">and</td>' in page
    assert page.startswith('<div class="scroll"')


def test_a_number_that_a_table_gives_is_sorted_by():
    """Two cells that show the same digits are in the order of what their table says that they are."""
    rows = '<tr><th>a</th><td data-value="0.1234">0.123</td></tr><tr><th>b</th><td>1,234.5</td></tr>'
    page = dressed(f"<table><thead><tr><th></th><th>n</th></tr></thead><tbody>{rows}</tbody></table>")
    assert '<td data-value="0.1234">0.123</td>' in page
    assert 'data-value="1234.5"' in page


def test_what_is_written_in_cells_and_heads_stays_text():
    """Names that look like HTML pass through as pandas escaped them, in head, row, cell and sorting key."""
    hostile = "<img src=x>"
    frame = pandas.DataFrame({hostile: [hostile, "1"], "n": [1, 2]}, index=[hostile, '" onload="x'])
    page = dressed(frame.to_html(border=0))
    assert "<img" not in page
    assert page.count("&lt;img src=x&gt;") == 2 + 1 + 2  # row and cell each with their key
    assert 'data-value="&quot; onload=&quot;x"' in page


def test_long_tables_are_folded_and_prose_is_left_as_it_is():
    """More than LONG rows stand in a fold that says how many; tables of the class prose get their box alone."""
    frame = pandas.DataFrame({"n": range(LONG + 1)})
    page = dressed(frame.to_html(border=0))
    assert page.startswith(f"<details><summary>all {LONG + 1} rows</summary>")
    assert not dressed(frame.to_html(border=0, classes="main")).startswith("<details>")
    prose = '<table class="prose"><tbody><tr><td>0.123456</td></tr></tbody></table>'
    assert prose in dressed(f"<p>before</p>{prose}")
