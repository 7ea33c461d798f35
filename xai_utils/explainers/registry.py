"""All methods by name. To add one: write its function, and a record here.

`Explainer` says what a record holds; a test over all records keeps them in step with the functions.
"""

import math

import torch

from xai_utils.explainers import (
    attention_gate,
    cam,
    controls,
    effect_predictor,
    gradients,
    lovi,
    mask_predictor,
    masking,
    optimisation,
    smoe,
    surrogate,
    transformers,
)
from xai_utils.explainers.activation_statistics import STATISTICS
from xai_utils.explainers.records import FLAG, IMAGES, LAYER, LAYERS, NUMBER, SCORE, WORD, Explainer, Option
from xai_utils.files import file_name
from xai_utils.images import BASELINES, require_pixels
from xai_utils.networks import answering, checked_target, engine_of
from xai_utils.networks.attention_gate import GATE_INPUTS
from xai_utils.networks.layers import bare

AT_LAYER = Option("layer", LAYER)
SAMPLES = Option("samples", low=1, high=100_000, offered=(1, 2000), multiplies=True)
STEPS = Option("steps", low=2, high=100_000, offered=(2, 500), multiplies=True)
NOISE = Option("noise_fraction", NUMBER, low=0, offered=(0.0, 1.0))
SEED = Option("seed", low=0, high=2**31 - 1, offered=(0, 2**31 - 1))
OVER = Option("over", WORD, choices=tuple(gradients.ATTRIBUTIONS))
BASELINE = Option("baseline", WORD, choices=tuple(BASELINES), other=(torch.Tensor,))
SCALES = (
    Option("statistic", WORD, choices=tuple(STATISTICS)),
    Option("weights", WORD, choices=tuple(lovi.LAYER_WEIGHTS), other=(list, tuple, torch.Tensor)),
    Option("normalisation", WORD, choices=tuple(smoe.NORMALISATIONS)),
    Option("layers", LAYERS),
)
WITH_CAM = (Option("cam", WORD, choices=tuple(cam.CHANNEL_WEIGHTS)), AT_LAYER, *SCALES)
SMOOTHED = (OVER, SAMPLES, NOISE, STEPS)

AKD, DGLE = "Lee & Kim 2021 (AKD)", "DGLE"
FASTCAM, AMG = "Mundhenk et al. 2019 (FastCAM)", "An & Joe 2022 (AMG)"

