"""Which method explains which network: python tests/networks_table.py [NAME ...] writes docs/networks.md's table.

Networks of torchvision, timm and transformers with random weights (`follows.settled`), seeded. "ok" is said after
evidence: the map is finite, not constant (in one of DRAWS of the weights), and of the image's size, and what the method
reads of layers follows the picture into each of four corners (in the first, or in the mean of DRAWS), on a square and,
where the network takes one, on an image that is none. With names, the rows of these networks are printed, and nothing
is written. About ten minutes.
"""

import re
import sys
import time
import warnings
from functools import cache, partial
from pathlib import Path

import timm
import torch
import torchvision
import transformers
from follows import cams_show, missed, patched, settled, statistics_show

from xai_utils.explainers import CONTROLS, EXPLAINERS, explain
from xai_utils.explainers.records import LAYER, LAYERS
from xai_utils.files import write_text
from xai_utils.networks import describe

PAGE = Path(__file__).resolve().parent.parent / "docs" / "networks.md"
START, END = "<!-- table: `make networks-table` writes this -->", "<!-- end of table -->"
SIZES = (((128, 128), (128, 192)), ((224, 224),))  # the first that a network takes
LARGE = {"inception_v3", "vit_b_32", "levit_128s", "pit_ti_224"}  # of fewer than 4 x 4 last places at 128
REFUSED = (RuntimeError, ValueError, AssertionError, TypeError)  # what networks say to sizes that they do not take
CLASSES = 10
DRAWS = 5  # of random weights, where with the first all maps are constant or a corner does not show
CONSTANT = "maps are constant"
FEW = 2  # steps, samples, masks of the methods that take many: whether there is a map does not depend on it

TORCHVISION = """
    alexnet vgg11 vgg16_bn resnet18 resnet50 resnext50_32x4d resnet34 densenet121 squeezenet1_1 googlenet
    inception_v3 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large shufflenet_v2_x0_5 shufflenet_v2_x1_0 mnasnet0_5
    mnasnet1_0 efficientnet_b0 efficientnet_b1 efficientnet_v2_s regnet_x_400mf regnet_y_400mf regnet_y_800mf
    convnext_tiny vit_b_16 vit_b_32 swin_t swin_s swin_v2_t
"""
TIMM = """
    test_vit vit_tiny_patch16_224 vit_small_patch14_reg4_dinov2 vit_medium_patch16_reg4_gap_256
    deit_tiny_distilled_patch16_224 eva02_tiny_patch14_224 cait_xxs24_224 xcit_nano_12_p16_224
    levit_128s swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 maxvit_rmlp_pico_rw_256 coatnet_pico_rw_224
    mixer_s16_224 resmlp_12_224 gmlp_ti16_224 convnextv2_atto edgenext_xx_small mobilevit_xxs poolformer_s12
    caformer_s18 tf_efficientnet_lite0 efficientformer_l1 fastvit_t8 repvit_m0_9 repvgg_a0
    hrnet_w18_small dla34 resnetv2_50 pvt_v2_b0 davit_tiny focalnet_tiny_srf tiny_vit_5m_224 pit_ti_224 hiera_tiny_224
    coat_lite_tiny mambaout_femto
"""
TINY = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
STAGED = {"embed_dim": 24, "depths": [2, 2, 2], "num_heads": [2, 4, 8], "window_size": 3}
TRANSFORMERS = {  # name -> the options of a tiny configuration
    "ViT": TINY,
    "DeiT": TINY,
    "Beit": TINY,
    "Dinov2": TINY,
    "Dinov2WithRegisters": TINY,
    "Swin": STAGED,
    "Swinv2": STAGED,
    "ConvNext": {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 2, 1]},
    "ResNet": {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]},
}


