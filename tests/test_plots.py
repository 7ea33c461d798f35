"""Pictures: linear overlays, stable files, captions that cannot inject HTML."""

import io

import numpy as np
import pandas
import pytest
from PIL import Image

from xai_utils import plots


def test_an_overlay_is_linear_and_a_constant_map_is_the_colour_of_zero():
    """opacity * colour + (1 - opacity) * image, the map stretched from its own minimum to its own maximum."""
    from matplotlib import colormaps

    image = np.full((3, 1, 3), 0.5)
    drawn = plots.overlay(image, np.array([[-1.0, 0.0, 3.0]]), opacity=0.4, percentile=100)
    for column, unit in enumerate((0.0, 0.25, 1.0)):
        expected = 0.4 * np.array(colormaps["viridis"](unit)[:3]) + 0.6 * 0.5
        np.testing.assert_allclose(drawn[0, column], expected, atol=1e-12)
    flat = plots.overlay(image, np.full((1, 3), 7.0), opacity=1)
    np.testing.assert_allclose(flat[0, 0], colormaps["viridis"](0)[:3])


def test_uint8_and_float_images_show_the_same():
    """255 and 1.0 are both white, and channels come last."""
    image = np.zeros((3, 2, 1), dtype=np.uint8)
    image[0, 1] = 255
    assert plots.pixels(image)[1, 0].tolist() == [1, 0, 0]
    assert plots.pixels(image / 255)[1, 0].tolist() == [1, 0, 0]


def test_the_same_figure_is_the_same_file(tmp_path):
    """Two drawings of equal data are equal bytes, and no library version stands in them."""
    files = []
    for name in ("a.png", "b.png", "c.jpg"):
        random = np.random.default_rng(0)
        images, maps = random.random((2, 3, 8, 8)), {"grad_cam_plus_plus": random.random((2, 8, 8))}
        plots.save(plots.method_grid(images, maps, ["one", "two"]), tmp_path / "new" / name)
        files.append((tmp_path / "new" / name).read_bytes())
    assert files[0] == files[1]
    assert b"atplotlib" not in files[0]
    png, jpeg = (Image.open(io.BytesIO(file)) for file in files[1:])
    assert (png.format, jpeg.format) == ("PNG", "JPEG")
    assert png.size == jpeg.size
    assert (
        np.abs(np.asarray(png, dtype=float) - np.asarray(jpeg, dtype=float)).mean() < 8
    )  # noise is what JPEG keeps worst


def test_signed_maps_are_as_far_below_0_as_above():
    """-2, 0 and 1 of a signed map are the ends' blue, white, and half way to red; a grid tells signed from others."""
    from matplotlib import colormaps

    image = np.zeros((3, 1, 3))
    drawn = plots.overlay(image, np.array([[-2.0, 0.0, 1.0]]), opacity=1, percentile=100, signed=True)
    for column, unit in enumerate((0, 0.5, 0.75)):
        np.testing.assert_allclose(drawn[0, column], colormaps[plots.DIVERGING](unit)[:3])
    images, maps = np.zeros((1, 3, 4, 4)), {"lime": np.full((1, 4, 4), -1.0), "smoe": np.ones((1, 4, 4))}
    labels = [axis.get_xlabel() for axis in plots.method_grid(images, maps, ["one"]).axes]
    assert [label for label in labels if "(lime)" in label and "99th percentile" in label]


def test_more_methods_than_fit_go_on_below():
    """Two images, one method more than COLUMNS: two blocks of rows, each with its own titles, within the WIDTH."""
    maps = {f"m{number}": np.zeros((2, 4, 4)) for number in range(plots.COLUMNS + 1)}
    figure = plots.method_grid(np.zeros((2, 3, 4, 4)), maps, ["one", "two"])
    titles = [axis.get_title() for axis in figure.axes]
    first, second = (titles[start * (plots.COLUMNS + 1) :][: plots.COLUMNS + 1] for start in (0, 2))
    assert first == ["image", *list(maps)[:-1]]
    assert second[:3] == ["image", f"m{plots.COLUMNS}", ""]
    assert figure.get_figwidth() <= plots.WIDTH + 1e-9


