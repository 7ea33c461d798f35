"""What the page shows, as HTML with its pictures inside: every text is escaped, nothing is fetched from anywhere."""

import base64
import html
import io

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, PngImagePlugin

from xai_utils import plots
from xai_utils.explainers import lovi
from xai_utils.networks.mask_predictor import controller_density, controller_moments
from xai_utils.widgets.style import CLICK, SCRIPT, STYLE

SERIES = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728")  # for each place of a method
DASHES = ("none", "5 3")  # for each side of a comparison


def text(value):
    """`value` as text inside HTML or an attribute."""
    return html.escape(str(value), quote=True)


def png(pixels, facts=None):
    """A picture (H, W, 3) in [0, 1] as a PNG file; `facts`: texts that go with it."""
    info, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    for name, value in (facts or {}).items():
        info.add_itxt(name, value)
    array = np.rint(np.clip(np.asarray(pixels), 0, 1) * 255).astype(np.uint8)
    Image.fromarray(array).save(buffer, format="png", compress_level=1, pnginfo=info)
    return buffer.getvalue()


def address(content, kind="image/png"):
    """A file's content as the address of itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def look():
    """The page's style, and what its widgets lack."""
    return f'<style onload="{text(SCRIPT)}">{STYLE}</style>'


def about(who, notices):
    """Who answers, and what a reader must know of it."""
    told = "".join(f'<p class="note">{text(notice)}</p>' for notice in notices)
    return f'<p class="about">{text(who)}</p>{told}'


def shot(picture, size, caption, *, alt, clickable=False, mark=None, outlines=()):
    """A picture of `size` pixels a side, given by its address, with its caption.

    A click on a `clickable` one names a pixel; `mark` (x, y) shows one; `outlines` (`truth.Outline`) lie over it.
    """
    click = f' onclick="{text(CLICK.format(size=size))}"' if clickable else ""
    over = _outlined(size, outlines) if outlines else ""
    if mark is not None:
        left, top = (100 * (place + 0.5) / size for place in mark)
        over += f'<i style="left:{left:.2f}%;top:{top:.2f}%"></i>'
    image = f'<img src="{picture}" alt="{text(alt)}"{click}>'
    return f'<figure><span class="shot">{image}{over}</span><figcaption>{text(caption)}</figcaption></figure>'


def _outlined(size, outlines):
    """Outlines, each on a dark rim, for the alt text of the picture below names them already."""
    paths = []
    for each in outlines:
        lines = "".join(f"M{x0:g} {y0:g}L{x1:g} {y1:g}" for (x0, y0), (x1, y1) in each.lines)
        for colour, width in (("#000", 3.5), (each.colour, 2)):
            paths.append(f'<path d="{lines}" stroke="{colour}" stroke-width="{width}"/>')
    return f'<svg viewBox="0 0 {size} {size}" aria-hidden="true">{"".join(paths)}</svg>'


def legend(outlines):
    """What the outlines are around, each name once."""
    if not outlines:
        return ""
    colours = {each.name: each.colour for each in outlines}
    keys = (f'<span class="key" style="background:{colour}"></span>{text(name)}' for name, colour in colours.items())
    return f"<p>{' &nbsp; '.join(keys)}</p>"


def side_by_side(parts):
    """Pieces of HTML in one row of equal columns."""
    return f'<div class="pair">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def complaint(message):
    """What went wrong, for eyes and screen readers."""
    return f'<p class="xai-error" role="alert">{text(message)}</p>'


def blank(reason):
    """What stands in a picture's place: why there is none."""
    return f'<figure><span class="shot empty">{text(reason)}</span></figure>'


def facts(rows, heads=()):
    """A table of names and values, a column of values for each of the `heads`."""
    head = f"<tr><th></th>{''.join(f'<th scope=col>{text(each)}</th>' for each in heads)}</tr>" if heads else ""
    body = "".join(
        f"<tr><th scope=row>{text(name)}</th>{''.join(f'<td>{text(value)}</td>' for value in values)}</tr>"
        for name, *values in rows
    )
    return f'<table class="numbers">{head}{body}</table>'


