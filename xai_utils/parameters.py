"""The parameters of each stage: what params.yaml may say, checked before anything runs.

A stage's notebook receives the keys of its own section and those shared keys (seed, dataset, target, compute) that its
model below declares. A `null` in a section means that the chosen scale decides.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

Share = Annotated[float, Field(gt=0, le=1)]
Baseline = Literal["rise_blur", "rise_blur_gauss", "blur", "mean", "black"]


class ParameterError(ValueError):
    """A parameter is missing, unknown, of the wrong type or out of range."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Compute(Section):
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "bfloat16"]
    threads: PositiveInt
    processes: PositiveInt


class Stage(Section):
    seed: Annotated[int, Field(ge=0, lt=2**31)]


class PrepareData(Stage):
    dataset: Annotated[str, Field(min_length=1)]
    image_size: Annotated[int, Field(ge=32, le=1024)]
    geometry: Literal["crop", "squash"]
    train_per_class: PositiveInt | None
    validation_per_class: PositiveInt | None
    validation_fraction: Share
    inclusive_boxes: bool | None
    annotation_level: Literal["variant", "family", "manufacturer"] | None
    drop_blacklisted: bool
    skip_corrupt: bool


class FinetuneTarget(Stage):
    target: Annotated[str, Field(min_length=1)]
    compute: Compute
    epochs: Annotated[int, Field(ge=0)]
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    schedule: Literal["cosine", "halving"]
    halve_every: PositiveInt
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    smallest_crop: Share
    checkpoint_steps: PositiveInt | None


class Learning(Section):
    """One of several trainings inside a stage."""

    epochs: Annotated[int, Field(ge=0)]
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    schedule: Literal["cosine", "steps"]
    milestones: list[PositiveInt]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    smallest_crop: Share


class DistillSurrogate(Stage):
    compute: Compute
    trunk: Annotated[str, Field(min_length=1)] | None
    attention: Literal["cbam", "bam"]
    residual_attention: bool
    delta_source: Literal["last", "mean"]
    joint: bool
    alpha: Annotated[float, Field(ge=0, le=1)]
    temperature: PositiveFloat
    l1_weights: Annotated[dict[str, Annotated[float, Field(ge=0)]], Field(min_length=1)]
    student: Learning
    explanation: Learning
    checkpoint_steps: PositiveInt | None


class AdamLearning(Section):
    """One of several trainings inside a stage, by Adam."""

    epochs: Annotated[int, Field(ge=0)]
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["cosine", "steps", "halving"]
    halve_every: PositiveInt
    milestones: list[PositiveInt]
    smallest_crop: Share


class TrainMaskPredictor(Stage):
    compute: Compute
    predictors: Annotated[list[Literal["dgle_bf", "dgle_cf", "mgnet"]], Field(min_length=1)]
    eta: PositiveFloat
    exponent: PositiveFloat
    upsampler: Literal["subpixel", "transpose"]
    filter_loss: Literal["logit_mean", "sigmoid_mean"]
    filter: AdamLearning
    generator: AdamLearning
    checkpoint_steps: PositiveInt | None


class TrainAttention(Stage):
    compute: Compute
    networks: list[Annotated[str, Field(min_length=1)]]
    network: Learning
    objective: Literal["cross_entropy", "mask", "none"]
    gate_input: Literal["activations", "weighted"]
    intensity_weight: Annotated[float, Field(ge=0)]
    gate: Learning
    images: PositiveInt
    smooth_samples: PositiveInt
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    checkpoint_steps: PositiveInt | None


class Explain(Stage):
    compute: Compute
    images: PositiveInt
    # row -> options, which the method checks; rows are names of files
    methods: Annotated[dict[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], dict[str, Any]], Field(min_length=1)]