def test_curves_state_the_area_that_the_metric_gives():
    """A panel a method in colour, the others grey; the area of a curve 0, 0.5, 1 is 0.5 by any number of points."""
    curves = {"inserted": {"akd": np.array([0.0, 0.5, 1.0]), "amg": np.linspace(0, 1, 5), "rise": np.ones(3)}}
    akd, amg = plots.curve_panels(curves).axes
    assert [axis.get_title() for axis in (akd, amg)] == ["akd  0.500", "amg  0.500"]
    assert [line.get_color() for line in akd.lines] == [plots.GREY, plots.GREY, plots.HIGHLIGHTED["akd"]]
    [other] = plots.curve_panels({"inserted": {"rise": np.ones(3)}}).axes  # none of the papers' methods ran
    assert other.get_title() == "rise  1.000"


def test_controls_are_grey_and_methods_are_not():
    """Colours tell methods from controls, in every figure alike."""
    colours = plots.method_colours(["grad_cam", "random"], ["random", "sobel_edges"])
    assert len(set(colours["random"])) == 1
    assert len(set(colours["grad_cam"][:3])) == 3
    assert set(colours) == {"grad_cam", "random", "sobel_edges"}


def test_captions_are_escaped(monkeypatch):
    """A caption with a tag in it is shown as text under the figure."""
    from IPython import display

    shown = []
    monkeypatch.setattr(display, "display", shown.append)
    plots.show(plots.image_grid([[np.zeros((4, 4, 3))]]), "a <b>bold</b> class")
    assert shown[1].data == "<figcaption>a &lt;b&gt;bold&lt;/b&gt; class</figcaption>"


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_what_is_saved_is_what_is_shown(monkeypatch, tmp_path, name):
    """With a path, the picture in the notebook is the file to the last byte, so that a page can take it from there."""
    from IPython import display

    shown, images = [], np.random.default_rng(0).random((2, 3, 8, 8))
    monkeypatch.setattr(display, "display", shown.append)
    grid = plots.method_grid(images, {"grad_cam_plus_plus": images[:, 0]}, ["one", "two"])
    plots.show(grid, "two images", tmp_path / "new" / name)
    assert shown[0].data == (tmp_path / "new" / name).read_bytes()
    assert Image.open(io.BytesIO(shown[0].data)).format == shown[0].format.upper()


def test_names_of_classes_are_no_formulas():
    """Dollar signs in a name are drawn, not read as mathematics (which would stop the stage)."""
    name = r"$\\nothing$ <b>"
    figure = plots.image_grid([[np.zeros((4, 4, 3))]], row_titles=[name], column_titles=[name])
    plots.rendered(figure)
    axis = figure.axes[0]
    assert [axis.get_ylabel(), axis.get_title()] == [name, name]


def test_history_is_drawn_with_what_it_has():
    """Without held-out images there is only the training's line."""
    rows = [
        {"epoch": 1, "train_loss": 2.0, "train_accuracy": 0.1},
        {"epoch": 2, "train_loss": 1.0, "train_accuracy": 0.5},
    ]
    loss, accuracy = plots.training_curves(rows).axes
    assert [len(axis.lines) for axis in (loss, accuracy)] == [1, 1]
    assert loss.lines[0].get_ydata().tolist() == [2.0, 1.0]


def summary(**scores):
    return {name: {"passes": passes, "insertion": {"mean": mean}} for name, (passes, mean) in scores.items()}


def test_a_matrix_shades_from_worst_to_best():
    """The best cell is the darkest and starred, the worst the palest; a metric without direction stays white."""
    table = summary(good=(1, 0.9), fair=(1, 0.5), bad=(0, 0.1))
    metrics = {"insertion": {"label": "Insertion", "arrow": "↑"}}
    standing = {"insertion": {"good": "best", "fair": "level", "bad": ""}}
    figure = plots.matrix(table, metrics, standing=standing, digits={"insertion": 2})
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.90 ★", "0.50 ≈", "0.10"]
    brightness = [sum(patch.get_facecolor()[:3]) for patch in figure.axes[0].patches]
    assert brightness[0] < brightness[1] < brightness[2]
    plain = plots.matrix(table, {"insertion": {"label": "x", "arrow": ""}}, standing={}, digits={"insertion": 2})
    assert all(patch.get_facecolor() == (1, 1, 1, 1) for patch in plain.axes[0].patches)