EXPLAINERS = {
    "akd": Explainer(surrogate.akd, "AKD", AKD, "§3.4", part=surrogate.PART),
    "akd_unoptimised": Explainer(
        surrogate.akd_unoptimised, "AKD, untuned λ", AKD, "§4.3", part=surrogate.PART, variant_of="akd"
    ),
    "dgle_bf": Explainer(mask_predictor.dgle_bf, "DGLE, BF", DGLE, "eq. 5", part=mask_predictor.PART),
    "dgle_cf": Explainer(mask_predictor.dgle_cf, "DGLE, CF", DGLE, "eq. 6", part=mask_predictor.PART),
    "mgnet": Explainer(mask_predictor.mgnet, "MGnet", "Dabkowski & Gal 2017", part=mask_predictor.PART),
    "amg": Explainer(
        attention_gate.amg,
        "AMG",
        AMG,
        "eq. 2-7",
        options=(
            Option("gate_input", WORD, choices=GATE_INPUTS, optional=True),
            Option("composition", WORD, choices=attention_gate.COMPOSITIONS),
        ),
        part=attention_gate.PART,
    ),
    "removal_effect": Explainer(
        effect_predictor.removal_effect,
        "Removal effect",
        "this repository",
        options=(Option("concentration", NUMBER, low=1e-6, offered=(1.0, 64.0), optional=True),),
        part=effect_predictor.PART,
    ),
    "fast_shap": Explainer(
        effect_predictor.fast_shap, "FastSHAP", "Jethani et al. 2022", part=effect_predictor.PART, signed=True
    ),
    "rise": Explainer(
        masking.rise,
        "RISE",
        "Petsiuk et al. 2018",
        "eq. 6",
        options=(
            Option("masks", low=1, high=1_000_000, offered=(1, 20000), multiplies=True),
            Option("cells", low=1, high=1024, offered=(2, 16)),
            Option("probability", NUMBER, low=0, high=1),
            BASELINE,
            Option("estimator", WORD, choices=masking.ESTIMATORS),
            Option("until", NUMBER, low=0, high=1, offered=(0.5, 1.0)),
            SCORE,
            SEED,
        ),
    ),
    "lime": Explainer(
        masking.lime, "LIME", "Ribeiro et al. 2016", "eq. 2", options=(SAMPLES, SCORE, SEED), signed=True
    ),
    "meaningful_perturbation": Explainer(
        optimisation.meaningful_perturbation,
        "Meaningful perturbation",
        "Fong & Vedaldi 2017",
        "eq. 6",
        options=(
            Option("iterations", low=1, high=100_000, offered=(1, 2000), multiplies=True),
            Option("learning_rate", NUMBER, low=0),
            Option("area_weight", NUMBER, low=0),
            Option("smoothness_weight", NUMBER, low=0),
            Option("hidden", WORD, choices=tuple(BASELINES), other=(torch.Tensor,)),
            SCORE,
            SEED,
        ),
    ),
    "grad_cam": Explainer(
        cam.grad_cam, "Grad-CAM", "Selvaraju et al. 2017", "eq. 1-2", options=(AT_LAYER,), together=cam.cam_maps
    ),
    "grad_cam_plus_plus": Explainer(
        cam.grad_cam_plus_plus,
        "Grad-CAM++",
        "Chattopadhay et al. 2018",
        "eq. 5, 7, 19",
        options=(AT_LAYER,),
        together=cam.cam_maps,
    ),
    "xgrad_cam": Explainer(
        cam.xgrad_cam, "XGrad-CAM", "Fu et al. 2020", "eq. 9", options=(AT_LAYER,), together=cam.cam_maps
    ),
    "smooth_grad_cam_plus_plus": Explainer(
        cam.smooth_grad_cam_plus_plus,
        "Smooth Grad-CAM++",
        "Omeiza et al. 2019",
        options=(AT_LAYER, SAMPLES, NOISE, Option("average_cams", FLAG)),
    ),
    "smoe": Explainer(smoe.smoe, "SMOE Scale", FASTCAM, "eq. 1-3", options=SCALES),
    "fastcam": Explainer(smoe.fastcam, "FastCAM", FASTCAM, "§3.2", options=WITH_CAM),
    "non_class": Explainer(smoe.non_class, "FastCAM, not the class", FASTCAM, "§3.2", options=WITH_CAM),
    "gradient": Explainer(gradients.gradient, "Gradient", "Simonyan et al. 2014", "§3"),
    "guided_backprop": Explainer(
        gradients.guided_backprop, "Guided backprop", "Springenberg et al. 2015", "§3.4", may_not_apply=True
    ),
    "integrated_gradients": Explainer(
        gradients.integrated_gradients,
        "Integrated Gradients",
        "Sundararajan et al. 2017",
        "eq. 1, 3",
        options=(STEPS, BASELINE),
    ),
    "expected_gradients": Explainer(
        gradients.expected_gradients,
        "Expected Gradients",
        "Erion et al. 2021",
        options=(SAMPLES, Option("baselines", IMAGES, optional=True), SEED),
    ),
    "smooth_grad": Explainer(gradients.smooth_grad, "SmoothGrad", "Smilkov et al. 2017", "§3", options=SMOOTHED),
    "smooth_grad_squared": Explainer(
        gradients.smooth_grad_squared, "SmoothGrad²", "Hooker et al. 2019", "§4.2", options=SMOOTHED
    ),
    "attention_rollout": Explainer(
        transformers.attention_rollout,
        "Attention rollout",
        "Abnar & Zuidema 2020",
        "eq. 1",
        options=(Option("heads", WORD, choices=tuple(transformers.HEADS)),),
        may_not_apply=True,
    ),
    "transformer_attribution": Explainer(
        transformers.transformer_attribution,
        "Transformer attribution",
        "Chefer et al. 2021",
        "eq. 5-6",
        may_not_apply=True,
    ),
    "random": Explainer(controls.random, "Random", "control"),
    "sobel_edges": Explainer(controls.sobel_edges, "Sobel edges", "control"),
    "centred_gaussian": Explainer(controls.centred_gaussian, "Centred Gaussian", "control"),
}

CONTROLS = tuple(controls.CONTROLS)


def explainer(method: str) -> Explainer:
    """The record of `method`; ValueError listing the names."""
    if not isinstance(method, str) or method not in EXPLAINERS:
        raise ValueError(f"method {method!r} is unknown; choose one of {', '.join(EXPLAINERS)}")
    return EXPLAINERS[method]


def check_options(method, options):
    """ValueError for an unknown method, an option that it does not have, or a value that the option does not take."""
    explainer(method).check(method, options)


def check_rows(rows):
    """ValueError, a line for each of `rows` (row -> options, see `method_of`) that could not be made.

    Its method is unknown, its options are not the method's, or its name cannot be a file's.
    """
    problems = []
    for row, options in rows.items():
        try:
            check_options(*method_of(file_name(row), options))
        except ValueError as error:
            problems.append(f"rows.{row}: {error}")
    if problems:
        raise ValueError("\n".join(problems))


