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

SERIES = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728")  # for each place of a method

# A click writes "x, y" into the page's field "pixel", which is a widget: the only way to Python without an extension.
CLICK = (
    "const box = this.getBoundingClientRect(), size = {size},"
    " at = (where, from, length) => Math.min(size - 1, Math.max(0, Math.floor((where - from) / length * size))),"
    " field = this.closest('.xai-inspector').querySelector('.xai-pixel input');"
    " field.value = at(event.clientX, box.left, box.width) + ', ' + at(event.clientY, box.top, box.height);"
    " field.dispatchEvent(new Event('change', {{bubbles: true}}))"
)

STYLE = """<style>
.xai-inspector { --soft: #5b6670; --strong: #14202b; color: var(--strong); align-items: flex-start;
  flex-flow: row wrap !important; gap: 20px; font: 13px/1.45 system-ui, sans-serif; max-width: 1500px;
  overflow: visible; box-sizing: border-box; padding-right: 16px; width: 100% }
.xai-inspector .widget-box, .xai-inspector .widget-html, .xai-inspector .widget-html-content { overflow: visible }
.xai-inspector .widget-html-content { line-height: 1.45; font: inherit; white-space: normal; width: 100% }
.xai-inspector h2 { font-size: 12px; margin: 10px 0 2px; font-weight: 650; color: var(--soft); letter-spacing: .04em;
  text-transform: uppercase }
.xai-inspector p { margin: 2px 0 }
.xai-inspector .xai-controls { flex: 1 1 270px; max-width: 300px; min-width: 0 }
.xai-inspector .xai-results { flex: 1 1 560px; min-width: 0 }
.xai-inspector .xai-controls .widget-inline-hbox, .xai-inspector .xai-column .widget-inline-hbox { width: auto }
.xai-inspector .xai-controls .widget-label { min-width: 0; width: 84px }
.xai-inspector .xai-column .widget-label { font-size: 12px; min-width: 0 }
.xai-inspector .xai-column .widget-readout { min-width: 34px }
.xai-inspector .xai-columns { display: grid !important; gap: 14px;
  grid-template-columns: repeat(4, minmax(0, 1fr)) }
.xai-inspector .xai-column { min-width: 0 }
.xai-inspector .xai-card figure { max-width: 220px; margin: 0 auto 6px }
.xai-inspector figure { margin: 0 0 6px; min-width: 0 }
.xai-inspector figcaption { color: var(--soft); font-size: 12px; margin-top: 1px }
.xai-inspector .shot { position: relative; display: block; line-height: 0; background: #eef1f4; border-radius: 4px;
  overflow: hidden; aspect-ratio: 1 }
.xai-inspector .shot img { width: 100%; height: 100%; display: block; max-width: none }
.xai-inspector .shot img[onclick] { cursor: crosshair }
.xai-inspector .shot i { position: absolute; width: 9px; height: 9px; margin: -6px 0 0 -6px; border: 2px solid #fff;
  border-radius: 50%; box-shadow: 0 0 0 1px #000, inset 0 0 0 1px #000; pointer-events: none }
.xai-inspector .shot.empty { display: flex; align-items: center; justify-content: center; color: var(--soft);
  line-height: 1.4; text-align: center; padding: 10px; box-sizing: border-box; overflow-wrap: anywhere }
.xai-inspector .numbers { display: grid; grid-template-columns: 1fr auto; gap: 0 8px; margin: 2px 0 6px;
  font-size: 12.5px }
.xai-inspector .numbers span { color: var(--soft) }
.xai-inspector .numbers b { font-weight: 500; text-align: right; font-variant-numeric: tabular-nums }
.xai-inspector .bars { display: grid; grid-template-columns: 1fr 54px; gap: 2px 6px; margin: 6px 0 }
.xai-inspector .bars span { background: linear-gradient(90deg, #bfdcd8 var(--share), #eef1f4 var(--share));
  border-radius: 3px; padding: 0 6px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.xai-inspector .bars b { font-weight: 500; text-align: right; font-variant-numeric: tabular-nums }
.xai-inspector .bars .chosen { outline: 2px solid #2a8f86 }
.xai-inspector .strip { display: grid; grid-template-columns: repeat(auto-fit, minmax(92px, 1fr)); gap: 10px;
  max-width: 900px }
.xai-inspector svg { width: 100%; display: block; font-size: 10px; fill: var(--soft) }
.xai-inspector .panels { display: flex; flex-wrap: wrap; gap: 10px 22px; align-items: center }
.xai-inspector .panels figure { flex: 1 1 220px; max-width: 340px }
.xai-inspector .xai-error { color: #9d1c1c }
.xai-inspector .note { background: #fff4d6; border-radius: 4px; padding: 5px 10px; margin: 4px 0 }
.xai-inspector .key { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px }
.xai-inspector table { border-collapse: collapse; font-size: 12.5px; margin-top: 4px }
.xai-inspector th, .xai-inspector td { text-align: right; padding: 1px 12px 1px 0; font-weight: 400 }
.xai-inspector th:first-child, .xai-inspector td:first-child { text-align: left }
.xai-inspector th { color: var(--soft) }
@media (max-width: 900px) { .xai-inspector .xai-controls { max-width: none }
  .xai-inspector .xai-columns { grid-template-columns: repeat(2, minmax(0, 1fr)) } }
</style>"""


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