def test_agreement_is_red_and_contradiction_blue():
    """Each cell tells its correlation; none is written as minus nothing."""
    names = ["a", "b"]
    figure = plots.agreement(pandas.DataFrame([[1, -0.7], [-0.001, 1]], index=names, columns=names))
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.texts] == ["1.00", "−.70", ".00", "1.00"]
    (mesh,) = axis.collections
    colours = mesh.to_rgba(mesh.get_array().ravel())
    assert colours[0][0] > colours[0][2]
    assert colours[1][2] > colours[1][0]


def test_the_front_is_what_no_cheaper_method_reaches():
    """Of four methods the dear one that a cheaper one beats is not named; lower is better for a falling arrow."""
    table = summary(free=(0, 0.2), cheap=(1, 0.8), dear=(100, 0.7), best=(500, 0.9))
    for arrow, named in (("↑", ["free", "cheap", "best"]), ("↓", ["free"])):
        figure = plots.cost_and_quality(table, {"insertion": {"label": "i", "arrow": arrow}})
        assert sorted(text.get_text() for text in figure.axes[0].texts) == sorted(named)


def test_names_in_the_picture_of_cost_do_not_overlap():
    """Eight methods of nearly one score, those of the papers among them: their names keep their distance."""
    table = summary(
        **{name: (place + 1, 0.5 + place / 1e4) for place, name in enumerate([*plots.HIGHLIGHTED, *"abcd"])}
    )
    figure = plots.cost_and_quality(table, {"insertion": {"label": "i", "arrow": "↑"}})
    heights = sorted(text.xyann[1] for text in figure.axes[0].texts)
    assert len(heights) == 8
    assert min(np.diff(heights)) > 0.08
    assert 0 <= heights[0] < heights[-1] <= 1


def test_a_name_in_any_script_is_drawn_or_told_under_the_figure(monkeypatch):
    """No installed font has the letters of a class: it is a number, and the caption tells the name; no box is drawn.

    With a font that has them, the name is drawn as it is.
    """
    from IPython import display

    name, shown = "翠鳥", []
    monkeypatch.setattr(display, "display", shown.append)
    monkeypatch.setattr(plots, "families", lambda text: None if name in text else [plots.FONT])
    figure = plots.image_grid([[np.zeros((4, 4, 3))]] * 2, row_titles=[name, "Graureiher ä"])
    plots.show(figure, "Two birds.")
    assert [axis.get_ylabel() for axis in figure.axes] == ["[1]", "Graureiher ä"]
    assert "Two birds. [1]: 翠鳥." in shown[1].data
    monkeypatch.setattr(plots, "families", lambda text: [plots.FONT, "A font"])
    figure = plots.image_grid([[np.zeros((4, 4, 3))]], row_titles=[name])
    assert plots.legible(figure) == {}
    assert figure.axes[0].yaxis.label.get_fontfamily() == [plots.FONT, "A font"]


def test_fonts_are_asked_for_their_letters():
    """Latin with accents is in the font that comes with matplotlib; a letter of no script is in none."""
    assert plots.families("Graureiher ä → ★") == [plots.FONT]
    assert plots.families("\U000f0000") is None


def test_a_frame_encloses_the_pixels_of_its_mask():
    """Rows 2 and 3, columns 0 to 4 of each picture in the row: half a pixel around their centres; none unasked."""
    images, frames = np.zeros((2, 3, 6, 8)), np.zeros((2, 6, 8), dtype=bool)
    frames[:, 2:4, :5] = True
    maps = {"grad_cam": images[:, 0]}
    for asked, count in ((frames, 4), (None, 0)):
        boxes = [box for axis in plots.method_grid(images, maps, "ab", frames=asked).axes for box in axis.patches]
        assert len(boxes) == count
        assert all(box.get_bbox().bounds == (-0.5, 1.5, 5, 2) for box in boxes)


def test_colours_end_at_a_percentile():
    """One pixel that exceeds all others by far leaves them their colours; few pixels with any value keep theirs."""
    saliency = np.arange(100, dtype=float).reshape(10, 10)
    saliency[9, 9] = 1e6
    black = np.zeros((3, 10, 10))
    clipped = plots.overlay(black, saliency, opacity=1, percentile=99)
    unclipped = plots.overlay(black, np.minimum(saliency, np.percentile(saliency, 99)), opacity=1, percentile=100)
    np.testing.assert_allclose(clipped, unclipped)
    lone = np.zeros((20, 20))
    lone[0, 0] = 1
    shown = plots.overlay(np.zeros((3, 20, 20)), lone, opacity=1, percentile=99)
    assert (shown[0, 0] != shown[1, 1]).any()
