"""Networks: the classifiers to be explained, and what can be asked of their layers."""

from xai_utils.networks.activations import captured, head_gradient, pre_activations
from xai_utils.networks.answers import (
    SCORES,
    answering,
    checked_target,
    class_indices,
    class_scores,
    logits_of,
    unpacked,
)
from xai_utils.networks.architectures import ARCHITECTURES
from xai_utils.networks.attention import ATTENTION, BAM, CBAM
from xai_utils.networks.attention_gate import AttentionGate, gate_for, load_gate, save_gate
from xai_utils.networks.defaults import NotApplicable, cam_layer, describe, last_convolution, scale_layers
from xai_utils.networks.effect_predictor import (
    EffectPredictor,
    effect_predictor_of,
    load_effect_predictor,
    save_effect_predictor,
)
from xai_utils.networks.engine import engine, engine_of
from xai_utils.networks.inference import inference_copy
from xai_utils.networks.layers import (
    deep_copy,
    evaluating,
    find_layer,
    layer_names,
)
from xai_utils.networks.layouts import Layout
from xai_utils.networks.mask_predictor import (
    MaskPredictor,
    encoded,
    load_predictor,
    predictor_of,
    save_predictor,
)
from xai_utils.networks.students import AttentiveStudent, StagedStudent
from xai_utils.networks.surrogate import (
    ExplanationNetwork,
    Surrogate,
    load_surrogate,
    save_surrogate,
    surrogate_of,
)
from xai_utils.networks.targets import IMAGENET_MEAN, IMAGENET_STD, Target, build, load, replace_head, save

__all__ = [
    "ARCHITECTURES",
    "ATTENTION",
    "BAM",
    "CBAM",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "SCORES",
    "AttentionGate",
    "AttentiveStudent",
    "EffectPredictor",
    "ExplanationNetwork",
    "Layout",
    "MaskPredictor",
    "NotApplicable",
    "StagedStudent",
    "Surrogate",
    "Target",
    "answering",
    "build",
    "cam_layer",
    "captured",
    "checked_target",
    "class_indices",
    "class_scores",
    "deep_copy",
    "describe",
    "effect_predictor_of",
    "encoded",
    "engine",
    "engine_of",
    "evaluating",
    "find_layer",
    "gate_for",
    "head_gradient",
    "inference_copy",
    "last_convolution",
    "layer_names",
    "load",
    "load_effect_predictor",
    "load_gate",
    "load_predictor",
    "load_surrogate",
    "logits_of",
    "pre_activations",
    "predictor_of",
    "replace_head",
    "save",
    "save_effect_predictor",
    "save_gate",
    "save_predictor",
    "save_surrogate",
    "scale_layers",
    "surrogate_of",
    "unpacked",
]
