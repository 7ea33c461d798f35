"""What the parts of a run cost on this machine, measured in a folder of its own, which has the stages' paths.

Trainings take a step, on noise of the image size and with networks of random weights; every row explains and is scored
once. What only multiplies (masks, samples, points of a curve) is extrapolated from few.
"""

import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from xai_utils import datasets, explainers
from xai_utils.datasets import birds
from xai_utils.datasets.decoding import Form
from xai_utils.datasets.on_disk import read_image
from xai_utils.datasets.prepared import CATALOGUE
from xai_utils.evaluation import explanation, sanity, sanity_tables, scores
from xai_utils.explainers.masking import ESTIMATORS
from xai_utils.explainers.shapley import MOST
from xai_utils.metrics import METRICS, metrics_of
from xai_utils.metrics.cost import plain_forward
from xai_utils.metrics.perturbation import CURVES
from xai_utils.metrics.statistics import summary
from xai_utils.networks import (
    NotApplicable,
    cam_layer,
    engine,
    save_effect_predictor,
    save_gate,
    save_predictor,
    save_surrogate,
    scale_layers,
    stored,
    targets,
)
from xai_utils.networks import surrogate as surrogates
from xai_utils.networks.attention_gate import GATE_INPUTS, OBJECTIVES
from xai_utils.networks.probe import layout_of
from xai_utils.pipeline import parameters
from xai_utils.retraining import inputs
from xai_utils.retraining.experiment import UNMASKED
from xai_utils.retraining.trainings import image_task, layer_task
from xai_utils.training import effect_predictor, mask_predictor, surrogate
from xai_utils.training.distributed import HOST
from xai_utils.training.gate import gate_task, starting_gate
from xai_utils.training.target import source_of, target_task

NOISE = 24  # images of noise, half of them held out
FEW = 8  # repetitions from which more are extrapolated
LEAST = 0.3  # seconds that are timed at least
PIXELS = 8 * 224**2  # of a batch that is timed on a CPU
ASPECT = 4 / 3  # of photographs: what an image stored whole has of a longer side
CURVED = 60  # passes of a short insertion and deletion, a row and image
MASKED = 12  # passes of the scores that need no curve, a row and image: drops, increase, percentages


class Work(NamedTuple):
    """A part of a stage: how many images go through a network, or are decoded, drawn and counted each time."""

    stage: str
    what: str
    images: float
    seconds: float
    size: float = 0  # bytes on the disk
    trainings: int = 0


class Amounts(NamedTuple):
    """Of the data set."""

    train: int
    validation: int
    classes: int
    drawn: bool  # birds
    first: Path | None  # one of its images