def shot(picture, size, caption, *, alt, clickable=False, mark=None):
    """A picture of `size` pixels a side, given by its address, with its caption.

    A click on a `clickable` one names a pixel; `mark` (x, y) shows one.
    """
    click = f' onclick="{text(CLICK.format(size=size))}"' if clickable else ""
    dot = ""
    if mark is not None:
        left, top = (100 * (place + 0.5) / size for place in mark)
        dot = f'<i style="left:{left:.2f}%;top:{top:.2f}%"></i>'
    image = f'<img src="{picture}" alt="{text(alt)}"{click}>'
    return f'<figure><span class="shot">{image}{dot}</span><figcaption>{text(caption)}</figcaption></figure>'


def complaint(message):
    """What went wrong, for eyes and screen readers."""
    return f'<p class="xai-error" role="alert">{text(message)}</p>'


def blank(reason):
    """What stands in a picture's place: why there is none."""
    return f'<figure><span class="shot empty">{text(reason)}</span></figure>'


def facts(pairs):
    """A list of names and values."""
    rows = "".join(f"<span>{text(name)}</span><b>{text(value)}</b>" for name, value in pairs)
    return f'<div class="numbers">{rows}</div>'


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
    """Lines (colour, values) and bars over [0, 1] as an inline SVG; matplotlib takes too long for a moving slider.

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
        parts.append(f'<polygon points="{corners}" fill="#bfdcd8"/>')
    for share in (0, 0.5, 1):
        (left, level), (right, _) = (at(x, share * top).split(",") for x in (0, 1))
        parts.append(f'<path d="M{left} {level}H{right}" stroke="#e3e7eb"/>')
        parts.append(tick(0, share * top, f"{share * top:.3g}", "end", -5, 3.5))
        parts.append(tick(share, 0, f"{share:g}", "middle", 0, 14))
    for colour, values in lines:
        points = " ".join(at(place / (len(values) - 1), value) for place, value in enumerate(values))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    drawn = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(caption)}">{"".join(parts)}</svg>'
    return f"<figure>{drawn}<figcaption>{text(caption)}</figcaption></figure>"


def curves(found):
    """Insertion and deletion of some maps, (place, title, Curves) each, and the areas under them."""
    if not found:
        return ""
    panels = [
        chart(
            [(SERIES[place], getattr(each, name)) for place, _, each in found], caption=f"class probability by {words}"
        )
        for name, words in (("insertion", "share of pixels inserted"), ("deletion", "share of pixels deleted"))
    ]
    rows = "".join(
        f'<tr><td><span class="key" style="background:{SERIES[place]}"></span>{text(title)}</td>'
        f"<td>{each.insertion_area:.3f}</td><td>{each.deletion_area:.3f}</td></tr>"
        for place, title, each in found
    )
    head = "<tr><th>area under the curve</th><th>insertion ↑</th><th>deletion ↓</th></tr>"
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
    return chart([("#14605a", target.tolist())], bars=counted.tolist(), top=top, caption=caption, width=240, height=130)


def reading(mark, picture, explained, share):
    """What each map, (title, Explanation), says of the pixel `mark` (x, y) and of the part that it lies in."""
    if mark is None:
        return "<p>Click a picture to read a pixel.</p>"
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
    head = "".join(f"<th>{text(each)}</th>" for each in heads)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def downloads(files):
    """Links that save files, name -> (content, kind)."""
    links = [
        f'<a download="{text(name)}" href="{address(content, kind)}">{text(name)}</a>'
        for name, (content, kind) in files.items()
    ]
    return f"<p>{' · '.join(links)}</p>"
