"""What gradient maps cost, beside captum alone on the same network: python benchmarks/gradients.py [--json PATH]

Integrated gradients are shown per step, SmoothGrad-Squared per noisy copy, both with one batch per pass. Our ratio to
captum is measured apart, in pairs. See timing.py for how it is measured. About ten minutes.
"""

import warnings

import timing
from captum.attr import GuidedBackprop, IntegratedGradients, NoiseTunnel, Saliency
from timing import Row

from xai_utils.explainers import EXPLAINERS

STEPS = 2  # of integrated gradients, and noisy copies of SmoothGrad-Squared
COPIED, CAPTUM = 1.6, 1.05  # what we promise: time over a plain pass on the inference copy, our time over captum's
PAIRS = 5  # rounds of ours and captum's in turn
NAMES = {
    "gradient": ({}, 1),
    "guided_backprop": ({}, 1),
    "integrated_gradients": ({"steps": STEPS, "chunk": timing.BATCH}, STEPS),
    "smooth_grad_squared": ({"samples": STEPS, "chunk": timing.BATCH}, STEPS),
}


def ours(model, images, target, promised=None):
    return {
        name: Row(
            lambda name=name, options=options: EXPLAINERS[name](model, images, target, **options), passes, promised
        )
        for name, (options, passes) in NAMES.items()
    }


def captums(model, images, target):
    """The same maps from captum alone, with captum's own reduction to channels where it has one."""
    path = {"n_steps": STEPS, "method": "riemann_right", "internal_batch_size": timing.BATCH}
    noise = {"nt_type": "smoothgrad_sq", "nt_samples": STEPS, "nt_samples_batch_size": 1, "stdevs": 0.15}
    functions = {
        "gradient": lambda: Saliency(model).attribute(images, target).amax(1),
        "guided_backprop": lambda: GuidedBackprop(model).attribute(images, target).abs().amax(1),
        "integrated_gradients": lambda: (
            IntegratedGradients(model).attribute(images, target=target, **path).abs().sum(1)
        ),
        "smooth_grad_squared": lambda: NoiseTunnel(Saliency(model)).attribute(images, target=target, **noise).sum(1),
    }
    return {name: Row(function, NAMES[name][1]) for name, function in functions.items()}


def beside(mine, theirs):
    """Our time over captum's: the shortest of `PAIRS` calls of each in turn."""
    taken, plain = timing.measured(theirs.function, {"ours": Row(mine.function)}, PAIRS)
    return round(min(taken["ours"]) / min(plain["ours"]), 3)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="captum")
    model, copied, images, target = timing.setting()
    rows, ratios = {}, {}
    for network, place, promised in ((model, "", None), (copied, ", inference copy", COPIED)):
        mine, theirs = ours(network, images, target, promised), captums(network, images, target)
        for name in NAMES:
            rows[f"{name}{place}"] = mine[name]
            rows[f"captum's {name}{place}"] = theirs[name]
            ratios[f"{name}{place}"] = beside(mine[name], theirs[name])
    timing.run(__doc__, model, images, rows, further={f"ours over captum's (promised {CAPTUM})": ratios})