class Evaluate(Stage):
    compute: Compute
    metrics: Annotated[list[str], Field(min_length=1)]
    pixels_per_step: PositiveInt
    insertion_baseline: Baseline
    deletion_baseline: Baseline
    pointing_tolerance: Annotated[float, Field(ge=0)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    chunk: PositiveInt
    sanity_images: Annotated[int, Field(ge=0)]


class Retraining(Learning):
    epochs: PositiveInt


class Row(Section):
    model_config = ConfigDict(extra="allow")  # the method's options, which the method checks
    method: str


class RemoveAndRetrain(Stage):
    compute: Compute
    network: Annotated[str, Field(min_length=1)]
    image_size: Annotated[int, Field(ge=16, le=1024)] | None
    train_images: PositiveInt | None
    held_out_images: PositiveInt | None
    explained_epochs: PositiveInt
    repetitions: PositiveInt
    percentages: Annotated[list[Annotated[int, Field(gt=0, lt=100)]], Field(min_length=1)]
    fill: Literal["mean", "black"]
    keep_share: Share
    least_share: Share
    scale_kept: bool
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    image: Retraining
    layer: Retraining
    statistics: Annotated[list[str], Field(min_length=1)]
    rows: Annotated[dict[str, Row], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self):
        if self.percentages != sorted(set(self.percentages)):
            raise ValueError(f"percentages = {self.percentages} must ascend, each once")
        for name in ("random", "none"):
            if name in self.rows or name in self.statistics:
                raise ValueError(f"the row '{name}' is made by the stage itself; give yours another name")
        return self


class MeasureSpeed(Stage):
    compute: Compute
    batch_size: PositiveInt
    rounds: PositiveInt
    frames: PositiveInt


class Figures(Stage):
    compute: Compute
    rows: PositiveInt
    methods: Annotated[list[str], Field(min_length=1)]
    opacity: Annotated[float, Field(ge=0, le=1)]
    colour_map: str

    @model_validator(mode="after")
    def _known_colour_map(self):
        from matplotlib import colormaps

        if self.colour_map not in colormaps:
            raise ValueError(
                f"no colour map '{self.colour_map}'; matplotlib has e.g. viridis, magma, inferno, turbo, jet"
            )
        return self


STAGES: dict[str, type[Stage]] = {
    "prepare_data": PrepareData,
    "finetune_target": FinetuneTarget,
    "distill_surrogate": DistillSurrogate,
    "train_mask_predictor": TrainMaskPredictor,
    "train_attention": TrainAttention,
    "explain": Explain,
    "evaluate": Evaluate,
    "remove_and_retrain": RemoveAndRetrain,
    "measure_speed": MeasureSpeed,
    "figures": Figures,
}
SHARED = ("dataset", "target", "seed", "compute")


def read(path="params.yaml") -> dict:
    """params.yaml as DVC reads it (YAML 1.2: 1e-3 is a number, yes is a string)."""
    try:
        values = YAML(typ="safe").load(Path(path))
    except YAMLError as error:
        raise ParameterError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ParameterError(f"{path} is empty; it needs the keys {', '.join((*SHARED, 'scale', *STAGES, 'scales'))}")
    return values


def resolve(values: dict, stage: str) -> dict:
    """What the notebook of `stage` receives: its section, the scale's values for its nulls, its shared keys."""
    if stage not in STAGES:
        raise ParameterError(f"no stage '{stage}'; there are {', '.join(STAGES)}")
    known = {*SHARED, "scale", "scales", *STAGES}
    for key in values:
        if key not in known:
            raise ParameterError(f"params.yaml: unknown key '{key}'; allowed are {', '.join(sorted(known))}")
    scale, scales = values.get("scale"), values.get("scales") or {}
    if scale not in scales:
        raise ParameterError(f"params.yaml: scale = {scale!r} is not allowed; it must be one of {', '.join(scales)}")
    model, section = STAGES[stage], values.get(stage) or {}
    given = {key: values[key] for key in SHARED if key in model.model_fields and key in values}
    given |= filled(section, (scales[scale] or {}).get(stage) or {}, f"scales.{scale}.{stage}")
    try:
        return model(**given).model_dump()
    except ValidationError as error:
        raise ParameterError("\n".join(_line(problem, stage, model) for problem in error.errors())) from None


def filled(section: dict, by_scale: dict, where: str) -> dict:
    """`section` with each null, at any depth, replaced by the scale's value."""
    for key in by_scale:
        if key not in section:
            raise ParameterError(f"params.yaml: unknown key '{where}.{key}'; allowed are {', '.join(section)}")
    complete = {}
    for key, value in section.items():
        if isinstance(value, dict):
            complete[key] = filled(value, by_scale.get(key) or {}, f"{where}.{key}")
        else:
            complete[key] = by_scale.get(key) if value is None else value
    return complete


def _line(problem: dict, stage: str, model: type[Stage]) -> str:
    """One problem in one line: key, value, what is allowed."""
    path = [str(part) for part in problem["loc"]]
    name = ".".join(path if path and path[0] in SHARED else [stage, *path])
    if problem["type"] == "missing":
        return f"params.yaml: {name} is missing; a value is needed there"
    if problem["type"] == "extra_forbidden":
        for part in path[:-1]:
            model = model.model_fields[part].annotation
        fields = [key for key in model.model_fields if key not in SHARED]
        return f"params.yaml: unknown key '{name}'; allowed are {', '.join(fields)}"
    if problem["type"] == "value_error":
        return f"params.yaml: {name}: {problem['ctx']['error']}"
    if problem["input"] is None:
        return f"params.yaml: {name} is null and the scale gives no value; write one in the section or in scales"
    expected = problem["msg"].removeprefix("Input ").removeprefix("String ")
    return f"params.yaml: {name} = {problem['input']!r} is not allowed; it {expected}"