class Measured:
    """What things cost, measured in a folder of its own, which has the stages' paths."""

    def __init__(self, given, amounts, compute, tell):
        self.given, self.amounts, self.compute, self.tell = given, amounts, compute, tell
        self.size = given["prepare_data"]["image_size"]
        self.common = {"data": "build/data", "target": "build/target", "seed": 0}
        self.device = torch.device(compute.device)

    def works(self) -> list[Work]:
        found = []
        for stage, measure in (
            ("prepare_data", self.prepare_data),
            ("finetune_target", self.finetune_target),
            ("distill_surrogate", self.distill_surrogate),
            ("train_mask_predictor", self.train_mask_predictor),
            ("train_attention", self.train_attention),
            ("train_effect_predictor", self.train_effect_predictor),
            ("explain", self.explain),
            ("evaluate", self.evaluate),
            ("remove_and_retrain", self.remove_and_retrain),
            ("measure_speed", self.measure_speed),
            ("figures", self.figures),
        ):
            self.tell(f"measuring for {stage}")
            with self.compute.casting():
                found += [Work(stage, *each) for each in measure(self.given[stage])]
        begin = _seconds_of_beginning()
        return found + [Work(stage, "notebook and page", 0, begin) for stage in parameters.STAGES]

    # ---- each yields (what, images, seconds, bytes, trainings)

    def prepare_data(self, given):
        random = np.random.default_rng(0)
        for number in range(NOISE):
            path = Path(f"noise/{number % 2}/{number}.bmp")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (self.size, self.size, 3), dtype=np.uint8)).save(path)
        options = {"image_size": self.size, "geometry": "squash", "validation_fraction": 0.5}
        datasets.prepare("noise", "build/data", **options)
        self.data = datasets.load("build/data")
        count, pixels = self.amounts.train + self.amounts.validation, self.size**2
        if self.amounts.drawn:
            catalogue = datasets.load_catalogue(Path(given["dataset"], CATALOGUE))
            name = next(iter(catalogue.species))
            self.drawing = _timed(lambda: birds.render(catalogue, name, 0, size=self.size))
            yield "drawing", count, count * self.drawing, count * 4 * pixels
            return
        form = Form(self.size, given["geometry"], given["stored_size"])
        pixels = pixels if form.stored_size is None else ASPECT * form.stored_size**2
        one = _timed(lambda: form.pixels(read_image(self.amounts.first)))
        yield "decoding", count, count * one / given["processes"], count * 3 * pixels

    def finetune_target(self, given):
        self.architecture, self.trained = _architecture(given["target"]), self.amounts.train > 0
        settings = self.common | given | {"target": self.architecture, "epochs": max(given["epochs"], 1)}
        task = target_task(settings)
        targets.save(task.model.eval(), "build/target", made_with={})
        self.target = targets.load("build/target", self.device)
        self.model = engine(self.target, self._images(1), choice=self.compute.engine)
        self.chunk = self._images(len(self._images()) * 2)
        with torch.inference_mode():
            self.a_pass = _timed(lambda: self.model(self.chunk), self.device) / len(self.chunk)
        if given["epochs"]:
            yield self._training("the target", task, given)

    def distill_surrogate(self, given):
        student = self.common | given["student"] | {"trunk": None, "alpha": 0.5, "temperature": 1.0}
        student |= {name: given[name] for name in surrogates.OPTIONS}
        student |= {"trunk": given["trunk"] and _architecture(given["trunk"])}
        if not given["student"]["epochs"] or not self.trained:
            return
        try:
            fresh = surrogate.starting_surrogate(student)
        except NotApplicable:
            return
        for name in given["l1_weights"]:
            save_surrogate(fresh.eval(), Path("build/surrogate", name), made_with={})
        explaining = self.common | given["explanation"] | {"surrogate": f"build/surrogate/{name}", "l1_weight": 1e-5}
        joint, count = student | {"l1_weight": 1e-5}, len(given["l1_weights"])
        if given["joint"]:
            yield self._training("students with maps", surrogate.joint_task(joint), given["student"], count)
            return
        yield self._training("the student", surrogate.student_task(student), given["student"])
        task = surrogate.explanation_task(explaining)
        yield self._training("explanation networks", task, given["explanation"], count)

    def train_mask_predictor(self, given):
        common = self.common | {name: given[name] for name in mask_predictor.OPTIONS}
        if not given["generator"]["epochs"] or not self.trained:
            return
        try:
            fresh = mask_predictor.starting_predictor(common, controller="customized")
        except NotApplicable:
            return
        for name in given["predictors"]:
            made = mask_predictor.starting_predictor(common, controller=mask_predictor.CONTROLLER_OF[name])
            save_predictor(made.eval(), Path("build/mask_predictor", name), made_with={})
        save_predictor(fresh, Path("build/filter"), made_with={})
        chosen = common | given["filter"] | {"filter_loss": given["filter_loss"]}
        yield self._training("the filter", mask_predictor.filter_task(chosen), given["filter"])
        for name in given["predictors"]:
            chosen = common | given["generator"] | {"predictor": "build/filter", "mgnet": given["mgnet"]}
            task = mask_predictor.mask_task(chosen | {"controller": mask_predictor.CONTROLLER_OF[name]})
            yield self._training(name, task, given["generator"])

    def train_attention(self, given):
        for name in given["networks"] if self.trained else ():
            if (architecture := _architecture(name)) != self.target.architecture:
                task = target_task(self.common | given["network"] | {"target": architecture})
                yield self._training(f"the black box {architecture}", task, given["network"])
        names = ("objective", "gate_input", "intensity_weight", "reduction")
        chosen = self.common | given["gate"] | {name: given[name] for name in names}
        chosen["layer"] = cam_layer(self.target, self._images(1))
        for name in ("amg", "amg_last_convolution"):
            with suppress(NotApplicable):
                save_gate(starting_gate(chosen).eval(), Path("build/attention", name), made_with={})
        ways = [each for each in product(OBJECTIVES, GATE_INPUTS) if each[0] != "none"]
        asked = Counter({(given["objective"], given["gate_input"]): 2}) + Counter(
            dict.fromkeys(ways, given["variants"])
        )
        for (objective, reads), count in asked.items() if given["gate"]["epochs"] and self.trained else ():
            if objective != "none":
                task = gate_task(chosen | {"objective": objective, "gate_input": reads})
                yield self._training(f"gates by {objective} of {reads}", task, given["gate"], count)
        images = self._of(given["images"])
        rows = 2 + len(ways) * given["variants"] + len(GATE_INPUTS)  # maps and masked scores, per image
        passes = images * (rows * (1 + MASKED) + 4 * given["smooth_samples"])
        yield "maps and scores of the tables", passes, passes * self.a_pass

    def train_effect_predictor(self, given):
        if not given["predictor"]["epochs"] or not self.trained:
            return
        common, cells = self.common | {"pairs": given["pairs"], "surrogate": None}, given["cells"]
        try:
            for name, each in (dict.fromkeys(given["order_weights"], 0) | cells).items():
                made = effect_predictor.starting_effect_predictor(common | {"cells": each}).eval()
                save_effect_predictor(made, Path("build/effect_predictor", name))
        except NotApplicable:
            return
        if cells and given["surrogate"]["epochs"]:
            task = effect_predictor.surrogate_task(common | given["surrogate"] | {"cells": next(iter(cells.values()))})
            yield self._training("the surrogate", task, given["surrogate"])
        for name, each in cells.items():
            task = effect_predictor.shapley_task(common | given["predictor"] | {"cells": each})
            yield self._training(name, task, given["predictor"])
        for name, weight in given["order_weights"].items():
            chosen = common | given["predictor"] | {"grains": given["grains"], "order_weight": weight}
            yield self._training(name, effect_predictor.effect_task(chosen), given["predictor"])
        rows = len(cells) + 2 * len(given["order_weights"]) + 2  # ours also as it is, Grad-CAM, random maps
        exact = sum(2**each**2 for each in cells.values() if each**2 <= MOST)
        passes = self._of(given["images"]) * (rows * CURVED + exact)
        yield "scores of the tables", passes, passes * self.a_pass

    def explain(self, given):
        rows = explainers.rows_of(given["methods"], given["rows"])
        without = explanation.without_part(rows)
        rows = {row: options for row, options in rows.items() if row not in without}
        for left in explanation.not_applicable("build/target", "build/data", rows).values():
            rows = {row: options for row, options in rows.items() if row not in left}
        images = self._images()
        self.rows = {row: self._explaining(images, row, options) for row, options in rows.items()}
        count, mosaics = self._of(given["images"]), given["mosaics"]
        shown = count + mosaics["number"] * mosaics["cells"] ** 2  # in units of one image's pixels
        for row, seconds in self.rows.items():
            yield row, shown * seconds / self.a_pass, shown * seconds, shown * 4 * self.size**2

    def evaluate(self, given):
        metrics = [
            name
            for name in metrics_of(given["metrics"])
            if METRICS[name].needs != "cell_masks" and (self.amounts.drawn or METRICS[name].needs != "part_masks")
        ]
        step, size = {"pixels_per_step": given["pixels_per_step"]}, (self.size, self.size)
        asked = {
            "insertion": step | {"baseline": given["insertion_baseline"]},
            "deletion": step | {"baseline": given["deletion_baseline"]},
            "faithfulness": {"steps": given["faithfulness_steps"]},
        }
        asked = {name: asked[name] for name in scores.needed_curves(metrics)}
        coarse = {"insertion": {"pixels_per_step": 12544}, "deletion": {"pixels_per_step": 12544}}
        coarse = {name: options | coarse.get(name, {"steps": 4}) for name, options in asked.items()}
        points, few = (
            sum(len(CURVES[name](size, **options).counts) for name, options in each.items()) for each in (asked, coarse)
        )
        images, masks = self._images(), torch.zeros(len(self._images()), *size, dtype=torch.bool)
        masks[:, 8:24, 8:24] = True
        maps, target = torch.rand(len(images), *size, device=self.device), self.model(images).argmax(1)
        options = {"metrics": metrics, "curves": coarse, "masks": masks, "part_masks": masks, "chunk": given["chunk"]}
        squares = given["infidelity_squares"]
        options["options"] = {"road": {"percents": given["road_percents"]}, "infidelity": {"squares": squares}}
        options["falls"] = torch.zeros(len(images), squares)  # which all methods share
        one = _timed(lambda: scores.score_batch(self.model, images, target, maps, **options), self.device) / len(images)
        one, count = one + max(0, points - few) * self.a_pass, self._of(self.given["explain"]["images"])
        done = count * len(self.rows)
        curves = 4 * done * points
        yield f"{len(self.rows)} rows, {points} points of curves an image", done * (points + MASKED), done * one, curves
        if self.amounts.drawn and "part_truth" in metrics:
            changes = 4 * len(datasets.PARTS)  # about: birds with one part changed
            yield "deciding parts", count * changes, count * changes * (self.drawing + self.a_pass)
        if "infidelity" in metrics:
            yield "squares for infidelity", count * squares, count * squares * self.a_pass
        with torch.no_grad():
            stages = len(sanity.layer_stages(self.target, lambda: plain_forward(self.target, images[:1]), images[:1]))
        total = 0
        for seconds in self.rows.values() if given["sanity_images"] else ():
            heavy, cascade = (seconds > n * self.a_pass for n in (sanity_tables.HEAVY, sanity_tables.CASCADE))
            few = min(given["sanity_images"], count, sanity_tables.HEAVY_IMAGES if heavy else count)
            total += few * ((5 if cascade else 4 + stages) + given["sensitivity_samples"]) * seconds
        yield "sanity checks", total / self.a_pass, total
        given = given["intervals"]
        one = _timed(lambda: summary(np.linspace(0, 1, count), 0, **given))
        yield "intervals and tests", 0, 4 * len(self.rows) * len(metrics) * one

    def remove_and_retrain(self, given):
        if not (given["rows"] or given["statistics"]) or not self.trained:
            return
        train, held = (
            min(given[f"{split}_images"] or number, number)
            for split, number in zip(("train", "held_out"), self.amounts[:2], strict=True)
        )
        data = {name: given[name] for name in ("image_size", "fill")} | {"data": "build/data", "data_hash": ""}
        data |= {"subset_seed": 0, "seed": 0, "train_images": None, "held_out_images": None} | UNMASKED
        shared = inputs.shared_images(data, inputs.FOLDER / "images/plan", self.compute)
        data |= {"images": shared["images"], "fill": shared["colour"]}
        own = given["network"] != "target"
        architecture = given["network"] if own else self.architecture
        chosen = data | given["image"] | {"network": {"architecture": architecture}}
        torch.set_num_threads(1)  # each worker's
        workers = self.compute.processes * (self.compute.threads if self.compute.device == "cpu" else 1)
        make = _timed(lambda: image_task(chosen))
        task = image_task(chosen)
        targets.save(task.model.eval(), "build/explained", made_with={})
        explained = targets.load("build/explained", self.device)
        amounts = {"examples": train, "held": held, "make": make, "workers": workers}
        if own:
            about = given["image"] | {"epochs": given["explained_epochs"]}
            yield self._training("the network to be explained", task, about, **amounts | {"workers": 1})
        rows, levels, repeated = len(given["rows"]), len(given["percentages"]), given["repetitions"]
        if rows:
            count = repeated * (2 * rows * levels + levels + 1)
            yield self._training("networks on masked images", image_task(chosen), given["image"], count, **amounts)
        image = self._images(1) if given["image_size"] is None else torch.rand(1, 3, *[given["image_size"]] * 2)
        layers = scale_layers(explained, image.to(self.device))
        masked = {"explained": "build/explained", "statistic": None, "share": 0.5, "least": False, "scale": True}
        if given["statistics"]:
            middle = layers[len(layers) // 2]
            masked |= {"layer": middle, "layout": asdict(layout_of(explained, image.to(self.device), middle))}
            task = layer_task(data | given["layer"] | masked)
            count = repeated * len(layers) * (2 * (len(given["statistics"]) + 1) + 1)
            yield self._training("networks behind masked layers", task, given["layer"], count, **amounts)
        images, copied = self._images(), engine(explained, image.to(self.device), choice="copy")
        images = torch.nn.functional.interpolate(images, image.shape[-2:])
        for row, options in given["rows"].items():
            with suppress(NotApplicable):
                one = self._explaining(images, row, options, copied)
                done = train + held
                yield f"maps of {row}", done * one / self.a_pass, done * one / workers, done * image[0, 0].numel()
        torch.set_num_threads(self.compute.threads)

    def measure_speed(self, given):
        batch, total = given["batch_size"], 0
        for seconds in self.rows.values():
            heavy = seconds > 100 * self.a_pass
            single = given["frames"] + min(10, given["frames"])
            total += seconds * (3 if heavy else 2 * (given["rounds"] + 1) * batch + single)
        yield "rounds and frames", total / self.a_pass, total

    def figures(self, given):
        if "rise" not in self.rows:
            return
        explain = self.given["explain"]
        own = explainers.explainer("rise").keywords | explainers.rows_of(explain["methods"], explain["rows"])["rise"]
        masks = given["rise_converged"] + len(ESTIMATORS) * max(given["rise_masks"])
        images = min(given["rise_images"], self.amounts.validation)
        total = images * masks * self.rows["rise"] / own["masks"]
        yield "RISE by more and more masks", total / self.a_pass, total

    # ---- what they share

    def _images(self, count=None):
        """Noise, as many images as a processor explains at once in a second or so."""
        count = count or max(2, min(NOISE // 2, PIXELS // self.size**2 // 4))
        places = np.arange(count) % len(self.data.validation)
        return self.data.validation.tensor(places, self.device)

    def _of(self, images):
        return min(images or self.amounts.validation, self.amounts.validation)

    def _explaining(self, images, row, options, model=None):
        """Seconds that a row takes for an image."""
        method, own = explainers.method_of(row, options)
        record = explainers.explainer(method)
        repeats = [each.name for each in record.options if each.multiplies]
        asked = {name: (record.keywords | own)[name] for name in repeats}

        def seconds(most):
            few = {name: min(value, most) for name, value in asked.items()}
            given = record.seeded(own | few, 0, self.device, begin=0)
            explain = {row: {"method": method} | given}
            return _timed(lambda: explainers.explain_many(model or self.model, images, None, explain), self.device)

        many = seconds(FEW)
        full, few, fewer = (np.prod([min(value, most) for value in asked.values()]) for most in (2**62, FEW, FEW // 2))
        slope = (many - seconds(FEW // 2)) / (few - fewer) if full > few else 0
        return (many + max(slope, 0) * (full - few)) / len(images)

    def _training(self, what, task, given, count=1, *, examples=None, held=None, make=0.0, workers=1):
        """(what, images, seconds, bytes, trainings) of `count` trainings of a task with other numbers of images."""
        examples, held = examples or self.amounts.train, self.amounts.validation if held is None else held
        step, validating = _of_training(task, given["batch_size"], self.device, self.compute.precision)
        validations = 1 if make else given["epochs"]  # a retrained network is tested once
        validating = validating if task.validate else self.a_pass
        one = make + given["epochs"] * examples * step + validations * held * validating
        size = 4 * sum(weights.numel() for weights in task.model.parameters())
        shown = count * (given["epochs"] * examples + validations * held)
        return what, shown, count * one / workers, count * size * (not make), count


def _architecture(name: str) -> str:
    """What a target is called without weights that would be fetched; a checkpoint's architecture."""
    architecture, weights = source_of(name)
    return architecture or stored.facts(weights, targets.KIND, ("architecture",))["architecture"]


def _timed(function, device=HOST) -> float:
    """Seconds of a call: the least of a few, after one that warms up."""
    function()
    found = []
    while not found or (sum(found) < LEAST and len(found) < 20):
        begun = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - begun)
    return min(found)


def _of_training(task, batch_size, device, precision):
    """Seconds of a step, and of the validation, for an image."""
    model = task.model.train().to(device, memory_format=torch.channels_last)
    for network in task.frozen:
        network.to(device).eval().requires_grad_(False)
    optimizer, generator = task.optimizer(model), torch.Generator().manual_seed(0)
    pixels = sum(each.numel() for each in task.read(torch.arange(1))) // 3
    fits = batch_size if device.type == "cuda" else max(4, PIXELS // pixels)
    indices = torch.arange(min(batch_size, fits)) % task.examples
    numbers = task.draw(len(indices), generator)

    def step():
        rows = tuple(each.to(device) for each in task.read(indices))
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss, _ = task.loss(model, task.augment(rows, numbers.to(device)), torch.Generator(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds = _timed(step, device) / len(indices)
    if task.validate is None:
        return seconds, 0.0
    model.eval()
    with torch.no_grad():
        return seconds, _timed(lambda: task.validate(model), device) / (NOISE // 2)


def _seconds_of_beginning() -> float:
    """About what a stage takes besides its work: two processes that import the libraries, and a page."""
    command = [sys.executable, "-c", "import papermill, nbconvert, ipykernel, xai_utils.training.target"]
    begun = time.perf_counter()
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    return 2 * (time.perf_counter() - begun)
