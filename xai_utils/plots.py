"""Pictures. Only here are maps normalised for display; every function returns a matplotlib Figure.

`show` puts a figure and its caption into a notebook, `save` writes it to a file; both give the same bytes on each run.
"""

import html
import io
from functools import cache
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps, font_manager, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text
from PIL import Image

from xai_utils.files import write_atomically
from xai_utils.images import keep_top, perturb, rank_pixels, unit_range

DPI = 120
PERCENTILE = 99  # of a map, where its colours end in every picture: the few largest pixels would leave the rest dark
DIVERGING = "RdBu_r"  # colours of signed maps: red for the class, blue against it, white 0
WIDTH = 8.6  # inches, 826 pixels: what a README shows without making it smaller
COLUMNS = 8  # maps side by side in a grid of methods; more begin a new block of rows
FONT = "DejaVu Sans"  # comes with matplotlib
HIGHLIGHTED = {"akd": "tab:blue", "dgle_cf": "tab:orange", "fastcam": "tab:green", "amg": "tab:red"}  # the papers' own
GREY, DARK_GREY = "0.75", "0.45"  # of all other methods, and of their names
KINDS = {".png": "png", ".jpg": "jpeg"}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


@cache
def _letters(file: str) -> frozenset:
    return frozenset(FT2Font(file).get_charmap())


@cache
def families(text: str) -> list[str] | None:
    """The installed fonts that draw all of `text` together, `FONT` first; None where a letter is in none of them."""
    missing = {ord(letter) for letter in text if not letter.isspace()} - _letters(font_manager.findfont(FONT))
    found = [FONT]
    known = sorted(font_manager.fontManager.ttflist, key=lambda font: (font.style, font.weight != 400, font.fname))
    for font in known if missing else ():
        if "Last Resort" not in font.name and missing & _letters(font.fname):  # that one draws boxes
            found.append(font.name)
            missing -= _letters(font.fname)
    return None if missing else found


def legible(figure: Figure) -> dict[str, str]:
    """Give each text of a figure fonts that have its letters; one that no font has becomes a number: number -> text.

    A class may be called in any script. Done once, a second time changes nothing.
    """
    replaced = {}
    for text in figure.findobj(Text):
        if text.get_text().isascii():
            continue
        if (found := families(text.get_text())) is None:
            number = replaced.setdefault(" ".join(text.get_text().split()), f"[{len(replaced) + 1}]")
            text.set_text(number)
        elif len(found) > 1:
            text.set_fontfamily(found)
    return {number: text for text, number in replaced.items()}


def rendered(figure: Figure) -> Image.Image:
    """The figure as a picture. Its layout is solved once, where `savefig` solves it twice: most of the time it takes.

    Drawing a figure again moves its layout a little further, so one figure is to be drawn once.
    """
    legible(figure)
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def encoded(picture: Image.Image, kind: str) -> bytes:
    """A picture as a "png" or "jpeg" file without library versions in it: equal pictures, equal bytes."""
    file = io.BytesIO()
    picture.save(file, format=kind, **({"optimize": True} if kind == "png" else {"quality": 70, "subsampling": 1}))
    return file.getvalue()


def _smaller_kind(picture: Image.Image) -> str:
    """Is it smaller as "png" (curves) or as "jpeg" (photographs)? The PNG is not optimised, being slow."""
    plain = io.BytesIO()
    picture.save(plain, format="png")
    return "jpeg" if len(encoded(picture, "jpeg")) < plain.tell() else "png"


def show(figure: Figure, caption: str, path=None):
    """Display `figure` in a notebook with `caption` under it (which is its alternative text, too).

    As PNG or JPEG, whichever is smaller: PNG for curves, JPEG for photographs. With a `path` it is saved there and
    shown as that very file, which a report then need not hold a second time. Names that no installed font can draw are
    numbers in the figure, and the caption tells them.
    """
    from IPython import display

    caption = " ".join([caption, *(f"{number}: {name}." for number, name in legible(figure).items())])
    if path is None:
        picture = rendered(figure)
        kind = _smaller_kind(picture)
        content = encoded(picture, kind)
    else:
        save(figure, path)
        kind, content = KINDS[Path(path).suffix], Path(path).read_bytes()
    width = int(figure.get_figwidth() * 96)
    display.display(display.Image(content, format=kind, width=width, metadata={"alt": caption}))
    display.display(display.HTML(f"<figcaption>{html.escape(caption)}</figcaption>"))


