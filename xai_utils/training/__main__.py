"""Train what a stage trains, as params.yaml says, in this process or in each of torchrun's.

    python -m xai_utils.training STAGE
    python -m xai_utils.training REQUEST.json

STAGE is one of STAGES, whose notebook then finds the finished trainings; the stages before must have run. The JSON is
for any other `loop.fit`: {"task": "module:function", "compute": {...}} and fit's other arguments.
"""

import importlib
import inspect
import json
import sys
from pathlib import Path

from xai_utils.training import loop

STAGES = {  # stage -> what trains it; looked up when asked for
    "finetune_target": "xai_utils.training.target:fit_target",
    "distill_surrogate": "xai_utils.training.surrogate:fit_surrogates",
    "train_mask_predictor": "xai_utils.training.mask_predictor:fit_predictors",
    "train_effect_predictor": "xai_utils.training.effect_predictor:fit_effect_predictors",
    "train_attention": "xai_utils.papers.amg_variants:fit_stage",  # upstairs, where the variants are
}


def main(arguments):
    if len(arguments) != 1:
        raise SystemExit(f"usage: python -m xai_utils.training REQUEST.json, or a stage: {', '.join(STAGES)}")
    if arguments[0] in STAGES:
        try:
            settings, options = asked_of(arguments[0])
            _found(STAGES[arguments[0]])(settings, **options, log=print)
        except (OSError, ValueError) as error:
            raise SystemExit(str(error)) from error
        return
    try:
        request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
        make_task = _found(request.pop("task"))
        options = {"compute": loop.Compute(**request.pop("compute", {})).resolved(), "log": print}
        inspect.signature(loop.fit).bind(make_task, **options, **request)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise SystemExit(
            f"{arguments[0]} is no request of a training ({type(error).__name__}: {error}), nor one of the stages "
            f"{', '.join(STAGES)}; a request holds "
            '{"task": "module:function", "compute": {...}} and the other arguments of xai_utils.training.loop.fit'
        ) from None
    loop.fit(make_task, **options, **request)


def asked_of(stage):
    """The settings and the options of a stage's trainings, as its notebook has them."""
    parameters = importlib.import_module("xai_utils.pipeline.parameters")  # upstairs: only this command looks there
    given = parameters.resolve(parameters.read(), stage)
    compute = loop.Compute(**given.pop("compute")).resolved()
    options = {"compute": compute, "checkpoint_steps": given.pop("checkpoint_steps")}
    given = {name: value for name, value in given.items() if name not in ("intervals", "images")}  # of the report
    return {"data": "build/data", "target": "build/target"} | given, options


def _found(name):
    module, name = name.split(":")
    return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    main(sys.argv[1:])
