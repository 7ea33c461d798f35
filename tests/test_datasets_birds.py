"""Drawn birds: the catalogue's rules, and pictures that change exactly where a part changes."""

from pathlib import Path

import numpy as np
import pytest

from xai_utils import datasets
from xai_utils.datasets import DataError, birds

SPECIES = Path(__file__).resolve().parent.parent / "data" / "birds"


@pytest.fixture(scope="module")
def catalogue():
    return datasets.load_catalogue(SPECIES / "species.yaml")


def grow(mask, by):
    padded = np.pad(mask, by)
    height, width = mask.shape
    return np.any([padded[y : y + height, x : x + width] for y in range(2 * by + 1) for x in range(2 * by + 1)], axis=0)


def test_every_species_has_a_neighbour_one_or_two_parts_away(catalogue):
    """At least twelve species; the nearest neighbour of each differs in one or two parts, never eye or legs alone."""
    assert len(catalogue.species) >= 12
    differing = datasets.differing_parts(catalogue)
    assert len(differing) == len(catalogue.species) * (len(catalogue.species) - 1)
    for a in catalogue.species:
        counts = [len(differing[a, b]) for b in catalogue.species if b != a]
        assert min(counts) in (1, 2)
    assert differing["capped blue finch", "crested blue finch"] == ("crest",)
    assert differing["teal-winged sand thrush", "violet-headed sand thrush"] == ("wing", "tail")
    assert all(set(parts) - {"eye", "legs"} for parts in differing.values())


