"""What params.yaml may say: the type and the bounds of every parameter, a class for each stage."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from xai_utils.pipeline.kinds import (
    WORKERS,
    Address,
    Ascending,
    Baseline,
    ColourJitter,
    ColourMap,
    Count,
    Epochs,
    FileName,
    Kept,
    Momentum,
    Names,
    NotNegative,
    Once,
    Percent,
    Pixels,
    Positive,
    Rate,
    Rounds,
    RowOptions,
    ScaleJitter,
    Share,
    Whole,
    Word,
    Workers,
    but_for,
)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Compute(Section):
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "bfloat16"]
    threads: Workers
    processes: Workers
    engine: Literal["auto", "onnxruntime", "copy"]
    prefetch: Annotated[int, Field(ge=0, le=64)]
    micro_batch: Whole | None
    compile: bool
    scheduler: Address | None

    @model_validator(mode="after")
    def _not_crowded(self):
        if self.threads * self.processes > WORKERS:
            raise ValueError(
                f"{self.threads} threads in each of {self.processes} processes are {self.threads * self.processes} at "
                f"work; this machine takes {WORKERS}"
            )
        return self


class Intervals(Section):
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    resamples: Annotated[int, Field(ge=100, le=1_000_000)]


class Stage(Section):
    seed: Annotated[int, Field(ge=0, lt=2**31)]


class PrepareData(Stage):
    dataset: Word
    image_size: Annotated[int, Field(ge=32, le=1024)]
    geometry: Literal["crop", "squash"]
    stored_size: Annotated[int, Field(ge=32, le=2048)] | None
    train_per_class: Count
    validation_per_class: Count
    validation_fraction: Share
    inclusive_boxes: bool | None
    annotation_level: Literal["variant", "family", "manufacturer"] | None
    drop_blacklisted: bool
    skip_corrupt: bool
    processes: Workers

    @model_validator(mode="after")
    def _not_enlarged(self):
        if self.stored_size is not None and self.stored_size < self.image_size:
            raise ValueError(
                f"stored_size {self.stored_size} is less than image_size {self.image_size}; give that or more, or null"
            )
        return self


class FinetuneTarget(Stage):
    target: Word
    compute: Compute
    epochs: Epochs
    batch_size: Whole
    optimizer: Literal["sgd", "adamw"]
    learning_rate: Rate
    schedule: Literal["cosine", "halving"]
    halve_every: Whole
    momentum: Momentum
    nesterov: bool
    weight_decay: NotNegative
    smallest_crop: Share
    scale_jitter: ScaleJitter
    colour_jitter: ColourJitter
    checkpoint_steps: Whole | None


class Learning(Section):
    """One of several trainings inside a stage."""

    epochs: Epochs
    batch_size: Whole
    learning_rate: Rate
    schedule: Literal["cosine", "steps"]
    milestones: list[Whole]
    momentum: Momentum
    nesterov: bool
    weight_decay: NotNegative
    smallest_crop: Share
    scale_jitter: ScaleJitter
    colour_jitter: ColourJitter


class DistillSurrogate(Stage):
    compute: Compute
    intervals: Intervals
    trunk: Word | None
    attention: Literal["cbam", "bam"]
    reduction: Whole
    opened: bool
    residual_attention: bool
    delta_source: Literal["last", "mean"]
    joint: bool
    alpha: Annotated[float, Field(ge=0, le=1)]
    temperature: Positive
    l1_weights: Annotated[dict[Annotated[FileName, but_for("student")], NotNegative], Field(min_length=1)]
    student: Learning
    explanation: Learning
    checkpoint_steps: Whole | None


class AdamLearning(Section):
    """One of several trainings inside a stage, by Adam."""

    epochs: Epochs
    batch_size: Whole
    learning_rate: Rate
    weight_decay: NotNegative
    schedule: Literal["cosine", "steps", "halving"]
    halve_every: Whole
    milestones: list[Whole]
    smallest_crop: Share
    scale_jitter: ScaleJitter
    colour_jitter: ColourJitter


class MGnet(Section):
    """The weights of its loss."""

    area: NotNegative
    area_power: Positive
    smoothness: NotNegative
    preserve: NotNegative


class TrainMaskPredictor(Stage):
    compute: Compute
    intervals: Intervals
    predictors: Annotated[list[Literal["dgle_bf", "dgle_cf", "mgnet"]], Field(min_length=1), Once]
    eta: Positive
    exponent: Positive
    normalisation: Literal["instance", "quantile"]
    upsampler: Literal["subpixel_blur", "subpixel", "transpose"]
    filter_loss: Literal["logit_mean", "sigmoid_mean"]
    filter: AdamLearning
    generator: AdamLearning
    mgnet: MGnet
    checkpoint_steps: Whole | None


class TrainAttention(Stage):
    compute: Compute
    intervals: Intervals
    networks: list[Word]
    network: Learning
    objective: Literal["cross_entropy", "mask", "none"]
    reduction: Whole
    gate_input: Literal["activations", "weighted"]
    intensity_weight: NotNegative
    variants: Annotated[int, Field(ge=0, le=1000)]
    gate: Learning
    images: Count
    smooth_samples: Whole
    checkpoint_steps: Whole | None


class TrainEffectPredictor(Stage):
    compute: Compute
    intervals: Intervals
    order_weights: dict[FileName, NotNegative]
    cells: dict[Annotated[FileName, but_for("surrogate")], Annotated[int, Field(ge=2, le=64)]]
    grains: Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1), Once]
    pairs: Whole
    predictor: AdamLearning
    surrogate: AdamLearning
    images: Count
    checkpoint_steps: Whole | None

    @model_validator(mode="after")
    def _named_once(self):
        if both := sorted(self.order_weights.keys() & self.cells.keys()):
            raise ValueError(f"order_weights and cells both name {both[0]!r}; give each predictor a name of its own")
        return self


class Mosaics(Section):
    """Of the grid pointing game."""

    number: Annotated[int, Field(ge=0, le=1_000_000)]
    cells: Annotated[int, Field(ge=2, le=8)]
    confidence: Annotated[float, Field(ge=0, lt=1)]


class Explain(Stage):
    compute: Compute
    images: Count
    mosaics: Mosaics
    methods: Names
    rows: dict[FileName, RowOptions]  # row -> options, which the method checks


class Evaluate(Stage):
    compute: Compute
    intervals: Intervals
    metrics: Names
    pixels_per_step: Annotated[int, Field(ge=1, le=224 * 224)]
    insertion_baseline: Baseline
    deletion_baseline: Baseline
    faithfulness_steps: Rounds
    faithfulness_gap: Annotated[float, Field(ge=0, lt=1)]
    road_percents: Annotated[list[Percent], Field(min_length=1), Ascending]
    infidelity_squares: Rounds
    masked_baseline: Literal["black", "mean"]
    percentage_in: Annotated[float, Field(gt=0, lt=100)]
    pointing_tolerance: Annotated[float, Field(ge=0, le=224)]
    part_threshold: Annotated[float, Field(ge=0, lt=1)]
    grid_mass: Literal["positive", "above_minimum"]
    chunk: Whole
    sanity_images: Annotated[int, Field(ge=0, le=1_000_000)]
    sanity_noise: Share
    sensitivity_samples: Rounds


NOT_OWN = but_for("random", "none")


class Retraining(Learning):
    epochs: Rounds


class Row(Section):
    model_config = ConfigDict(extra="allow")  # the method's options, which the method checks
    method: Word


class RemoveAndRetrain(Stage):
    compute: Compute
    intervals: Intervals
    network: Word
    image_size: Pixels | None
    train_images: Count
    held_out_images: Count
    explained_epochs: Rounds
    start: Literal["scratch", "explained"]
    repetitions: Rounds
    percentages: Annotated[list[Percent], Field(min_length=1), Ascending]
    fill: Literal["mean", "black"]
    keep_share: Share
    least_share: Share
    scale_kept: bool
    image: Retraining
    layer: Retraining
    statistics: Annotated[list[Annotated[Word, NOT_OWN]], Once]
    rows: Annotated[dict[Annotated[FileName, NOT_OWN], Row], Kept]


class MeasureSpeed(Stage):
    compute: Compute
    batch_size: Whole
    rounds: Rounds
    frames: Whole


class Figures(Stage):
    compute: Compute
    rows: Annotated[int, Field(ge=1, le=100)]
    methods: Annotated[list[Word], Once]
    leave_out: Annotated[list[Word], Once]
    opacity: Annotated[float, Field(ge=0, le=1)]
    colour_map: ColourMap
    rise_images: Annotated[int, Field(ge=0, le=1_000_000)]
    rise_masks: Annotated[list[Whole], Field(min_length=1), Ascending]
    rise_converged: Whole


STAGES: dict[str, type[Stage]] = {
    "prepare_data": PrepareData,
    "finetune_target": FinetuneTarget,
    "distill_surrogate": DistillSurrogate,
    "train_mask_predictor": TrainMaskPredictor,
    "train_attention": TrainAttention,
    "train_effect_predictor": TrainEffectPredictor,
    "explain": Explain,
    "evaluate": Evaluate,
    "remove_and_retrain": RemoveAndRetrain,
    "measure_speed": MeasureSpeed,
    "figures": Figures,
}
SHARED = ("dataset", "target", "seed", "compute", "intervals")