def save(figure: Figure, path):
    """Write `figure` to `path`, as PNG or JPEG by its suffix (.png, .jpg)."""
    content = encoded(rendered(figure), KINDS[Path(path).suffix])
    write_atomically(path, lambda partial: partial.write_bytes(content), size=len(content))


def pixels(image) -> np.ndarray:
    """A (3, H, W) image, uint8 or float in [0, 1], as (H, W, 3) float in [0, 1]."""
    image = np.asarray(image)
    return np.moveaxis(image, 0, -1) / (255.0 if image.dtype == np.uint8 else 1.0)


def overlay(image, saliency, *, opacity=0.55, colour_map="viridis", percentile=PERCENTILE, signed=False) -> np.ndarray:
    """`saliency` (H, W), stretched and coloured, laid linearly over `image`: (H, W, 3) in [0, 1].

    From its minimum to its `percentile`: what exceeds that is drawn as that, for the few largest values of a gradient
    would leave all others dark. A `signed` map is drawn in DIVERGING colours, as far below 0 as above. A constant map
    has no contrast to show: it is drawn in the colour of 0.
    """
    saliency = np.asarray(saliency, dtype=np.float64)
    size = np.abs(saliency) if signed else saliency
    high = np.percentile(size, percentile)
    low = 0.0 if signed else saliency.min()
    high = high if high > low else size.max()  # fewer pixels than that share have any value
    unit = np.clip((saliency - low) / (high - low), -1, 1) if high > low else np.zeros_like(saliency)
    coloured = colormaps[DIVERGING]((unit + 1) / 2) if signed else colormaps[colour_map](unit)
    return opacity * coloured[..., :3] + (1 - opacity) * pixels(image)


def image_grid(rows, *, row_titles=None, column_titles=None, cell=1.35, bars=(), key=None, every=None) -> Figure:
    """`rows`: a list of lists of (H, W, 3) pictures, or None for an empty cell; not wider than WIDTH.

    `cell`: inches of a picture, at most; `bars`: label -> colour map, drawn as colour bars from low to high below;
    `key`: name -> colour, a legend below;
    `every`: after so many rows the next titles of columns begin, `column_titles` then being a list of lists.
    """
    count, titled = max(len(row) for row in rows), column_titles is not None
    names = [_wrapped(str(title), 16) for title in row_titles or ()]
    margin = 0.075 * max((len(line) for name in names for line in name.split("\n")), default=0)
    cell = min(cell, (WIDTH - margin) / count)
    heads = column_titles if every else [column_titles]
    height = cell * len(rows) + (0.32 * len(heads) if titled else 0) + (0.55 if bars else 0) + (0.25 if key else 0)
    with rc_context(STYLE):
        figure = Figure(figsize=(cell * count + margin, height))
        axes = figure.subplots(len(rows), count, squeeze=False)
        for r, row in enumerate(rows):
            for c in range(count):
                axis = axes[r, c]
                axis.set(xticks=[], yticks=[])
                axis.grid(False)
                axis.spines[:].set_visible(False)
                if c < len(row) and row[c] is not None:
                    axis.imshow(np.clip(row[c], 0, 1), interpolation="nearest")
                block, first = divmod(r, every) if every else (0, r)
                if titled and first == 0 and c < len(heads[block]):
                    axis.set_title(heads[block][c], fontsize=8, parse_math=False)
            if names:
                label = {"rotation": 0, "ha": "right", "va": "center", "fontsize": 8}
                axes[r, 0].set_ylabel(names[r], **label, parse_math=False)  # a class may be called $100
        for label, colour_map in dict(bars).items():
            mappable = ScalarMappable(Normalize(-1 if colour_map == DIVERGING else 0, 1), colour_map)
            bar = figure.colorbar(mappable, ax=list(axes.flat), location="bottom", shrink=0.4, aspect=50, pad=0.01)
            ticks = {-1: "against", 0: "0", 1: "for the class"} if colour_map == DIVERGING else {0: "least", 1: "most"}
            bar.set_ticks(list(ticks), labels=list(ticks.values()), fontsize=7.5)
            bar.set_label(label, fontsize=7.5)
            bar.outline.set_visible(False)
        if key:
            handles = [Patch(color=colour, label=name) for name, colour in key.items()]
            figure.legend(handles=handles, loc="outside lower center", ncols=len(key), fontsize=7.5)
        figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    return figure


