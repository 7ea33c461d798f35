"""What maps and curves cost, in one run, beside other libraries and straightforward code: python benchmarks/speed.py

ResNet-50 with random weights, each row on the model as it is, on its inference copy and on its engine. See timing.py
for how it is measured. `--table` writes the tables of docs/benchmarks.md and the sentence of README.md from speed.json
and measures nothing. About 20 minutes.
"""

import argparse
import json
import re
import tempfile
import warnings
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import timing
import torch
from timing import Row
from torch import nn

from xai_utils.explainers import cam_maps, explain
from xai_utils.explainers.cam import CHANNEL_WEIGHTS
from xai_utils.explainers.smoe import combine, normal_cdf
from xai_utils.files import write_text
from xai_utils.images import resize
from xai_utils.metrics.perturbation import faithfulness, perturbation_curves, step_counts
from xai_utils.networks import Surrogate, captured, engine, gate_for, inference_copy, predictor_of, scale_layers

ROOT = Path(__file__).resolve().parents[1]
FILE, DOCS, README = ROOT / "benchmarks/speed.json", ROOT / "docs/benchmarks.md", ROOT / "README.md"
KINDS = ("your model", "inference copy", "engine")
LAYER = "layer4"
MASKS, STEPS, PIXELS_PER_STEP = 7, 8, 12_544  # RISE's masks; M_F's steps; a quarter of the image: five points a curve
ALL_MASKS = 8000
COPIES = 2  # steps of integrated gradients, noisy copies of SmoothGrad-Squared


class Measure(NamedTuple):
    """A row: `function(model, images, target)`, what its time is divided by, and what is promised, by kind."""

    function: object
    passes: int = 1
    promised: tuple = (None, None, None)


def maps(name, **options):
    return partial(explain, method=name, **options)


def curves(model, images, target, *, order):
    """Insertion and deletion with one ranking."""
    steps = {"pixels_per_step": PIXELS_PER_STEP}
    options = {"curves": ("insertion", "deletion"), "insertion": steps, "deletion": steps}
    return perturbation_curves(model, images, target, order, **options)


def measures(model, images):
    """Name -> Measure."""
    order, points = torch.rand(len(images), *images.shape[2:]), 2 * len(step_counts(timing.SIZE**2, PIXELS_PER_STEP))
    cam, found = (1.03, 0.85, 0.60), {"the plain pass": Measure(lambda network, images, _: inferred(network, images))}
    for name in CHANNEL_WEIGHTS:
        found[f"`{name}`"] = Measure(maps(name), 1, cam)
    found["the three together"] = Measure(partial(cam_maps, methods=[*CHANNEL_WEIGHTS]), 1, (1.06, 0.85, 0.62))
    found["`amg`"] = Measure(maps("amg", gate=gate_for(model, images).eval()), 1, (1.05, 0.87, 0.60))
    found["`smoe`"] = Measure(maps("smoe"), 1, (1.03, 0.85, 0.65))
    found["`fastcam`"] = Measure(maps("fastcam"), 1, (1.05, 0.85, 0.65))
    found["`rise`, per mask"] = Measure(maps("rise", masks=MASKS), MASKS + 1, (1.08, 0.80, 0.60))
    found["insertion and deletion, per point"] = Measure(partial(curves, order=order), points, (None, 0.80, 0.60))
    scored = lambda model, images, target: faithfulness(model, images, target, order, steps=STEPS)  # noqa: E731
    found["M_F, per point"] = Measure(scored, STEPS + 1, (None, 0.80, 0.60))
    return found


def gradients():
    """Name -> (options, passes) of methods that differentiate the whole network, and captum's for the same map."""
    from captum.attr import GuidedBackprop, IntegratedGradients, NoiseTunnel, Saliency

    path = {"n_steps": COPIES, "method": "riemann_right", "internal_batch_size": timing.BATCH}
    noise = {"nt_type": "smoothgrad_sq", "nt_samples": COPIES, "nt_samples_batch_size": 1, "stdevs": 0.15}
    return {
        "gradient": ({}, 1, lambda model, x, y: Saliency(model).attribute(x, y).amax(1)),
        "guided_backprop": ({}, 1, lambda model, x, y: GuidedBackprop(model).attribute(x, y).abs().amax(1)),
        "integrated_gradients": (
            {"steps": COPIES, "chunk": timing.BATCH},
            COPIES,
            lambda model, x, y: IntegratedGradients(model).attribute(x, target=y, **path).abs().sum(1),
        ),
        "smooth_grad_squared": (
            {"samples": COPIES, "chunk": timing.BATCH},
            COPIES,
            lambda model, x, y: NoiseTunnel(Saliency(model)).attribute(x, target=y, **noise).sum(1),
        ),
    }