def method_of(row, options):
    """What a row of a table asks for: the name of a method and its options, from the row's name and options.

    The row is called as its method, unless the options name another: smoe_equal {"method": "smoe", "weights": "equal"}.
    """
    options = dict(options)
    return options.pop("method", row), options


def signed_rows(methods) -> list[str]:
    """Those of the rows of `methods` (row -> options) whose maps are signed."""
    return [row for row, options in methods.items() if explainer(method_of(row, options)[0]).signed]


def rows_of(methods, rows):
    """The rows of a table: row -> options. A row is a method, or one of `rows` that names its method (`method_of`).

    `methods`: the names of rows, or "all": every method, each followed by the rows that name it. `rows`: row ->
    options, or False, which leaves one out of "all". ValueError for a name that is neither, for both at once, and as
    `check_rows`.
    """
    options = {row: dict(given or {}) for row, given in rows.items() if given is not False}
    check_rows(options)
    known = {name: [name] for name in EXPLAINERS}
    for row, given in options.items():
        known[method_of(row, given)[0]] += [] if row in EXPLAINERS else [row]
    known = [row for group in known.values() for row in group]
    if methods == "all":
        return {row: options.get(row, {}) for row in known if rows.get(row) is not False}
    for row in methods:
        if row not in known:
            raise ValueError(f"methods: {row!r} is unknown; choose one of {', '.join(known)}")
        if rows.get(row) is False:
            raise ValueError(f"methods: {row} is asked for and left out (false) at once; take one of the two away")
    return {row: options.get(row, {}) for row in methods}


def passes(method, options) -> int:
    """About how many images go through the network for one map: the product of those options that multiply them."""
    record = explainer(method)
    options = record.keywords | options
    counts = {each.name: options[each.name] for each in record.options if each.multiplies}
    if options.get("over", "integrated_gradients") != "integrated_gradients":
        counts.pop("steps", None)  # which only that one takes
    return math.prod(counts.values())


def named_layers(methods):
    """The layers that the rows of `methods` (row -> options) read by name: `inference_copy` must keep them unfolded."""
    asked = [method_of(row, given) for row, given in methods.items()]
    return list(dict.fromkeys(name for method, options in asked for name in explainer(method).layers(options)))


def _checked_images(images):
    wanted = "give images (N, 3, H, W), float, in [0, 1], not normalised: the target normalises"
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        shape = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(f"images are {shape}; {wanted}")
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; {wanted} (uint8 pixels: divide by 255)")
    require_pixels(images, wanted)
    return images


def _checked_maps(method, maps):
    broken = (~maps.isfinite()).flatten(1).any(1)
    if broken.any():
        listed = ", ".join(map(str, broken.nonzero().flatten().tolist()[:10]))
        raise ValueError(f"{method} gives infinite or undefined values for image {listed} of the batch")
    return maps


def explain(model, images, target=None, *, method="grad_cam", engine=None, **options):
    """The maps (N, H, W) of one method of `EXPLAINERS`, with that method's options and a `score` (`networks.SCORES`).

    `engine`: None explains the model as it is; auto, onnxruntime or copy by a copy that is faster (`networks.engine`).

    ValueError for an unknown method or option, images that are not pixels in [0, 1], a target that is not a class,
    and maps that are not finite.
    """
    return explain_many(model, images, target, {method: options}, engine=engine)[method]


def explain_many(model, images, target=None, methods=("grad_cam",), *, score="softmax", engine=None):
    """The maps of several rows: a dict row -> maps (N, H, W), as `explain` gives them one by one.

    `methods`: a dict row -> options (see `method_of`), or names; `score` is for those whose options name none. Methods
    that can be made together, with the same options, share one pass: the plain class activation maps of one layer.
    `engine` as in `explain`.
    """
    methods = dict(methods) if isinstance(methods, dict) else {name: {} for name in methods}
    asked = {row: method_of(row, {"score": score} | options) for row, options in methods.items()}
    for method, options in asked.values():
        check_options(method, options)
    _checked_images(images)
    if engine is not None:
        model = engine_of(model, images, engine, named_layers(methods))
    model = bare(model)  # whose classes and layers can be asked for
    if target is not None:  # a model without named classes is checked by the methods, against its logits
        target = checked_target(target, images, len(getattr(model, "classes", ())))
    maps = {}
    for row, (method, options) in asked.items():
        if row in maps:
            continue
        together = EXPLAINERS[method].together
        if together is None:
            maps[row] = EXPLAINERS[method](model, images, target, **options)
            continue
        shared = {
            other: name
            for other, (name, own) in asked.items()
            if EXPLAINERS[name].together is together and own == options
        }
        options, names = dict(options), list(dict.fromkeys(shared.values()))
        with answering(model, options.pop("score")):
            found = together(model, images, target, methods=names, **options)
        maps |= {other: found[name] for other, name in shared.items()}
    return {row: _checked_maps(row, maps[row]) for row in methods}
