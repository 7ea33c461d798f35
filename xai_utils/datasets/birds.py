"""Pictures of invented birds whose species differ in known parts, so that the true explanation is known.

Every random number of a picture is drawn from its seed before, and independent of, the parts: the same seed with
another part, or without one, gives the same picture everywhere else.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from xai_utils.datasets import scenery
from xai_utils.datasets.catalogue import PARTS

SUPERSAMPLING = 4  # drawn this many times larger, then averaged: smooth edges at 96 px
HEAD = np.array([0.38, -0.42])  # where the head's middle sits, in the bird's units
NECK = np.array([-0.08, 0.12])  # the head turns about this point, from the head's middle
ON_HEAD = {"head", "beak", "crest", "eye"}
BACK_TO_FRONT = ("legs", "tail", "body", "wing", "head", "crest", "beak", "eye")

# Layers of a part: its outline shrunk to `scale` about its middle and moved by (dx, dy), in tone (see scenery.mix).
# They give the rim, the round shading with the light from above, the pale belly and the glint in the eye.
RIM = (1.0, 0.0, 0.0, -0.5)
LAYERS = {
    "body": (
        RIM,
        (0.945, 0.0, 0.0, -0.16),
        (0.88, 0.0, -0.015, 0.0),
        (0.66, 0.07, 0.075, 0.12),
        (0.54, 0.10, 0.10, 0.24),
        (0.40, 0.12, 0.12, 0.36),
    ),
    "head": (RIM, (0.91, 0.0, -0.005, -0.12), (0.82, 0.01, -0.02, 0.0), (0.55, 0.04, -0.06, 0.10)),
    "beak": (RIM, (0.80, 0.0, 0.0, 0.0), (0.45, 0.0, -0.025, 0.25)),
    "wing": (RIM, (0.93, 0.0, -0.005, -0.08), (0.84, 0.0, -0.015, 0.04), (0.5, 0.06, -0.03, 0.14)),
    "tail": (RIM, (0.91, 0.0, 0.0, 0.0)),
    "crest": (RIM, (0.84, 0.0, 0.0, 0.0)),
    "eye": ((1.0, 0.0, 0.0, -0.9), (0.78, 0.0, 0.0, 0.1), (0.48, 0.0, 0.0, -0.95), (0.24, 0.025, -0.03, 1.0)),
    "legs": (),
}


@dataclass(frozen=True)
class Bird:
    """One picture: `image` uint8 (S, S, 3), `parts` uint8 (S, S), `box` (x0, y0, x1, y1).

    `parts` holds the id of the part seen at a pixel (position in PARTS + 1; 0 where no bird is). `box` is half-open
    around all pixels of the bird.
    """

    image: np.ndarray
    parts: np.ndarray
    box: tuple[int, int, int, int]


def render(catalogue, species, seed, *, size=96, without=None, swap=None):
    """Draw one bird of `species`; everything but the species is decided by `seed` (a non-negative int).

    `without` names one part to leave out; `swap` maps parts to the species they are taken from. Either changes only
    pixels in which the part was or is seen, be it in one of the SUPERSAMPLING² small pixels that they average.

    Raises ValueError for an unknown species or part.
    """
    looks = _looks(catalogue, species, without, swap or {})
    generator = np.random.default_rng(seed)
    canvas, labels = draw_large(catalogue, looks, generator, size)
    pixels = np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) / 255
    image = np.rint(scenery.light(pixels, generator) * 255).astype(np.uint8)
    middle = SUPERSAMPLING // 2
    parts = np.asarray(labels)[middle::SUPERSAMPLING, middle::SUPERSAMPLING].copy()  # the nearest of the small pixels
    return Bird(image, parts, _bounds(parts))


def draw_large(catalogue, looks, generator, size):
    """The picture before averaging and light, and its part ids: two PIL images, SUPERSAMPLING * size wide.

    `looks` part -> (shape, colour) of the parts to draw; what is drawn from `generator` does not depend on them.
    """
    place, scale = _pose(catalogue, size * SUPERSAMPLING, generator)
    shades = generator.uniform(-0.08, 0.08, len(PARTS))
    ground = scenery.backdrop(size, catalogue.palette, generator)
    canvas = ground.resize((size * SUPERSAMPLING,) * 2, Image.Resampling.BILINEAR)
    scenery.scatter(canvas, catalogue.palette, generator)
    scenery.perch(canvas, partial(place, on_head=False), scale, generator)

    labels = Image.new("L", canvas.size, 0)
    pens = ImageDraw.Draw(canvas), ImageDraw.Draw(labels)
    for part in BACK_TO_FRONT:
        if part in looks:
            shape, colour = looks[part]
            number = PARTS.index(part)
            colour = scenery.mix(catalogue.palette[colour], shades[number])
            at = partial(place, on_head=part in ON_HEAD)
            _draw(pens, part, catalogue.shapes[part][shape], colour, number + 1, at, scale)
    return canvas, labels


def _looks(catalogue, species, without, swap):
    for name in (species, *swap.values()):
        if name not in catalogue.species:
            raise ValueError(f"unknown species {name!r}; the catalogue has {', '.join(catalogue.species)}")
    for part in ({without} - {None}) | set(swap):
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}; the parts are {', '.join(PARTS)}")
    looks = catalogue.species[species] | {part: catalogue.species[other][part] for part, other in swap.items()}
    return {part: look for part, look in looks.items() if part != without}


def _pose(catalogue, pixels, generator):
    """A function from the bird's units to pixels, and the pixels of one unit.

    Size and position are fitted to the union of *all* shapes of the catalogue, so they cannot tell the species.
    """
    flip = generator.random() < 0.5
    tilt, nod = np.deg2rad(generator.uniform(-16, 16)), np.deg2rad(generator.uniform(-18, 18))
    stretch = generator.uniform(0.93, 1.07)
    share, at = generator.uniform(0.50, 0.81), generator.random(2)

    def posed(points, on_head):
        if on_head:
            points = (points - NECK) @ _rotation(nod) + NECK + HEAD
        points = (points * [stretch, 1 / stretch]) @ _rotation(tilt)
        return points * [-1, 1] if flip else points

    everything = [
        posed(points, part in ON_HEAD)
        for part, shapes in catalogue.shapes.items()
        for shape in shapes.values()
        for points in (shape.outline, *(line.points for line in shape.lines))
    ]
    low, high = (getattr(np.concatenate(everything), side)(axis=0) for side in ("min", "max"))
    scale = share * pixels / (high - low).max()
    corner = at * (pixels - (high - low) * scale)  # uniform over all places where the bird fits

    def place(points, on_head):
        return (posed(points, on_head) - low) * scale + corner

    return place, scale


def _rotation(angle):
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _draw(pens, part, shape, colour, number, place, scale):
    """Draw one part with both pens: colours on the picture, the part's id on the label image."""
    picture, labels = pens
    if len(shape.outline):
        middle = shape.outline.mean(axis=0)
        for size, dx, dy, tone in LAYERS[part]:
            outline = list(map(tuple, place(middle + (shape.outline - middle) * size + [dx, dy])))
            picture.polygon(outline, fill=scenery.mix(colour, tone))
            labels.polygon(outline, fill=number)
    for line in shape.lines:
        path = list(map(tuple, place(line.points)))
        width = max(1, round(line.width * scale))
        picture.line(path, fill=scenery.mix(colour, line.tone), width=width, joint="curve")
        labels.line(path, fill=number, width=width, joint="curve")


def _bounds(parts):
    rows, columns = np.flatnonzero(parts.any(axis=1)), np.flatnonzero(parts.any(axis=0))
    if not len(rows):
        return (0, 0, 0, 0)
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
