"""The parameters of each stage: what params.yaml may say, checked before anything runs.

A stage's notebook receives the keys of its own section and those shared keys (SHARED) that its model below declares.
At any depth {default: 16, paper: 100} is a value by scale: the chosen scale's, or the default's where it is not named.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

Share = Annotated[float, Field(gt=0, le=1)]
Baseline = Literal["rise_blur", "rise_blur_gauss", "blur", "mean", "black"]
RowName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]  # rows are names of files


def _count(value):
    if value is None:
        raise ValueError("give a whole number, or all")
    return None if value == "all" else value


def _names(value):
    if value != "all" and not (isinstance(value, list) and value and all(isinstance(name, str) for name in value)):
        raise ValueError(f"{value!r} is not allowed; give all, or a list of names")
    return value


def _options(value):
    if not (isinstance(value, dict) or value is None or value is False):
        raise ValueError(f"{value!r} is not allowed; give options, such as {{}}, or false to leave the row out")
    return value


def _kept(rows):
    return {name: row for name, row in rows.items() if row is not False} if isinstance(rows, dict) else rows


Names = Annotated[Any, BeforeValidator(_names)]
RowOptions = Annotated[Any, BeforeValidator(_options)]
Count = Annotated[PositiveInt | None, BeforeValidator(_count)]  # of images; "all" is None for the notebooks


class ParameterError(ValueError):
    """A parameter is missing, unknown, of the wrong type or out of range."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Compute(Section):
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "bfloat16"]
    threads: PositiveInt
    processes: PositiveInt


class Intervals(Section):
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    resamples: Annotated[int, Field(ge=100)]


class Stage(Section):
    seed: Annotated[int, Field(ge=0, lt=2**31)]


class PrepareData(Stage):
    dataset: Annotated[str, Field(min_length=1)]
    image_size: Annotated[int, Field(ge=32, le=1024)]
    geometry: Literal["crop", "squash"]
    train_per_class: Count
    validation_per_class: Count
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
    intervals: Intervals
    trunk: Annotated[str, Field(min_length=1)] | None
    attention: Literal["cbam", "bam"]
    reduction: PositiveInt
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


class MGnet(Section):
    """The weights of its loss."""

    area: Annotated[float, Field(ge=0)]
    area_power: PositiveFloat
    smoothness: Annotated[float, Field(ge=0)]
    preserve: Annotated[float, Field(ge=0)]


class TrainMaskPredictor(Stage):
    compute: Compute
    intervals: Intervals
    predictors: Annotated[list[Literal["dgle_bf", "dgle_cf", "mgnet"]], Field(min_length=1)]
    eta: PositiveFloat
    exponent: PositiveFloat
    upsampler: Literal["subpixel", "transpose"]
    filter_loss: Literal["logit_mean", "sigmoid_mean"]
    filter: AdamLearning
    generator: AdamLearning
    mgnet: MGnet
    checkpoint_steps: PositiveInt | None


class TrainAttention(Stage):
    compute: Compute
    intervals: Intervals
    networks: list[Annotated[str, Field(min_length=1)]]
    network: Learning
    objective: Literal["cross_entropy", "mask", "none"]
    reduction: PositiveInt
    gate_input: Literal["activations", "weighted"]
    intensity_weight: Annotated[float, Field(ge=0)]
    gate: Learning
    images: Count
    smooth_samples: PositiveInt
    checkpoint_steps: PositiveInt | None


class Explain(Stage):
    compute: Compute
    images: Count
    methods: Names
    rows: dict[RowName, RowOptions]  # row -> options, which the method checks


