"""Pictures. Only here are maps normalised for display; every function returns a matplotlib Figure.

`show` puts a figure and its caption into a notebook, `save` writes it to a file; both give the same bytes on each run.
"""

import html
import io
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from xai_utils.files import write_atomically
from xai_utils.images import keep_top, perturb, rank_pixels, unit_range

DPI = 120
PERCENTILE = 99  # of a map, where its colours end on pages that show single images
KINDS = {".png": "png", ".jpg": "jpeg"}
LINES = ("-", "--", ":", "-.")
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


def rendered(figure: Figure) -> Image.Image:
    """The figure as a picture. Its layout is solved once, where `savefig` solves it twice: most of the time it takes.

    Drawing a figure again moves its layout a little further, so one figure is to be drawn once.
    """
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def encoded(picture: Image.Image, kind: str) -> bytes:
    """A picture as a "png" or "jpeg" file without library versions in it: equal pictures, equal bytes."""
    file = io.BytesIO()
    picture.save(file, format=kind, **({"optimize": True} if kind == "png" else {"quality": 75, "subsampling": 1}))
    return file.getvalue()


def _smaller_kind(picture: Image.Image) -> str:
    """Is it smaller as "png" (curves) or as "jpeg" (photographs)? The PNG is not optimised, being slow."""
    plain = io.BytesIO()
    picture.save(plain, format="png")
    return "jpeg" if len(encoded(picture, "jpeg")) < plain.tell() else "png"


def show(figure: Figure, caption: str, path=None):
    """Display `figure` in a notebook with `caption` under it (which is its alternative text, too).

    As PNG or JPEG, whichever is smaller: PNG for curves, JPEG for photographs. With a `path` it is saved there and
    shown as that very file, which a report then need not hold a second time.
    """
    from IPython import display

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


def overlay(image, saliency, *, opacity=0.55, colour_map="viridis", percentile=100) -> np.ndarray:
    """`saliency` (H, W), min-max normalised and coloured, laid linearly over `image`: (H, W, 3) in [0, 1].

    What exceeds the `percentile` of the map is drawn as that: the few largest values of a gradient would leave all
    others dark. A constant map has no contrast to show: it is drawn in the colour of 0.
    """
    saliency = np.asarray(saliency, dtype=np.float64)
    low, high = saliency.min(), np.percentile(saliency, percentile)
    high = high if high > low else saliency.max()  # fewer pixels than that share have any value
    unit = np.clip((saliency - low) / (high - low), 0, 1) if high > low else np.zeros_like(saliency)
    return opacity * colormaps[colour_map](unit)[..., :3] + (1 - opacity) * pixels(image)


def image_grid(rows, *, row_titles=None, column_titles=None, cell=1.05) -> Figure:
    """`rows`: a list of lists of (H, W, 3) pictures, or None for an empty cell."""
    count = max(len(row) for row in rows)
    margin = 0.062 * max((len(str(t)) for t in row_titles), default=0) if row_titles else 0
    with rc_context(STYLE):
        figure = Figure(figsize=(cell * count + margin, cell * len(rows) + (0.3 if column_titles else 0)))
        axes = figure.subplots(len(rows), count, squeeze=False)
        for r, row in enumerate(rows):
            for c in range(count):
                axis = axes[r, c]
                axis.set(xticks=[], yticks=[])
                axis.grid(False)
                axis.spines[:].set_visible(False)
                if c < len(row) and row[c] is not None:
                    axis.imshow(np.clip(row[c], 0, 1), interpolation="nearest")
                if r == 0 and column_titles:
                    axis.set_title(column_titles[c], fontsize=7.5, parse_math=False)
            if row_titles:
                label = {"rotation": 0, "ha": "right", "va": "center", "fontsize": 7.5}
                axes[r, 0].set_ylabel(row_titles[r], **label, parse_math=False)  # a class may be called $100
        figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    return figure


def method_grid(images, maps: dict, row_titles, *, frames=None, **drawn) -> Figure:
    """One row per image: the image, then each method's map over it. `maps`: method -> (N, H, W).

    `frames` (N, H, W), bool: a red frame around what is true, a rectangle, in every picture of a row. `drawn`: options
    of `overlay`.
    """
    rows = [[pixels(image), *(overlay(image, maps[m][i], **drawn) for m in maps)] for i, image in enumerate(images)]
    titles = ["image", *(method.replace("_", " ").replace(" plus plus", "++") for method in maps)]
    figure = image_grid(rows, row_titles=row_titles, column_titles=[_wrapped(t) for t in titles])
    for place, axis in enumerate(figure.axes if frames is not None else ()):
        y, x = (np.flatnonzero(np.asarray(frames[place // len(titles)]).any(across)) for across in (1, 0))
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


def score_curves(curves: dict, *, colours: dict, label: str, inwards: str) -> Figure:
    """Mean class probability against the share of pixels changed; `curves`: method -> mean curve (steps + 1,).

    Where two methods share a colour, the line of the later one is broken.
    """
    drawn = []
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, max(3.6, 0.7 + 0.165 * len(curves))))
        axis = figure.subplots()
        for method, mean in curves.items():
            area, style = np.trapezoid(mean, dx=1 / (len(mean) - 1)), LINES[drawn.count(colours[method]) % len(LINES)]
            drawn.append(colours[method])
            text, x = f"{method}  {area:.3f}", np.linspace(0, 1, len(mean))
            axis.plot(x, mean, color=colours[method], ls=style, lw=1.3, label=text)
        axis.set(xlabel=f"share of pixels {inwards}, most salient first", ylabel="class probability", ylim=(0, 1.02))
        figure.legend(title=f"area under {label}", fontsize=7.5, title_fontsize=8, loc="outside right center")
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


def cost_and_quality(table: dict, metrics: dict, *, colours: dict) -> Figure:
    """Each metric's mean against the passes of a map; a line joins those that no cheaper one matches.

    `table`: method -> {"passes", metric -> {"mean", ...}}; only metrics with a better direction. Methods without a
    pass stand at the left edge. Names are written where the line bends; a tenth of a pass makes no method cheaper.
    """
    shown = {metric: about for metric, about in metrics.items() if about["arrow"]}
    with rc_context(STYLE):
        rows = -(-len(shown) // 3)
        figure = Figure(figsize=(10.5, 2.9 * rows))
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
            for passes, worse, method in points:
                axis.plot(passes, -sign * worse, "o", color=colours[method], ms=4)
            axis.step([p for p, *_ in front], [-sign * w for _, w, _ in front], where="post", color="0.4", lw=0.8)
            for passes, worse, method in front:
                at = {"xytext": (3, -7 if sign > 0 else 4), "textcoords": "offset points", "parse_math": False}
                axis.annotate(method, (passes, -sign * worse), fontsize=6, **at)
            axis.set(xscale="log", xlabel="passes")
            axis.set_title(f"{about['label']} {about['arrow']}", fontsize=8)
    return figure


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
