"""What stands around a bird: backdrop, distractor objects, perch and light. None of it depends on the species."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# Each backdrop mixes one of these with colours of the birds' palette, so no colour gives a species away.
BACKDROPS = (
    ((188, 214, 236), (122, 172, 220), (236, 240, 238)),  # sky
    ((70, 104, 52), (132, 160, 84), (38, 62, 40)),  # foliage
    ((92, 74, 58), (150, 130, 104), (58, 52, 46)),  # bark
    ((214, 196, 150), (168, 150, 112), (226, 216, 190)),  # dry grass
    ((232, 178, 140), (154, 128, 160), (92, 98, 140)),  # dusk
)


def mix(colour, tone):
    """`colour` moved towards black (tone -1) or white (tone 1), as a tuple of ints."""
    end = 255.0 if tone > 0 else 0.0
    return tuple(round(value + (end - value) * abs(tone)) for value in colour)


def backdrop(size, palette, generator):
    """The blurred scene behind everything: fields of colour, blobs and twigs; an RGB image of `size` pixels."""
    scene = np.array(BACKDROPS[generator.integers(len(BACKDROPS))], dtype=np.float64)  # (3, RGB)
    birds = np.array(list(palette.values()), dtype=np.float64)
    cells = scene[generator.integers(3, size=(5, 5))] * generator.uniform(0.85, 1.1, (5, 5, 1))
    foreign = birds[generator.integers(len(birds), size=(5, 5))]
    cells += np.where(generator.random((5, 5, 1)) < 0.25, 0.5, 0.0) * (foreign - cells)
    image = Image.fromarray(np.clip(cells, 0, 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(generator.integers(14, 30)):
        x, y = generator.random(2) * size
        radius = generator.uniform(0.02, 0.11) * size
        colour = birds[generator.integers(len(birds))] if generator.random() < 0.4 else scene[generator.integers(3)]
        under = np.array(image.getpixel((int(x), int(y))))
        flat = radius * generator.uniform(0.5, 1.0)
        draw.ellipse((x - radius, y - flat, x + radius, y + flat), fill=mix(0.45 * under + 0.55 * colour, 0))
    for _ in range(generator.integers(0, 5)):
        ends = tuple((generator.uniform(-0.1, 1.1, 4) * size).tolist())
        draw.line(ends, fill=mix(scene[2], -0.3), width=max(1, round(generator.uniform(0.008, 0.03) * size)))
    return image.filter(ImageFilter.GaussianBlur(generator.uniform(0.004, 0.022) * size))


def scatter(canvas, palette, generator):
    """Draw 4 to 9 distractor objects onto `canvas`, about as large as bird parts and in the birds' colours."""
    draw = ImageDraw.Draw(canvas)
    colours = list(palette.values())
    kinds = (_leaf, _berries, _flower, _stone)
    for _ in range(generator.integers(4, 10)):
        middle = generator.random(2) * canvas.width
        radius = generator.uniform(0.03, 0.075) * canvas.width
        colour = mix(colours[generator.integers(len(colours))], generator.uniform(-0.15, 0.1))
        kinds[generator.integers(len(kinds))](draw, middle, radius, colour, generator)


def perch(canvas, place, scale, generator):
    """Draw a branch, a rock or nothing under the feet; `place` maps the bird's units to pixels, `scale` is one unit."""
    kind, bend, thickness = generator.random(), generator.uniform(-0.12, 0.12, 2), generator.uniform(0.05, 0.085)
    bark = mix((112, 82, 58), generator.uniform(-0.3, 0.3))
    bumps = generator.uniform(0.85, 1.1, 9)
    draw = ImageDraw.Draw(canvas)
    if kind < 0.55:
        reach = canvas.width / scale
        along = np.array([[-reach, 0.64 + reach * bend[0]], [-0.3, 0.66], [0.3, 0.66], [reach, 0.64 + reach * bend[1]]])
        for shift, width, tone in ((0.0, 1.0, -0.35), (0.0, 0.8, 0.0), (-0.25, 0.25, 0.25)):
            path = place(along + np.array([0.0, thickness * (0.6 + shift)]))
            pixels = max(1, round(thickness * width * scale))
            draw.line(list(map(tuple, path)), fill=mix(bark, tone), width=pixels, joint="curve")
    elif kind < 0.8:
        turn = np.linspace(0, np.pi, 9)
        rock = np.stack([0.04 - 0.55 * bumps * np.cos(turn), 0.86 - 0.26 * bumps * np.sin(turn)], axis=1)
        rock[[0, -1], 1] = 0.9
        for size, tone in ((1.0, -0.25), (0.9, 0.0), (0.7, 0.12)):
            outline = place((rock - [0.04, 0.82]) * size + [0.04, 0.84])
            draw.polygon(list(map(tuple, outline)), fill=mix((136, 132, 128), tone))