class Evaluate(Stage):
    compute: Compute
    intervals: Intervals
    metrics: Names
    pixels_per_step: PositiveInt
    insertion_baseline: Baseline
    deletion_baseline: Baseline
    faithfulness_steps: PositiveInt
    faithfulness_gap: Annotated[float, Field(ge=0, lt=1)]
    masked_baseline: Literal["black", "mean"]
    percentage_in: Annotated[float, Field(gt=0, lt=100)]
    pointing_tolerance: Annotated[float, Field(ge=0)]
    part_threshold: Annotated[float, Field(ge=0, lt=1)]
    chunk: PositiveInt
    sanity_images: Annotated[int, Field(ge=0)]
    sanity_noise: PositiveFloat


class Retraining(Learning):
    epochs: PositiveInt


class Row(Section):
    model_config = ConfigDict(extra="allow")  # the method's options, which the method checks
    method: str


class RemoveAndRetrain(Stage):
    compute: Compute
    intervals: Intervals
    network: Annotated[str, Field(min_length=1)]
    image_size: Annotated[int, Field(ge=16, le=1024)] | None
    train_images: Count
    held_out_images: Count
    explained_epochs: PositiveInt
    repetitions: PositiveInt
    percentages: Annotated[list[Annotated[int, Field(gt=0, lt=100)]], Field(min_length=1)]
    fill: Literal["mean", "black"]
    keep_share: Share
    least_share: Share
    scale_kept: bool
    image: Retraining
    layer: Retraining
    statistics: Annotated[list[str], Field(min_length=1)]
    rows: Annotated[dict[RowName, Row], Field(min_length=1), BeforeValidator(_kept)]  # false leaves a row out

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
    methods: list[str]
    leave_out: list[str]
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
SHARED = ("dataset", "target", "seed", "compute", "intervals")


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
    """What the notebook of `stage` receives: its section and its shared keys, with the values of the chosen scale."""
    if stage not in STAGES:
        raise ParameterError(f"no stage '{stage}'; there are {', '.join(STAGES)}")
    known = (*SHARED, "scale", "scales", *STAGES)
    for key in values:
        if key not in known:
            raise ParameterError(f"params.yaml: unknown key '{key}'; allowed are {', '.join(sorted(known))}")
    scale, scales = values.get("scale"), values.get("scales")
    if not isinstance(scales, list) or "default" not in scales:
        raise ParameterError(
            f"params.yaml: scales is a {type(scales).__name__} that is not allowed; list the names of scales, default "
            "among them"
        )
    if scale not in scales:
        raise ParameterError(f"params.yaml: scale = {scale!r} is not allowed; it must be one of {', '.join(scales)}")
    model, section = STAGES[stage], values.get(stage) or {}
    if not isinstance(section, dict):
        raise ParameterError(f"params.yaml: {stage} = {section!r} is not allowed; it holds the keys of the stage")
    given = {key: values[key] for key in SHARED if key in model.model_fields and key in values}
    given = {key: at_scale(value, scale, scales, key) for key, value in given.items()}
    given |= {key: at_scale(value, scale, scales, f"{stage}.{key}") for key, value in section.items()}
    try:
        return model(**given).model_dump()
    except ValidationError as error:
        raise ParameterError("\n".join(_line(problem, stage, model) for problem in error.errors())) from None


def at_scale(value, scale: str, scales: list[str], where: str):
    """`value` with each value by scale, at any depth, replaced by that of `scale`."""
    if not isinstance(value, dict):
        return value
    if not any(name in scales for name in value):
        return {key: at_scale(each, scale, scales, f"{where}.{key}") for key, each in value.items()}
    if strangers := [name for name in value if name not in scales]:
        raise ParameterError(
            f"params.yaml: {where}.{strangers[0]} is the value of no scale; there are {', '.join(scales)}"
        )
    if scale not in value and "default" not in value:
        raise ParameterError(f"params.yaml: {where} has no value for the scale '{scale}'; give it one, or a default")
    return at_scale(value.get(scale, value.get("default")), scale, scales, where)


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
        return f"params.yaml: {name} is empty; a value is needed there"
    expected = problem["msg"].removeprefix("Input ").removeprefix("String ")
    return f"params.yaml: {name} = {problem['input']!r} is not allowed; it {expected}"
