"""Run `loop.fit` as a JSON file asks, in this process or in each of torchrun's.

    python -m xai_utils.training REQUEST.json

{"task": "module:function", "compute": {...}} and fit's other arguments.
"""

import importlib
import inspect
import json
import sys
from pathlib import Path

from xai_utils.training import loop


def main(arguments):
    if len(arguments) != 1:
        raise SystemExit("usage: python -m xai_utils.training REQUEST.json")
    try:
        request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
        module, name = request.pop("task").split(":")
        make_task = getattr(importlib.import_module(module), name)
        options = {"compute": loop.Compute(**request.pop("compute", {})).resolved(), "log": print}
        inspect.signature(loop.fit).bind(make_task, **options, **request)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise SystemExit(
            f"{arguments[0]} is no request of a training ({type(error).__name__}: {error}); it holds "
            '{"task": "module:function", "compute": {...}} and the other arguments of xai_utils.training.loop.fit'
        ) from None
    loop.fit(make_task, **options, **request)


if __name__ == "__main__":
    main(sys.argv[1:])
