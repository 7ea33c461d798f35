"""Shapley values of an image's regions: what each region adds to a class's score, fairly shared (Shapley 1953).

An image is a game. Its players are the cells of a grid; a coalition S is the set of cells that are shown, and its worth
v(S) the score of a class while all others are hidden. `grid_values` is exact, for grids of at most MOST cells; what is
learned to predict such values in one pass is trained on `draw_coalitions` and made to add up by `efficient`.
"""

import math

import torch

from xai_utils.images import baseline as named_baseline
from xai_utils.images import perturb
from xai_utils.networks import answering, class_indices, class_scores, evaluating, logits_of

MOST = 16  # players of an exact game: 2^16 passes


def all_coalitions(players):
    """Every coalition, (2^d, d) bool: row r has player i where bit i of r is set. ValueError beyond MOST players."""
    if not 1 <= players <= MOST:
        raise ValueError(
            f"an exact game has 1 to {MOST} players (2^d passes), and this one {players}; take fewer cells"
        )
    return (torch.arange(2**players)[:, None] >> torch.arange(players) & 1).bool()


def shapley_values(worths):
    """The Shapley value of each player, (d, …) float64, of the worths (2^d, …) of `all_coalitions` (Shapley 1953).

    φ_i = Σ_{S without i} |S|! (d - |S| - 1)! / d! (v(S with i) - v(S))

    They add up to v(all) - v(none).
    """
    players = (len(worths) - 1).bit_length()
    coalitions = all_coalitions(players)
    if len(worths) != len(coalitions):
        raise ValueError(f"{len(worths)} worths are none of a game; give one for each of 2^d coalitions")
    share = [1 / (players * math.comb(players - 1, size)) for size in range(players)]
    rows, sizes, values = torch.arange(len(worths)), coalitions.sum(1), []
    for player in range(players):
        without = rows[~coalitions[:, player]]
        gain = worths.double()[without | 1 << player] - worths.double()[without]
        values.append(torch.tensordot(torch.tensor(share, dtype=torch.float64)[sizes[without]], gain, 1))
    return torch.stack(values)


def size_law(players):
    """How probable a drawn coalition of 1 … d - 1 players is, (d - 1,) float64: p(s) ∝ 1 / (s (d - s)).

    The Shapley kernel (d - 1) / (C(d, s) s (d - s)) of one coalition times the C(d, s) of its size: a regression on
    coalitions drawn so has the Shapley values as its solution (Lundberg & Lee 2017, theorem 2).
    """
    sizes = torch.arange(1, players, dtype=torch.float64)
    weights = 1 / (sizes * (players - sizes))
    return weights / weights.sum()


def draw_coalitions(number, players, generator=None):
    """Pairs of coalitions, (2, number, d) bool: sizes by `size_law`, uniform members, the second all that miss.

    A pair's errors cancel in part (Covert & Lee 2021). On the device of the generator. ValueError for less than 2
    players.
    """
    if players < 2:
        raise ValueError(f"a game of {players} players has no coalition to draw; give 2 or more")
    device = generator.device if generator is not None else "cpu"
    law = size_law(players).to(device, torch.float32)
    sizes = 1 + torch.multinomial(law, number, replacement=True, generator=generator)
    ranks = torch.rand(number, players, generator=generator, device=device).argsort(1).argsort(1)
    first = ranks < sizes[:, None]
    return torch.stack([first, ~first])


def efficient(values, total):
    """The nearest values that add up: (…, d) plus an equal share of what they lack of `total` (…)."""
    return values + ((total - values.sum(-1)) / values.shape[-1])[..., None]


def cell_masks(coalitions, size):
    """The pixels that coalitions (…, g²) of the cells of a square grid show, (…, H, W) bool; row by row.

    Pixel (y, x) is of cell (⌊g y / H⌋, ⌊g x / W⌋). ValueError where the players are no square number.
    """
    cells = math.isqrt(coalitions.shape[-1])
    if cells**2 != coalitions.shape[-1]:
        raise ValueError(f"{coalitions.shape[-1]} players are no square grid; give a square number of cells")
    grid = coalitions.unflatten(-1, (cells, cells))
    rows, columns = (torch.arange(side, device=grid.device) * cells // side for side in size)
    return grid[..., rows[:, None], columns]


@torch.no_grad()
def grid_values(model, images, target=None, *, cells=3, baseline="mean", score="softmax", chunk=64):
    """The exact Shapley values of a grid's cells, (N, cells, cells) float64, and what they add up to, (N,) float64.

    2^(cells²) passes an image: 512 of 3 × 3 cells. Hidden cells show `baseline`. The sum is the class's `score` of the
    whole image less that of nothing. `chunk` images pass at a time.
    """
    coalitions = all_coalitions(cells * cells).to(images.device)
    with evaluating(model), answering(model, score):
        target = class_indices(torch.cat([logits_of(model, part) for part in images.split(chunk)]), target)
        hidden, worths = named_baseline(baseline, model, images), []
        for place in range(len(images)):
            found = []
            for masks in cell_masks(coalitions, images.shape[-2:]).split(chunk):
                shown = perturb(images[place].expand(len(masks), -1, -1, -1), masks, hidden[place])
                found.append(class_scores(logits_of(model, shown), target[place].expand(len(masks)), score))
            worths.append(torch.cat(found).cpu())
    worths = torch.stack(worths, 1).double()
    return shapley_values(worths).T.unflatten(1, (cells, cells)), worths[-1] - worths[0]