def captums(model, images, target):
    from captum.attr import LayerAttribution, LayerGradCam

    def grad_cam():
        layer = model.network.get_submodule(LAYER)
        found = LayerGradCam(model, layer).attribute(images, target=target, relu_attributions=True)
        return LayerAttribution.interpolate(found.detach(), (timing.SIZE, timing.SIZE), "bilinear")

    return {f"Grad-CAM of captum {metadata.version('captum')}": Row(grad_cam)}


def grad_cams(model, images, target):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def grad_cam():
        with GradCAM(model=model, target_layers=[model.network.get_submodule(LAYER)]) as cam:
            return cam(input_tensor=images, targets=[ClassifierOutputTarget(int(c)) for c in target])

    return {f"Grad-CAM of grad-cam {metadata.version('grad-cam')}": Row(grad_cam)}


def torchcams(model, images, target):
    from torchcam.methods import GradCAM

    def grad_cam():
        with GradCAM(model, target_layer=model.network.get_submodule(LAYER)) as cam:
            return torch.nn.functional.interpolate(cam(target.tolist(), model(images))[0][:, None], timing.SIZE)

    return {f"Grad-CAM of torchcam {metadata.version('torchcam')}": Row(grad_cam)}


def straightforward(model, images):
    """FastCAM eq. 1 and 3 without any of our care for speed: all activations kept, a logarithm for every value."""
    layers = scale_layers(model, images)
    with torch.inference_mode(), captured(model, layers) as activations:
        model(images)
        found = []
        for name in layers:
            x = activations[name] + 1e-7
            mean = x.mean(1)
            found.append(resize(normal_cdf(mean * (mean.log2() - x.log2().mean(1))), images.shape[-2:]))
        return combine(torch.stack(found, 1))


class Free(nn.Module):
    """A network that costs nothing: it only looks at three pixels."""

    mean = torch.tensor([0.5, 0.5, 0.5])

    def forward(self, images):
        return images[:, :, 100, 100]


def peak_bytes(function):
    """The most memory that torch held at once during `function`, from the profiler's record of allocations."""
    function()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(str(Path(folder, "trace.json")))
        events = json.loads(Path(folder, "trace.json").read_bytes())["traceEvents"]
    held = largest = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        largest = max(largest, held)
    return largest


def memory(model, image):
    """What -> (megabytes, promised): maps of one image (1, 3, H, W) beyond a plain pass, and all of RISE's masks."""
    plain = peak_bytes(partial(inferred, model, image))
    found = {name: (peak_bytes(partial(maps(name), model, image)) - plain, 1.0) for name in ("smoe", "fastcam")}
    found["smoe, written straight down"] = peak_bytes(partial(straightforward, model, image)) - plain, None
    found[f"rise, {ALL_MASKS} masks"] = peak_bytes(partial(maps("rise", masks=ALL_MASKS), Free(), image, 0)), 1000.0
    return {name: (round(held / 1e6, 2), promised) for name, (held, promised) in found.items()}


def rows(model, images, target):
    """(name, kind) -> Row."""
    networks = dict(zip(KINDS, (model, inference_copy(model, images), engine(model, images)), strict=True))
    found = {}
    for name, measure in measures(model, images).items():
        for (kind, network), promised in zip(networks.items(), measure.promised, strict=True):
            run = partial(measure.function, network, images, target)
            found[name, kind] = Row(run, measure.passes, promised)
    surrogate, predictor = Surrogate(model).eval(), predictor_of(model, images, controller="customized").eval()
    found["`akd`, answer and map", KINDS[0]] = Row(partial(inferred, surrogate, images), 1, 1.5)
    found["`akd`, answer and map", KINDS[1]] = Row(partial(inferred, inference_copy(surrogate, images), images))
    found["`dgle_cf`", KINDS[0]] = Row(partial(maps("dgle_cf", predictor=predictor), model, images, target), 1, 1.6)
    for name, (options, passes, captum) in gradients().items():
        for kind in KINDS[:2]:
            own = partial(maps(name, **options), networks[kind], images, target)
            found[f"`{name}`" + (", per pass" if passes > 1 else ""), kind] = Row(own, passes)
            found[f"captum's {name}", kind] = Row(partial(captum, networks[kind], images, target), passes)
    for library in (captums, torchcams, grad_cams):
        others = timing.optional(lambda library=library: library(model, images, target))
        found |= {(name, KINDS[0]): row for name, row in others.items()}
    found["`smoe`, written straight down", KINDS[0]] = Row(partial(straightforward, model, images))
    return found