def answers(probabilities, classes, chosen):
    """The five most probable classes as bars; the explained one is outlined."""
    rows = []
    for value, index in zip(*(part.tolist() for part in probabilities.topk(min(5, len(classes)))), strict=True):
        style = f'style="--share:{100 * value:.1f}%"' + (' class="chosen"' if index == chosen else "")
        name = text(classes[index])
        rows.append(f'<span {style} title="{name}">{name}</span><b>{100 * value:.1f} %</b>')
    return f'<div class="bars">{"".join(rows)}</div>'


def layers(names, stack, colour_map):
    """LOVI and the map of each layer, in a strip; stack (L, S, S) in [0, 1]."""
    colours, size = lovi.lovi(stack[None]).rgb[0].permute(1, 2, 0), stack.shape[-1]
    shots = [shot(address(png(colours)), size, "LOVI: violet early, red late", alt="LOVI: which layer saw what")]
    for name, each in zip(names, stack, strict=True):
        coloured = address(png(colormaps[colour_map](each.numpy())[..., :3]))
        shots.append(shot(coloured, size, name, alt=f"SMOE Scale of layer {name}"))
    return f'<div class="strip">{"".join(shots)}</div>'


GALLERY = """<style>
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(var(--width), 45%), 1fr));
  gap: 1rem .9rem; margin: .8rem 0 1.2rem }
.gallery figure { margin: 0; min-width: 0 } .gallery img { width: 100%; margin: 0; display: block }
.gallery figcaption { margin: .25rem 0 0; font-size: .8rem; line-height: 1.4; color: inherit }
.gallery figcaption span { display: flex; justify-content: space-between; gap: .5rem; opacity: .75;
  font-variant-numeric: tabular-nums }
</style>"""


def gallery(cards, width=8.4):
    """Pictures side by side that wrap on a narrow page, each a JPEG over its title and rows of names and values.

    `cards`: (title, picture (H, W, 3) in [0, 1], pairs of a name and a value); `width`: the least of one, in letters
    (rem), where the page has room for more than two.
    """
    figures = []
    for title, picture, pairs in cards:
        array = np.rint(np.clip(np.asarray(picture), 0, 1) * 255).astype(np.uint8)
        source = address(plots.encoded(Image.fromarray(array), "jpeg"), "image/jpeg")
        rows = "".join(f"<span>{text(name)} <b>{text(value)}</b></span>" for name, value in pairs)
        caption = f"<figcaption><b>{text(title)}</b>{rows}</figcaption>"
        figures.append(f'<figure><img src="{source}" alt="{text(title)}">{caption}</figure>')
    return f'{GALLERY}<div class="gallery" style="--width: {width}rem">{"".join(figures)}</div>'


def chart(lines, *, caption, top=1.0, bars=(), width=320, height=150):
    """Lines (colour, dashes, values) and bars over [0, 1] as an inline SVG: matplotlib takes too long for a slider.

    Both are spread evenly over the width; what exceeds `top` is cut off.
    """

    def at(x, y):
        return f"{30 + x * (width - 40):.1f},{(height - 20) - min(y / top, 1.03) * (height - 30):.1f}"

    def tick(x, y, label, anchor, dx, dy):
        x, y = at(x, y).split(",")
        return f'<text x="{float(x) + dx:.1f}" y="{float(y) + dy:.1f}" text-anchor="{anchor}">{label}</text>'

    parts = []
    for place, value in enumerate(bars):
        left, right = place / len(bars), (place + 1) / len(bars)
        corners = " ".join((at(left, 0), at(left, value), at(right, value), at(right, 0)))
        parts.append(f'<polygon points="{corners}" fill="#7fbfb8"/>')
    for share in (0, 0.5, 1):
        (left, level), (right, _) = (at(x, share * top).split(",") for x in (0, 1))
        parts.append(f'<path d="M{left} {level}H{right}" stroke="var(--line)"/>')
        parts.append(tick(0, share * top, f"{share * top:.3g}", "end", -5, 3.5))
        parts.append(tick(share, 0, f"{share:g}", "middle", 0, 14))
    for colour, dashes, values in lines:
        points = " ".join(at(place / (len(values) - 1), value) for place, value in enumerate(values))
        style = f'fill="none" stroke="{colour}" stroke-dasharray="{dashes}" stroke-width="1.6"'
        parts.append(f'<polyline points="{points}" {style}/>')
    drawn = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(caption)}">{"".join(parts)}</svg>'
    return f"<figure>{drawn}<figcaption>{text(caption)}</figcaption></figure>"


