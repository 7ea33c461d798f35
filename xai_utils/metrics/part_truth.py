"""Part truth: does the map lie on the parts that decide? Which ones do is measured by changing them, not assumed.

A drawn bird can be drawn again with one part of another species, and not a pixel more (`Data.render_again`). What
the network then says of the explained class tells whether that part decides. So the truth is of one image, one network
and the class that is explained: where the target is wrong, the parts found are those that mislead it. Other data sets
cannot be drawn again: these metrics have no value there, and nothing is claimed.
"""

from typing import NamedTuple

import numpy as np
import torch

from xai_utils.images import keep_top, rank_pixels
from xai_utils.metrics.localisation import aligned, mass_share
from xai_utils.networks import answering, class_indices, class_scores, evaluating, logits_of

THRESHOLD = 0.5  # of the class's probability: on the birds most parts take nearly nothing of it or nearly all


class DecidingParts(NamedTuple):
    """What changing the P parts (`Data.part_names`) of N images did to the explained class; all on the CPU."""

    target: torch.Tensor  # (N,) the explained classes
    score: torch.Tensor  # (N,) of that class, on the image as it is, by default its probability
    drops: torch.Tensor  # (N, P) the largest fall of it that another look of the part brings; negative: it only rises
    decides: torch.Tensor  # (N, P) bool
    masks: torch.Tensor  # (N, H, W) bool, true where a deciding part is seen


def deciding_parts(
    model, data, split, indices, target=None, *, threshold=THRESHOLD, score="softmax", device="cpu", chunk=64
):
    """Which parts decide for the images `indices` of `split` ("train" or "validation") of drawn `data`: DecidingParts.

    Every part is replaced by every other look that it has in the catalogue (`Catalogue.other_looks`), one at a time.
    It decides if one of them takes more than the share `threshold` of the class's `score` (`networks.SCORES`), if
    that is positive. A part without another look has a NaN drop and does not decide. `model` is on `device`; `chunk`
    images go through it at once. Draws some 30 pictures per image, about half a second; nothing is random.

    ValueError for data that cannot be drawn again, and for a threshold outside [0, 1).

    Notes: a mask is where the part is seen in the image. What another look would cover beside it (a longer crest in
    place of a cap) may be evidence too, by its absence, and counts as background.
    """
    if data.catalogue is None:
        raise ValueError(
            f"{data.folder} holds {data.description['kind']} data, whose parts cannot be changed; leave part truth out"
        )
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold is {threshold}; give a share of the class's probability, 0 or more and below 1")
    indices, own = np.asarray(indices, dtype=np.int64), getattr(data, split)
    whole, drops, explained = torch.zeros(len(indices)), torch.zeros(len(indices), len(data.part_names)), []
    with evaluating(model), torch.no_grad(), answering(model, score):
        for row, index in enumerate(indices.tolist()):
            parts, changed = _changed(data, split, index)
            pictures = torch.cat([own.tensor([index]), changed])
            logits = torch.cat([logits_of(model, part.to(device)).cpu() for part in pictures.split(chunk)])
            asked = None if target is None else torch.as_tensor(target).cpu()[[row]]
            explained.append(class_indices(logits[:1], asked))
            scores = class_scores(logits, explained[-1].expand(len(logits)), score)  # (1 + V,)
            whole[row] = scores[0]
            falls = torch.full((len(data.part_names),), torch.nan)
            drops[row] = falls.scatter_reduce(0, parts, scores[0] - scores[1:], "amax", include_self=False)
    decides = (drops > threshold * whole[:, None]) & (whole > 0)[:, None]
    seen = torch.from_numpy(own.parts[indices]).long()  # (N, H, W), 0 or part + 1
    table = torch.cat([torch.zeros(len(indices), 1, dtype=torch.bool), decides], 1)
    masks = table.gather(1, seen.flatten(1)).reshape(seen.shape)
    return DecidingParts(torch.cat(explained), whole, drops, decides, masks)


def _changed(data, split, index):
    """One bird with each change of one part: the part's place in `part_names` (V,), the images (V, 3, H, W)."""
    own = getattr(data, split)
    species = data.classes[own.labels[index]]
    changes = [
        (place, {part: other})
        for place, part in enumerate(data.part_names)
        for other in data.catalogue.other_looks(species, part)
    ]
    drawn = [data.render_again(split, index, swap=swap).image.transpose(2, 0, 1) for _, swap in changes]
    return torch.tensor([place for place, _ in changes]), torch.from_numpy(np.stack(drawn)).float() / 255


def part_truth(model, images, target, maps, *, part_masks):
    """Share of the map's mass on the deciding parts (N,), in [0, 1], higher is better (Arras et al. 2022, "mass").

    sum of (map - min map) on the parts / sum of (map - min map)

    The mass of a pixel is the map less its minimum. Chance, and the value of a constant map, is the parts' share of
    the image (`area_share`). `part_masks` (N, H, W) as in `DecidingParts`; NaN where no part decides, or none of those
    that do is seen. Needs no model.
    """
    masks, maps = aligned(maps, part_masks)
    return mass_share(maps - maps.amin((1, 2), keepdim=True), masks)


def part_truth_top(model, images, target, maps, *, part_masks):
    """Share of the top k pixels on the deciding parts (N,), k their number of pixels (Arras et al. 2022, "rank").

    |top k ∩ parts| / k

    In [0, 1], higher is better, 1 where they come before all others. Chance, mask and NaN as in `part_truth`; a
    constant map ranks nothing and scores chance. Needs no model.
    """
    masks, maps = aligned(maps, part_masks)
    counts = masks.sum((1, 2))
    hits = (keep_top(rank_pixels(maps), counts) & masks).sum((1, 2)) / counts  # 0 / 0 = NaN: nothing decides
    constant = maps.amax((1, 2)) == maps.amin((1, 2))
    return torch.where(constant & (counts > 0), area_share(masks), hits)


def area_share(part_masks):
    """The deciding parts' share of the image (N,): what a map that knows nothing scores in both metrics."""
    return torch.as_tensor(part_masks).float().mean((1, 2)).cpu()
