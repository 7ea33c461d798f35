"""What the page shows as one picture that can be kept, with its settings inside."""

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from xai_utils import plots
from xai_utils.widgets.drawing import SERIES, png


def _curves_figure(found):
    """What `curves` shows, as a figure."""
    with rc_context(plots.STYLE):
        figure = Figure(figsize=(8.4, 2.5))
        axes = figure.subplots(1, 2, sharey=True)
        for axis, name, word in zip(axes, ("insertion", "deletion"), ("inserted", "deleted"), strict=True):
            for place, title, each in found:
                values = getattr(each, name)
                label = f"{title}  {getattr(each, f'{name}_area'):.3f}"
                axis.plot(np.linspace(0, 1, len(values)), values, color=SERIES[place], label=label, lw=1.6)
            axis.set(xlabel=f"share of pixels {word}, most salient first", xlim=(0, 1), ylim=(0, 1.02))
            axis.legend(title=f"area under {name}", fontsize=7, title_fontsize=7.5)
        axes[0].set_ylabel("class probability")
    return figure


def sheet(title, rows, found, facts):
    """All that is shown as one PNG file: rows of (name, pictures (S, S, 3)), and the curves below."""
    names, pictures = zip(*rows, strict=True)
    grid = plots.image_grid(
        pictures, row_titles=names, column_titles=["image", "overlay", "map", "top pixels"], cell=1.7
    )
    grid.suptitle(title, fontsize=8, parse_math=False)
    figures = [grid, *([_curves_figure(found)] if found else [])]
    opened = [plots.rendered(figure) for figure in figures]
    page = Image.new("RGB", (max(each.width for each in opened), sum(each.height for each in opened)), "white")
    top = 0
    for each in opened:
        page.paste(each, (0, top))
        top += each.height
    return png(np.asarray(page) / 255, facts)
