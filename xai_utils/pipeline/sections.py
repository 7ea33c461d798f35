"""What params.yaml may say: the type and the bounds of every parameter, a class for each stage."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

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
# of images: "all" where a person reads and writes it, None for the code
Count = Annotated[
    PositiveInt | None,
    BeforeValidator(_count),
    PlainSerializer(lambda value: "all" if value is None else value, when_used="json"),
]


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