def method_grid(images, maps: dict, row_titles, *, frames=None, colour_map="viridis", **drawn) -> Figure:
    """One row per image: the image, then each method's map over it. `maps`: method -> (N, H, W).

    More than COLUMNS methods go on in a block of rows below. A method whose maps reach below 0 is drawn as signed.
    `frames` (N, H, W), bool: a red frame around what is true, a rectangle, in every picture of a row. `drawn`: options
    of `overlay`.
    """
    signed = {name for name, found in maps.items() if (np.asarray(found) < 0).any()}
    blocks = [list(maps)[start : start + COLUMNS] for start in range(0, len(maps), COLUMNS)]
    rows, titles = [], []
    for block in blocks:
        titles.append(["image", *(name.replace("_", " ").replace(" plus plus", "++") for name in block)])
        for i, image in enumerate(images):
            laid = (overlay(image, maps[m][i], colour_map=colour_map, signed=m in signed, **drawn) for m in block)
            rows.append([pixels(image), *laid])
    ends = f"{drawn.get('percentile', PERCENTILE)}th percentile of each map and above"
    bars = {f"from the minimum to the {ends}": colour_map} if len(signed) < len(maps) else {}
    bars |= {f"signed maps ({', '.join(sorted(signed))}), to the {ends}": DIVERGING} if signed else {}
    titles = [[_wrapped(title) for title in block] for block in titles]
    names = list(row_titles) * len(blocks)
    figure = image_grid(rows, row_titles=names, column_titles=titles, bars=bars, every=len(images))
    width = max(map(len, titles))
    for place, axis in enumerate(figure.axes[: width * len(rows)] if frames is not None else ()):
        row, column = divmod(place, width)
        if column < len(titles[row // len(images)]):
            y, x = (np.flatnonzero(np.asarray(frames[row % len(images)]).any(across)) for across in (1, 0))
            _frame(axis, x[0], y[0], x[-1] + 1, y[-1] + 1)
    return figure


def _frame(axis, x0, y0, x1, y1):
    """A red box around half-open pixels; their centres are drawn at whole numbers: it begins half a pixel earlier."""
    axis.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, color="red", lw=1))


def map_tiles(image, maps: dict, *, share=0.1, opacity=0.55, colour_map="viridis") -> Figure:
    """FastCAM's Figure 6: the image beside its `maps` (name -> (H, W)), each as heat map, overlay and two masks.

    The soft mask multiplies the pixels by the map in [0, 1]; the hard one keeps the most salient `share` of them.
    """
    image = torch.as_tensor(np.asarray(image))
    image = image.double() / 255 if image.dtype == torch.uint8 else image.double()
    columns = [[pixels(image)] + [None] * 3]
    for saliency in maps.values():
        saliency = torch.as_tensor(np.asarray(saliency)).double()[None]  # (1, H, W)
        top = keep_top(rank_pixels(saliency), round(share * saliency.numel()))
        masks = [perturb(image[None], keep, torch.zeros_like(image[None]))[0] for keep in (unit_range(saliency), top)]
        coloured = [overlay(image, saliency[0], opacity=o, colour_map=colour_map) for o in (1, opacity)]
        columns.append([*coloured, *map(pixels, masks)])
    titles = ["image", *(_wrapped(name.replace("_", " ")) for name in maps)]
    kinds = ["heat map", "overlay", "soft mask", f"top {share:.0%}"]
    return image_grid(list(zip(*columns, strict=True)), row_titles=kinds, column_titles=titles, cell=0.9)