def light(pixels, generator):
    """Brightness, contrast, a tint that changes across the image, grain; (S, S, 3) in [0, 1], also the result."""
    size = len(pixels)
    contrast, brightness = generator.uniform(0.8, 1.15), generator.uniform(-0.08, 0.08)
    tints = generator.uniform(0.88, 1.12, (2, 3)) * generator.uniform(0.9, 1.1, (2, 1))
    angle = generator.uniform(0, 2 * np.pi)
    axis = np.linspace(-0.5, 0.5, size)
    ramp = np.clip(0.5 + np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None], 0, 1)[..., None]  # (S, S, 1)
    grain = generator.standard_normal((size, size, 3), dtype=np.float32) * 0.012
    lit = ((pixels - 0.5) * contrast + 0.5 + brightness) * (tints[0] + ramp * (tints[1] - tints[0])) + grain
    return np.clip(lit, 0, 1)


def _turned(points, middle, angle):
    cosine, sine = np.cos(angle), np.sin(angle)
    return list(map(tuple, np.asarray(points) @ np.array([[cosine, sine], [-sine, cosine]]) + middle))


def _leaf(draw, middle, radius, colour, generator):
    angle = generator.uniform(0, 2 * np.pi)
    along = np.linspace(-1, 1, 9)
    side = 0.45 * (1 - along**2)
    blade = np.concatenate([np.stack([along, side], 1), np.stack([along, -side], 1)[::-1]]) * radius * 1.4
    draw.polygon(_turned(blade, middle, angle), fill=mix(colour, -0.25))
    draw.polygon(_turned(blade * [0.93, 0.8], middle, angle), fill=colour)
    vein = _turned([[-1.8 * radius, 0.0], [1.1 * radius, 0.0]], middle, angle)
    draw.line(vein, fill=mix(colour, -0.4), width=max(1, round(radius * 0.12)))


def _berries(draw, middle, radius, colour, generator):
    for x, y in middle + generator.uniform(-1.0, 1.0, (3, 2)) * radius:
        for share, shift, tone in ((0.62, 0.0, -0.35), (0.54, -0.04, 0.0), (0.16, -0.2, 0.75)):
            size, away = radius * share, radius * shift
            draw.ellipse((x + away - size, y + away - size, x + away + size, y + away + size), fill=mix(colour, tone))


def _flower(draw, middle, radius, colour, generator):
    start = generator.uniform(0, 2 * np.pi)
    heart = mix((236, 200, 70), generator.uniform(-0.4, 0.2))
    for x, y in middle + 0.62 * radius * np.array(
        [[np.cos(start + k), np.sin(start + k)] for k in 1.2566 * np.arange(5)]
    ):
        for share, tone in ((0.5, -0.25), (0.43, 0.08)):
            size = radius * share
            draw.ellipse((x - size, y - size, x + size, y + size), fill=mix(colour, tone))
    x, y, size = *middle, radius * 0.34
    draw.ellipse((x - size, y - size, x + size, y + size), fill=heart)


def _stone(draw, middle, radius, colour, generator):
    turn = np.linspace(0, 2 * np.pi, 10)[:-1]
    rim = np.stack([np.cos(turn), 0.7 * np.sin(turn)], 1) * generator.uniform(0.8, 1.1, (9, 1)) * radius
    angle = generator.uniform(-0.5, 0.5)
    for share, tone in ((1.0, -0.35), (0.88, 0.0), (0.55, 0.15)):
        draw.polygon(_turned(rim * share, middle, angle), fill=mix(colour, tone))