def of_torchvision(name, size):
    """A fresh network for images of `size`, (H, W); so do `of_timm` and `of_transformers`."""
    options = {"image_size": size[0]} if name.startswith("vit") else {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # a minute of scipy's
    return torchvision.models.get_model(name, num_classes=CLASSES, **options)


def of_timm(name, size):
    try:
        return timm.create_model(name, num_classes=CLASSES, img_size=size)
    except TypeError:  # a network of any size
        return timm.create_model(name, num_classes=CLASSES)


def of_transformers(name, size):
    options = TRANSFORMERS[name] | ({"patch_size": 16} if TRANSFORMERS[name] is TINY else {})
    side = size[0] if size[0] == size[1] or name.startswith("Dinov2") else size  # DINOv2 fits its positions itself
    config = getattr(transformers, f"{name}Config")(image_size=side, num_labels=CLASSES, **options)
    return getattr(transformers, f"{name}ForImageClassification")(config)


MAKERS = {
    "torchvision": (of_torchvision, TORCHVISION.split()),
    "timm": (of_timm, TIMM.split()),
    "transformers": (of_transformers, TRANSFORMERS),
}


def taken(make, name, seed=0):
    """[(size, network)] of the first SIZES that `name` takes, drawn by `seed`; of one where it takes squares alone."""
    for pair in SIZES[name in LARGE :]:
        found = []
        for size in pair:
            images = torch.rand(4, 3, *size)
            try:
                if found and runs(found[0][1], images):
                    found.append((size, found[0][1]))
                    continue
                torch.manual_seed(seed)
                found.append((size, settled(make(name, size), images)))
            except REFUSED as error:
                failed = error
                break
        if found:
            return found
    raise failed


def runs(network, images):
    """Whether a network takes images of another size than it was made for."""
    try:
        with torch.no_grad():
            network(images)
    except REFUSED:
        return False
    return True


def columns():
    """Name of a column -> its methods: those of one module, which read the same; those that may not apply, alone."""
    found = {}
    for method, record in EXPLAINERS.items():
        if record.part is None and method not in CONTROLS:
            module = record.function.__module__.rpartition(".")[2]
            found.setdefault(method if record.may_not_apply else module, []).append(method)
    return found


def reason(error):
    """What an error says before its advice, without what differs from network to network."""
    shapeless = re.sub(r"(,? \([^)]*\))+", "", str(error).partition(";")[0])
    return re.sub(r"\d+", "n", shapeless)


def unread(drawn):
    """Kind of option -> what the layers that methods with such an option read miss of the picture, of any size.

    By the first draw of weights; where something is missed, by the mean of all: random weights may hide a corner or
    put it elsewhere, each draw in its own way; a layer that is read in a wrong order puts it there in all.
    """
    found = {}
    for kind, show in ((LAYER, cams_show), (LAYERS, statistics_show)):
        found[kind] = _missed_by(show, [drawn(0)])
        if any(found[kind]):
            found[kind] = _missed_by(show, [drawn(seed) for seed in range(DRAWS)])
    return found


def _missed_by(show, draws):
    """What layers miss by the mean over `draws` of the networks for each size, or why none can be read: sentences."""
    found = set()
    for each in zip(*draws, strict=True):
        try:
            seen = [show(network, patched(*size)) for size, network in each]
        except ValueError as error:
            found.add(reason(error))
            continue
        # which layers are read may depend on the weights, where some let nothing through
        layers = dict.fromkeys(layer for one in seen for layer in one)
        mean = {layer: torch.stack([one[layer] for one in seen if layer in one]).mean(0) for layer in layers}
        found |= {f"{layer} misses the {', '.join(corners)} corner" for layer, corners in missed(mean).items()}
    return found


def failures(model, images, method):
    """Why `method` gives no finite map of `images`, or constant ones alone: sentences, none where it does.

    Where nothing speaks for a class its maps are constant, which random weights often bring about.
    """
    options = {each.name: max(FEW, each.low) for each in EXPLAINERS[method].options if each.multiplies}
    if EXPLAINERS[method].keywords.get("baseline") == "mean":
        options["baseline"] = "black"  # networks stand here without the normalisation that has a mean colour
    try:
        maps = explain(model, images, torch.arange(len(images)), method=method, **options)
    except ValueError as error:
        return {reason(error)}
    if maps.shape != (len(images), *images.shape[-2:]) or not maps.isfinite().all():
        return {"maps are not finite, or not as large as the images"}
    return set() if (maps.amax((1, 2)) > maps.amin((1, 2))).any() else {CONSTANT}


def row(drawn, reasons):
    """The cells of one network: sizes, what `describe` finds, and each column's verdict; `reasons` grows.

    `drawn`: seed -> its `taken`.
    """
    networks = drawn(0)
    (size, network), *_ = networks
    images, missing = patched(*size)[:, 0], unread(drawn)
    found = describe(network, images).rows
    cells = [
        " and ".join(f"{height} × {width}" for (height, width), _ in networks),
        f"`{found[0][1]}` {found[0][2]}, {found[0][3].replace('x', '×')}",
        ", ".join(f"`{each[1]}`" for each in found[1:]),
    ]
    for methods in columns().values():
        whys = set()
        for method in methods:
            found = (failures(drawn(seed)[0][1], images, method) for seed in range(DRAWS))
            whys |= next((each for each in found if CONSTANT not in each), {CONSTANT})
            whys |= set().union(*(missing.get(option.kind, ()) for option in EXPLAINERS[method].options))
        notes = sorted(reasons.setdefault(why, len(reasons) + 1) for why in whys)
        cells.append(f"no {', '.join(f'[{note}]' for note in notes)}" if notes else "ok")
    return cells


def table(names=()):
    """The lines of the table, of all networks or of `names`, and of what stands under it; rows are told at once."""
    reasons, lines = {}, []
    for library, (make, known) in MAKERS.items():
        for name in known:
            if names and name not in names:
                continue
            start = time.perf_counter()
            cells = row(cache(partial(taken, make, name)), reasons)
            lines.append(f"| {library} | {name} | {' | '.join(cells)} |")
            print(f"{time.perf_counter() - start:5.1f} s {lines[-1]}", file=sys.stderr)
    heads = ["library", "network", "pixels", "class activation maps", "statistics of scales", *columns()]
    labels = [
        f"{column}: {', '.join(EXPLAINERS[each].label for each in methods)}" for column, methods in columns().items()
    ]
    return [
        "; ".join(labels) + ".",
        "",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
        *lines,
        "",
        *(f"[{number}] {why}  " for why, number in reasons.items()),
    ]


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)  # random weights let activations fade, which makes passes ten times slower
    lines = "\n".join(table(sys.argv[1:]))
    if sys.argv[1:]:
        print(lines)
    else:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
        write_text(PAGE, f"{before}{START}\n{lines}\n{END}{rest.partition(END)[2]}")