def curves(found):
    """Insertion and deletion of some maps, (place, side, title, Curves) each, and the areas under them."""
    if not found:
        return ""
    panels = [
        chart(
            [(SERIES[place], DASHES[side], getattr(each, name)) for place, side, _, each in found],
            caption=f"class probability by {words}",
        )
        for name, words in (("insertion", "share of pixels inserted"), ("deletion", "share of pixels deleted"))
    ]
    rows = "".join(
        f'<tr><td><span class="key" style="background:{SERIES[place]}"></span>{text(title)}</td>'
        f"<td>{each.insertion_area:.3f}</td><td>{each.deletion_area:.3f}</td></tr>"
        for place, _, title, each in found
    )
    head = "<tr><th scope=col>area under the curve</th><th scope=col>insertion ↑</th><th scope=col>deletion ↓</th></tr>"
    return f'<div class="panels">{"".join(panels)}<table>{head}{rows}</table></div>'


def density(scores, eta, exponent):
    """The scores of a map (S, S) as a histogram, and the density that the customized controller aims at."""
    at = torch.linspace(0.004, 0.996, 125, dtype=torch.float64)
    target = controller_density(at, eta=eta, exponent=exponent)
    counted = torch.histc(scores.float(), 32, 0, 1) / scores.numel() * 32
    moments = controller_moments(eta=eta, exponent=exponent)
    caption = (
        f"density of the scores: bars, mean {float(scores.mean()):.2f}; aimed at: line, mean {moments['mean']:.2f}, "
        f"skewness {moments['skewness']:.2f}, {100 * moments['above_half']:.0f} % above ½"
    )
    top = min(6.0, max(1.0, 1.1 * float(target.max())))
    return chart(
        [("#14605a", "none", target.tolist())], bars=counted.tolist(), top=top, caption=caption, width=240, height=130
    )


def reading(mark, picture, explained, share):
    """What each map, (title, Explanation), says of the pixel `mark` (x, y) and of the part that it lies in."""
    x, y = mark
    part = picture.part_at(x, y)
    heads = [f"pixel {x}, {y}", "score", "rank"]
    if part is not None:
        name, mask = part
        heads += [f"mean in {name}", f"of {name} in the top {share} %"]
    rows = []
    for title, each in explained:
        pixels, rank = each.ranks.numel(), int(each.ranks[y, x]) + 1
        cells = [title, f"{each.scores[y, x]:.4g}", f"{rank} of {pixels} (top {100 * rank / pixels:.1f} %)"]
        if part is not None:
            top = each.ranks[mask] < round(share / 100 * pixels)
            cells += [f"{each.scores[mask].mean():.4g}", f"{100 * top.float().mean():.0f} %"]
        rows.append("".join(f"<td>{text(cell)}</td>" for cell in cells))
    head = "".join(f"<th scope=col>{text(each)}</th>" for each in heads)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def download(name, content, kind):
    """A file that the browser saves when this is shown, and a link for whoever has forbidden that."""
    blank = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    click = "this.previousElementSibling.click()"
    link = f'<a download="{text(name)}" href="{address(content, kind)}">{text(name)}</a>'
    return f'<p>saved: {link}<img src="{blank}" alt="" width="1" height="1" onload="{click}"></p>'
