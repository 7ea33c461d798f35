"""The catalogue of invented birds: which parts there are, their shapes and colours, and which species has which."""

from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from xai_utils.datasets.errors import DataError

PARTS = ("body", "head", "beak", "wing", "tail", "crest", "eye", "legs")  # part id = position + 1; 0 is background
TOO_SMALL = {"eye", "legs"}  # a few pixels at 96 px: nobody could tell species apart by these alone


@dataclass(frozen=True)
class Line:
    """A polyline of a shape: `width` in body lengths, `tone` -1 black .. 0 the part's colour .. 1 white."""

    points: np.ndarray  # (k, 2)
    width: float
    tone: float


@dataclass(frozen=True)
class Shape:
    """One shape of a part: a closed outline (possibly without points) and the lines drawn over it."""

    outline: np.ndarray  # (m, 2)
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Catalogue:
    """`palette` name -> (r, g, b); `shapes` part -> name -> Shape; `species` name -> part -> (shape, colour)."""

    palette: dict[str, tuple[int, int, int]]
    shapes: dict[str, dict[str, Shape]]
    species: dict[str, dict[str, tuple[str, str]]]

    def other_looks(self, species, part):
        """The looks of `part` that `species` does not have, each once, by the first species that has it: a tuple."""
        first = {}
        for name, looks in self.species.items():
            first.setdefault(looks[part], name)
        return tuple(name for look, name in first.items() if look != self.species[species][part])


def load_catalogue(path):
    """Read and check `species.yaml` (its own comments describe the format); returns a Catalogue.

    Raises DataError that names the offending entry: also for a species whose nearest neighbour differs in no part,
    in more than two, or in nothing that can be seen at a small size.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            raw = YAML(typ="safe", pure=True).load(file)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the species catalogue cannot be read ({error})") from error
    except YAMLError as error:
        raise DataError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    palette, shapes, species = (_mapping(raw, section, path) for section in ("palette", "shapes", "species"))
    catalogue = Catalogue(
        palette={str(name): _colour(value, f"{path}: palette: {name}") for name, value in palette.items()},
        shapes=_shapes(shapes, path),
        species={str(name): _mapping(species, name, path) for name in species},
    )
    for name, parts in catalogue.species.items():
        catalogue.species[name] = _looks(name, parts, catalogue, path)
    _check_neighbours(catalogue, path)
    return catalogue


def differing_parts(catalogue):
    """For each ordered pair of species (a, b): the tuple of parts in which shape or colour differ, in PARTS order."""
    return {
        (a, b): tuple(part for part in PARTS if catalogue.species[a][part] != catalogue.species[b][part])
        for a, b in permutations(catalogue.species, 2)
    }


def _check_neighbours(catalogue, path):
    if len(catalogue.species) < 2:
        raise DataError(f"{path}: a catalogue needs at least two species, it has {len(catalogue.species)}")
    differing = differing_parts(catalogue)
    for a in catalogue.species:
        b, parts = min(((b, differing[a, b]) for b in catalogue.species if b != a), key=lambda pair: len(pair[1]))
        if not 1 <= len(parts) <= 2:
            listed = ", ".join(parts) or "no part"
            raise DataError(
                f"{path}: species '{a}' differs from its nearest neighbour '{b}' in {len(parts)} parts ({listed}); "
                "change shapes or colours so that exactly one or two parts differ"
            )
        for other in catalogue.species:
            if other != a and set(differing[a, other]) <= TOO_SMALL:
                raise DataError(
                    f"{path}: species '{a}' differs from '{other}' only in {' and '.join(differing[a, other])}, "
                    f"too small to see; let one of {', '.join(p for p in PARTS if p not in TOO_SMALL)} differ"
                )


def _mapping(raw, key, path):
    value = raw.get(key) if isinstance(raw, dict) else None
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path}: '{key}' is missing or not a mapping; give it as 'name: value' lines")
    return value


def _colour(value, where):
    text = str(value)
    try:
        if len(text) != 7 or text[0] != "#":
            raise ValueError
        return tuple(bytes.fromhex(text[1:]))
    except ValueError:
        raise DataError(f'{where}: {text!r} is not a colour; write it as "#rrggbb", in quotes') from None


def _shapes(raw, path):
    unknown = sorted(set(map(str, raw)) - set(PARTS))
    if unknown:
        raise DataError(f"{path}: shapes: unknown part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    shapes = {}
    for part in PARTS:
        shapes[part] = {}
        for name, entry in _mapping(raw, part, path).items():
            where = f"{path}: shapes: {part}: {name}"
            if not isinstance(entry, dict) or not ({"outline", "lines"} & set(entry)):
                raise DataError(f"{where}: give an 'outline' of points, 'lines', or both")
            outline = np.zeros((0, 2))
            if "outline" in entry:
                outline = smooth_outline(_points(entry["outline"], 3, where))
            lines = tuple(_line(line, where) for line in entry.get("lines") or ())
            shapes[part][str(name)] = Shape(outline, lines)
    return shapes


def _line(raw, where):
    try:
        return Line(_points(raw["points"], 2, where), float(raw["width"]), float(raw["tone"]))
    except (TypeError, KeyError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: a line needs 'width', 'tone' and 'points'; got {raw!r}") from None


def _points(raw, least, where):
    try:
        points = np.array(raw, dtype=np.float64)
    except (TypeError, ValueError):
        points = np.zeros(0)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < least or not np.isfinite(points).all():
        raise DataError(f"{where}: points must be at least {least} pairs [x, y] of finite numbers")
    return points


def _looks(name, parts, catalogue, path):
    looks = {}
    for part in parts:
        if part not in PARTS:
            raise DataError(f"{path}: species '{name}': unknown part {part!r}; the parts are {', '.join(PARTS)}")
    for part in PARTS:
        entry = parts.get(part)
        if not isinstance(entry, dict) or set(entry) != {"shape", "colour"}:
            raise DataError(f"{path}: species '{name}': part '{part}' must be {{shape: ..., colour: ...}}")
        for key, known in (("shape", catalogue.shapes[part]), ("colour", catalogue.palette)):
            if entry[key] not in known:
                raise DataError(
                    f"{path}: species '{name}': {part} has {key} {entry[key]!r}; known are {', '.join(known)}"
                )
        looks[part] = (entry["shape"], entry["colour"])
    return looks


def smooth_outline(points, steps=6):
    """Closed Catmull-Rom curve through `points` (k, 2), `steps` samples per segment; (m, 2).

    Tangent at p_i: (p_{i+1} - p_{i-1}) / 2. A point written twice makes a corner, since its two copies take their
    tangents from one side each; the segment between the copies has no length and is left out.
    """
    before, after, beyond = np.roll(points, 1, 0), np.roll(points, -1, 0), np.roll(points, -2, 0)
    moves = (after != points).any(axis=1)
    t = (np.arange(steps) / steps)[:, None, None]
    curve = (  # cubic Hermite basis: start, its tangent, end, its tangent
        (2 * t**3 - 3 * t**2 + 1) * points
        + (t**3 - 2 * t**2 + t) * (after - before) / 2
        + (3 * t**2 - 2 * t**3) * after
        + (t**3 - t**2) * (beyond - points) / 2
    )  # (steps, k, 2)
    return curve[:, moves].swapaxes(0, 1).reshape(-1, 2)