CREST = "crest: {shape: cap, colour: charcoal}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (CREST, "crest: {shape: swept, colour: crimson}", "'capped blue finch'.*'crested blue finch' in 0 parts"),
        (CREST, "crest: {shape: cap, colour: mauve}", "'capped blue finch': crest has colour 'mauve'; known.*crimson"),
        (CREST, "crest: {shape: bun, colour: teal}", "'capped blue finch': crest has shape 'bun'; known.*cap, swept"),
        (CREST, "hat: {shape: cap, colour: teal}", "'capped blue finch': unknown part 'hat'; the parts are body"),
        (CREST, "", "'capped blue finch': part 'crest' must be"),
        ('"#c8202f"', '"red"', "palette: crimson: 'red' is not a colour"),
        ("[0.16, -0.16], [0.16, -0.16]", "[0.16, .nan]", "shapes: beak: cone: points must be at least 3"),
        ("width: 0.03,", "width: thick,", "a line needs"),
        ("species:", "spices:", "'species' is missing"),
        ("palette:", "palette: [", "not valid YAML"),
    ],
)
def test_a_wrong_catalogue_is_refused_by_name(tmp_path, old, new, message):
    """Each mistake in species.yaml names the species or the shape, and what is allowed."""
    text = (SPECIES / "species.yaml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "species.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        datasets.load_catalogue(path)


def test_a_species_that_differs_in_too_many_or_too_small_parts_is_refused(tmp_path):
    """A loner three parts away from all others, and one that differs in its legs only, are both refused by name."""
    lines = (SPECIES / "species.yaml").read_text(encoding="utf-8").splitlines()
    start = lines.index("  capped blue finch:")
    own = lines[start + 1 : start + 9]
    loner = [line.replace("sky", "grey").replace("orange", "rose") for line in own]
    legs = [*own[:-1], own[-1].replace("rust", "grey")]
    for extra, message in (
        (loner, r"'odd bird' differs from its nearest.*in 3 parts \(body, head, beak\)"),
        (legs, "'capped blue finch' differs from 'odd bird' only in legs"),
    ):
        path = tmp_path / "species.yaml"
        path.write_text("\n".join([*lines, "  odd bird:", *extra]), encoding="utf-8")
        with pytest.raises(DataError, match=message):
            datasets.load_catalogue(path)


def test_render_is_decided_by_its_seed(catalogue):
    """Same seed, same bytes; another seed, another picture."""
    first, again, other = (datasets.render(catalogue, "crested blue finch", seed) for seed in (7, 7, 8))
    assert first.image.dtype == first.parts.dtype == np.uint8
    assert first.image.shape == (96, 96, 3)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.parts.tobytes() == again.parts.tobytes()
    assert (first.image != other.image).mean() > 0.5


def seen(catalogue, looks, seed, part, size):
    """Pixels of which at least one of the small pixels, before averaging, shows `part`: bool (size, size)."""
    _, labels = birds.draw_large(catalogue, looks, np.random.default_rng(seed), size)
    small = np.asarray(labels) == datasets.PARTS.index(part) + 1
    return small.reshape(size, birds.SUPERSAMPLING, size, birds.SUPERSAMPLING).any(axis=(1, 3))


@pytest.mark.parametrize("part", datasets.PARTS)
def test_removing_a_part_changes_nothing_elsewhere(catalogue, part):
    """Without a part, exactly no pixel changes that did not show it, and what was seen of other parts stays."""
    for seed, species in enumerate(list(catalogue.species)[::3]):
        whole = datasets.render(catalogue, species, seed, size=64)
        less = datasets.render(catalogue, species, seed, size=64, without=part)
        changed = (whole.image != less.image).any(axis=2)
        assert not (changed & ~seen(catalogue, catalogue.species[species], seed, part, 64)).any()
        number = datasets.PARTS.index(part) + 1
        there = whole.parts == number
        assert changed[there].mean() > 0.9
        assert not (less.parts == number).any()
        assert np.array_equal(less.parts[~there], whole.parts[~there])


@pytest.mark.parametrize("part", [part for part in datasets.PARTS if part not in ("eye", "legs")])
def test_swapping_a_part_changes_nothing_elsewhere(catalogue, part):
    """With another species' part, exactly no pixel changes that showed neither the old nor the new part."""
    species = list(catalogue.species)
    for seed, a in enumerate(species):
        b = next(name for name in species if catalogue.species[name][part] != catalogue.species[a][part])
        own = datasets.render(catalogue, a, seed, size=48)
        swapped = datasets.render(catalogue, a, seed, size=48, swap={part: b})
        changed = (own.image != swapped.image).any(axis=2)
        new = catalogue.species[a] | {part: catalogue.species[b][part]}
        either = [seen(catalogue, looks, seed, part, 48) for looks in (catalogue.species[a], new)]
        assert changed.any()
        assert not (changed & ~(either[0] | either[1])).any()


def test_with_all_parts_swapped_it_is_the_other_species(catalogue):
    """A seed decides everything but the species: all parts of another species make that species' picture."""
    a, b = "capped blue finch", "plumed rose parrot"
    swapped = datasets.render(catalogue, a, 9, size=48, swap=dict.fromkeys(datasets.PARTS, b))
    other = datasets.render(catalogue, b, 9, size=48)
    assert np.array_equal(swapped.image, other.image)
    assert swapped.box == other.box


def test_part_map_and_box_fit_the_picture(catalogue):
    """Every part is in the map; the map's pixels are what the bird changed; the box is tight around all of them."""
    for seed, species in enumerate(catalogue.species):
        bird = datasets.render(catalogue, species, seed)
        assert set(np.unique(bird.parts)) == set(range(len(datasets.PARTS) + 1))
        x0, y0, x1, y1 = bird.box
        inside = bird.parts[y0:y1, x0:x1] > 0
        assert inside.sum() == (bird.parts > 0).sum()
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()
        assert 0.38 <= max(x1 - x0, y1 - y0) / 96 <= 0.82
    assert set(birds.BACK_TO_FRONT) == set(datasets.PARTS)


def test_the_part_map_has_the_colours_of_its_parts(catalogue):
    """A wing swapped from indigo to yellow turns yellower at the wing's pixels and nowhere else."""
    blue = datasets.render(catalogue, "crested blue finch", 3)
    gold = datasets.render(catalogue, "crested blue finch", 3, swap={"wing": "gold-winged blue finch"})
    wing = blue.parts == datasets.PARTS.index("wing") + 1
    yellower = (gold.image.astype(int) - blue.image.astype(int)) @ [1, 1, -2]
    assert (yellower[wing] > 60).mean() > 0.8
    assert not yellower[~grow(wing, 3)].any()


def test_birds_stand_anywhere(catalogue):
    """Birds are often far from the middle, so that a centred map explains them badly."""
    boxes = np.array([datasets.render(catalogue, "plumed rose parrot", seed, size=32).box for seed in range(60)])
    middles = (boxes[:, :2] + boxes[:, 2:]) / 64
    assert (np.abs(middles - 0.5).max(axis=1) > 0.12).mean() > 0.4
    assert middles.min() < 0.33
    assert middles.max() > 0.67


def test_render_names_what_it_does_not_know(catalogue):
    """Unknown species and parts are errors that list the known ones."""
    for options, message in (
        ({"species": "dodo"}, "unknown species 'dodo'; the catalogue has capped blue finch"),
        ({"without": "fin"}, "unknown part 'fin'; the parts are body, head"),
        ({"swap": {"fin": "capped blue finch"}}, "unknown part 'fin'"),
        ({"swap": {"wing": "dodo"}}, "unknown species 'dodo'"),
    ):
        with pytest.raises(ValueError, match=message):
            datasets.render(catalogue, **{"species": "capped blue finch", "seed": 0} | options)