def annotation_grid(split, indices, part_names) -> Figure:
    """Images with their boxes; where the split has part masks, a second row with each part in its own colour."""
    indices = np.asarray(indices)
    rows = [[pixels(split.images[i]) for i in indices]]
    if split.parts is not None:
        palette = np.vstack([[0.93, 0.93, 0.93], colormaps["tab10"](np.arange(len(part_names)) % 10)[:, :3]])
        rows.append([palette[split.parts[i]] for i in indices])
    figure = image_grid(rows)
    with rc_context(STYLE):
        for axis, i in zip(figure.axes, indices, strict=False):
            for box in split.boxes[i]:
                _frame(axis, *box)
        if split.parts is not None:
            handles = [Patch(color=palette[number], label=name) for number, name in enumerate(part_names, start=1)]
            figure.legend(handles=handles, loc="outside lower center", ncols=len(part_names), fontsize=7.5)
    return figure


def training_curves(history: list[dict]) -> Figure:
    """What training logged, one dict an epoch, against the epoch: losses, and beside them all shares in [0, 1]."""
    epochs = [row["epoch"] for row in history]
    losses = [key for key in history[0] if key.endswith(("_loss", "_divergence"))]
    others = ("epoch", "learning_rate", "gradient_norm", "validation_skewness")
    shares = [key for key in history[0] if key not in (*losses, *others)]
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 2.8))
        left, right = figure.subplots(1, 2)
        for keys, axis in ((losses, left), (shares, right)):
            for key in keys:
                axis.plot(epochs, [row[key] for row in history], label=key.replace("_", " "), marker=".")
            axis.set(xlabel="epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.legend(fontsize=7)
        top = 1.15 * max(row["train_loss"] for row in history)  # held-out losses of the first epochs can be huge
        left.set(ylabel="loss", ylim=(0, top))
        right.set(ylabel="share", ylim=(0, 1.02))
    return figure


def method_colours(methods, controls=()) -> dict:
    """One colour a method for all figures of a report; controls are grey."""
    ours = [method for method in methods if method not in controls]
    colours = {method: colormaps["tab10"](i % 10) for i, method in enumerate(ours)}
    greys = np.linspace(0.35, 0.7, max(len(controls), 1))
    return colours | {method: (grey, grey, grey) for method, grey in zip(controls, greys, strict=False)}


def curve_panels(curves: dict, methods=tuple(HIGHLIGHTED)) -> Figure:
    """Mean class probability against the share of pixels changed, a panel for each curve and each of some methods.

    `curves`: what is done to pixels ("inserted") -> method -> mean curve (steps + 1,). In each panel one method is in
    colour, under its name and the area under its curve; all others are grey.
    """
    methods = [name for name in methods if all(name in found for found in curves.values())]
    methods = methods or list(next(iter(curves.values())))[: len(HIGHLIGHTED)]
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(WIDTH, 0.35 + 1.75 * len(curves)))
        axes = figure.subplots(len(curves), len(methods), squeeze=False, sharex=True, sharey=True)
        for row, (inwards, found) in zip(axes, curves.items(), strict=True):
            for axis, shown in zip(row, methods, strict=True):
                for method, mean in found.items():
                    if method != shown:
                        axis.plot(np.linspace(0, 1, len(mean)), mean, color=GREY, lw=0.6)
                mean, colour = found[shown], HIGHLIGHTED.get(shown, "tab:purple")
                axis.plot(np.linspace(0, 1, len(mean)), mean, color=colour, lw=2)
                area = np.trapezoid(mean, dx=1 / (len(mean) - 1))
                axis.set_title(f"{shown}  {area:.3f}", color=colour, fontsize=9, fontweight="bold", parse_math=False)
                axis.set(xlim=(0, 1), ylim=(0, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
            row[0].set_ylabel(f"p of the class,\npixels {inwards}", fontsize=8)
        figure.supxlabel("share of the pixels, most salient first", fontsize=8)
    return figure


def line_panels(panels: dict, *, colours: dict, xlabel: str, ylabels, log=False) -> Figure:
    """Lines in panels side by side under one legend: title -> {name: (x, y) or (x, y, low, high), a band}.

    `ylabels`: one per panel. `log`: both axes are logarithmic.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(4.1 * len(panels) + 1.4, 3.3))
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, ylabel, (title, lines) in zip(axes, ylabels, panels.items(), strict=True):
            for name, (x, y, *band) in lines.items():
                axis.plot(x, y, color=colours[name], label=name, marker="." if len(x) < 20 else None)
                if band:
                    axis.fill_between(x, *band, color=colours[name], alpha=0.1, lw=0)
            axis.set(xlabel=xlabel, ylabel=ylabel)
            axis.set_title(title, parse_math=False)
            if log:
                axis.set(xscale="log", yscale="log")
        handles = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles, loc="outside right center", fontsize=7.5)
    return figure


def matrix(table: dict, metrics: dict, *, standing: dict, digits: dict) -> Figure:
    """Methods × metrics: each column coloured from its worst mean (pale) to its best; ★ best, ≈ level with it.

    `table`: method -> metric -> {"mean", ...}; `metrics`: metric -> {"label", "arrow"}; `standing` from
    `tables.standings`; `digits`: decimals per metric. A metric without a better direction is not coloured.
    """
    methods, marks = list(table), {"best": " ★", "level": " ≈"}
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(1.6 + 0.82 * len(metrics), 0.9 + 0.25 * len(methods)))
        axis = figure.add_subplot()
        for column, (metric, about) in enumerate(metrics.items()):
            means = np.array([table[method][metric]["mean"] for method in methods])
            sign = {"↑": 1, "↓": -1}.get(about["arrow"], 0)
            span = np.ptp(means) or 1.0
            shades = np.nan_to_num(sign * (means - (means.min() if sign > 0 else means.max())) / span)
            for row, (method, mean) in enumerate(zip(methods, means, strict=True)):
                colour = colormaps["YlGn"](0.05 + 0.6 * shades[row]) if sign else "white"
                axis.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="white"))
                text = f"{mean:.{digits[metric]}f}{marks.get(standing.get(metric, {}).get(method), '')}"
                axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=6.5, color="black")
        titles = [_wrapped(f"{about['label']} {about['arrow']}".strip(), 11) for about in metrics.values()]
        axis.set(xlim=(0, len(metrics)), ylim=(len(methods), 0))
        axis.xaxis.tick_top()
        axis.set_xticks(np.arange(len(metrics)) + 0.5, titles, fontsize=6.5, parse_math=False)
        axis.set_yticks(np.arange(len(methods)) + 0.5, methods, fontsize=7, parse_math=False)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    return figure


def agreement(matrix) -> Figure:
    """Correlations, a DataFrame whose rows are called as its columns: red where two agree, blue where they do not."""
    names = list(matrix.index)
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(1.7 + 0.42 * len(names), 1.3 + 0.34 * len(names)))
        axis = figure.add_subplot()
        axis.pcolormesh(matrix.to_numpy(), cmap=DIVERGING, vmin=-1.3, vmax=1.3, edgecolor="white", lw=0.5)
        for row, values in enumerate(matrix.to_numpy()):
            for column, value in enumerate(values):
                text = f"{round(value, 2) + 0:.2f}".replace("0.", ".").replace("-", "−")  # + 0: no −0
                axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=6.5)
        axis.set(xlim=(0, len(names)), ylim=(len(names), 0))
        axis.xaxis.tick_top()
        axis.set_xticks(np.arange(len(names)) + 0.5, names, fontsize=7, rotation=45, ha="left", parse_math=False)
        axis.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=7, parse_math=False)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    return figure


def cost_and_quality(table: dict, metrics: dict) -> Figure:
    """Each metric's mean against the passes of a map; a line joins those that no cheaper one matches.

    `table`: method -> {"passes", metric -> {"mean", ...}}; only metrics with a better direction. Methods without a
    pass stand at the left edge. The papers' methods are in colour; their names and those where the line bends are
    written, as far apart as they must be to be read. A tenth of a pass makes no method cheaper.
    """
    shown = {metric: about for metric, about in metrics.items() if about["arrow"]}
    with rc_context(STYLE):
        rows = -(-len(shown) // 3)
        figure = Figure(figsize=(WIDTH, 2.5 * rows))
        axes = figure.subplots(rows, 3, squeeze=False)
        for axis in axes.flat[len(shown) :]:
            axis.set_axis_off()
        for axis, (metric, about) in zip(axes.flat, shown.items(), strict=False):
            sign = 1 if about["arrow"] == "↑" else -1
            points = sorted(
                (max(round(row["passes"], 1), 0.5), -sign * row[metric]["mean"], method)
                for method, row in table.items()
            )
            front = [points[place] for place in range(len(points)) if points[place][1] < min(
                (point[1] for point in points[:place]), default=np.inf)]  # fmt: skip
            for passes, worse, method in sorted(points, key=lambda point: point[2] in HIGHLIGHTED):
                axis.plot(passes, -sign * worse, "o", color=HIGHLIGHTED.get(method, GREY), ms=4.5)
            axis.step([p for p, *_ in front], [-sign * w for _, w, _ in front], where="post", color=DARK_GREY, lw=0.8)
            axis.set(xscale="log", xticks=[1, 10, 100, 1000], xticklabels=["1", "10", "100", "1000"])
            axis.minorticks_off()
            axis.margins(y=0.12)
            _named(
                axis, [(p, -sign * w, name) for p, w, name in points if name in HIGHLIGHTED or (p, w, name) in front]
            )
            axis.set_title(f"{about['label']} {about['arrow']}", fontsize=9)
        figure.supxlabel("passes of a map", fontsize=8)
    return figure


def _named(axis, points, *, apart=0.085):
    """Write the names of points (x, y, name) at the right of a panel, in the order of y and `apart` of its height."""
    low, high = axis.get_ylim()
    left, right = axis.get_xlim()
    axis.set_xlim(left, right * (right / left) ** 0.75)  # room for the names, the axis being logarithmic
    places, begin = [], 0.0
    for x, y, name in sorted(points, key=lambda point: point[1]):
        begin = max((y - low) / (high - low), begin)
        places.append((begin, x, y, name))
        begin += apart
    over = max(0.0, places[-1][0] - 0.97) if places else 0.0
    for number, (height, x, y, name) in enumerate(places):
        height = max(height - over, 0.02 + number * apart)
        line = {"arrowstyle": "-", "color": GREY, "lw": 0.5, "shrinkA": 0, "shrinkB": 2}
        at = {"xytext": (0.6, height), "textcoords": "axes fraction", "va": "center", "arrowprops": line}
        axis.annotate(name, (x, y), fontsize=7, color=HIGHLIGHTED.get(name, DARK_GREY), parse_math=False, **at)


def perturbation_example(image, saliency, insertion, deletion, *, colour_map="viridis", opacity=0.55) -> Figure:
    """AKD's Figure 5: the map, and both curves with the area under them shaded."""
    with rc_context(STYLE):
        figure = Figure(figsize=(9.2, 2.3))
        axes = figure.subplots(1, 4, width_ratios=[1, 1, 1.5, 1.5])
        for axis, picture in ((axes[0], pixels(image)),
                              (axes[1], overlay(image, saliency, opacity=opacity, colour_map=colour_map))):  # fmt: skip
            axis.imshow(np.clip(picture, 0, 1), interpolation="nearest")
            axis.set_axis_off()
        for axis, values, name in ((axes[2], insertion, "insertion"), (axes[3], deletion, "deletion")):
            values = np.asarray(values)
            x = np.linspace(0, 1, len(values))
            area = np.trapezoid(values, x)
            axis.plot(x, values)
            axis.fill_between(x, values, alpha=0.2)
            axis.set(title=f"{name}: area {area:.3f}", xlim=(0, 1), ylim=(0, 1.02))
            axis.set_xlabel(f"share of pixels {'inserted' if name == 'insertion' else 'deleted'}")
    return figure


def _wrapped(text: str, width=13) -> str:
    lines = [""]
    for word in text.split():
        lines[-1:] = [f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < width else [lines[-1], word]
    return "\n".join(lines)