def inferred(network, images):
    with torch.inference_mode():
        return network(images)


def measure(rounds):
    """The content of speed.json."""
    model, _, images, target = timing.setting()
    described = rows(model, images, target)
    taken, plain = timing.measured(partial(inferred, model, images), described, rounds)
    found = []
    for (name, kind), row in described.items():
        ratios = [own / unit for own, unit in zip(taken[name, kind], plain[name, kind], strict=True)]
        about = {"name": name, "kind": kind} | timing.median(ratios) | {"promised": row.promised}
        pairs = zip(taken[name, kind], plain[name, kind], strict=True)
        found.append(about | {"seconds_and_plain_pass": [[round(each, 4) for each in pair] for pair in pairs]})
    beside = []
    for name, (_, passes, _) in gradients().items():
        for kind in KINDS[:2]:
            own = taken[f"`{name}`" + (", per pass" if passes > 1 else ""), kind]
            ratios = [mine / theirs for mine, theirs in zip(own, taken[f"captum's {name}", kind], strict=True)]
            beside.append({"name": name, "kind": kind} | timing.median(ratios) | {"promised": 1.05})
    facts = {"rows": found, "ours_over_captums": beside, "megabytes_and_promised": memory(model, images[:1])}
    return timing.setup("resnet50", rounds) | facts


def cell(row):
    """`1.03 [1.02, 1.05]`, and what was promised where it is not kept."""
    text = "{median:.2f} [{low:.2f}, {high:.2f}]".format(**row)
    return f"{text}, promised {row['promised']:.2f}" if row["promised"] and row["median"] > row["promised"] else text


def table(found):
    """The rows as Markdown, a column per kind."""
    cells = {}
    for row in found:
        cells.setdefault(row["name"], {})[row["kind"]] = cell(row)
    kinds = [kind for kind in KINDS if any(kind in each for each in cells.values())]
    lines = [["", *kinds], ["---", *["---:"] * len(kinds)]]
    lines += [[name, *(each.get(kind, "") for kind in kinds)] for name, each in cells.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def sentence(content):
    """What README.md says of it."""
    found = {(row["name"], row["kind"]): row["median"] for row in content["rows"]}
    own = {name: ", ".join(f"{found[f'`{name}`', kind]:.2f}" for kind in KINDS) for name in ("grad_cam", "fastcam")}
    rise = ", ".join(f"{found['`rise`, per mask', kind]:.2f}" for kind in KINDS)
    others = [
        f"{name.removeprefix('Grad-CAM of ')} {each:.2f}" for (name, _), each in found.items() if "CAM of" in name
    ]
    where = f"{content['processor']} ({content['vectors']})"
    return (
        "Of plain passes of the same ResNet-50, on your model as it is, on its inference copy and on its engine: "
        f"Grad-CAM costs {own['grad_cam']}, FastCAM {own['fastcam']}, RISE {rise} per mask. Grad-CAM of other "
        f"libraries costs {', '.join(others)}. Measured in one run on {where}, two threads; all rows with their "
        "intervals, and which promises were not kept: [docs/benchmarks.md](docs/benchmarks.md)."
    )


def write_tables(content):
    """Put the tables into docs/benchmarks.md and the sentence into README.md."""
    held = (
        f"{name} {size:g} MB" + (f" ({promised:g} promised)" if promised else "")
        for name, (size, promised) in content["megabytes_and_promised"].items()
    )
    told = (
        f"{content['processor']}, {content['vectors']}, torch {content['torch']}, {content['rounds']} rounds.",
        table(content["rows"]),
        "Our time over captum's, on the same network in the same rounds:",
        table(content["ours_over_captums"]),
        f"Memory of one image's map beyond that of the plain pass, and of all of RISE's masks: {', '.join(held)}.",
    )
    for file, text in ((DOCS, "\n\n".join(told)), (README, sentence(content))):
        begin, end = "<!-- speed: `make bench` writes this -->\n", "<!-- end of speed -->"
        pattern = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
        write_text(file, pattern.sub(lambda _, text=text: f"{text}\n", file.read_text(encoding="utf-8")))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=timing.new_file, help="write the measurements there")
    parser.add_argument("--rounds", type=timing.count, default=9, help="interleaved rounds (default 9)")
    parser.add_argument("--table", action="store_true", help="write the tables from speed.json and measure nothing")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore", module="captum")
    if not asked.table:
        content = measure(asked.rounds)
        print(table(content["rows"]), table(content["ours_over_captums"]), sep="\n\n")
        if asked.json:
            asked.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if asked.table or (asked.json and asked.json.resolve() == FILE):
        write_tables(json.loads(FILE.read_text(encoding="utf-8")))
