"""Run `loop.fit` as a JSON file asks, in this process or in each of torchrun's.

    python -m xai_utils.training REQUEST.json

{"task": "module:function", "compute": {...}} and fit's other arguments.
"""

import importlib
import json
import sys
from pathlib import Path

from xai_utils.training import loop


def main(arguments):
    if len(arguments) != 1:
        raise SystemExit("usage: python -m xai_utils.training REQUEST.json")
    request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    module, name = request.pop("task").split(":")
    make_task = getattr(importlib.import_module(module), name)
    loop.fit(make_task, compute=loop.Compute(**request.pop("compute", {})), log=print, **request)


if __name__ == "__main__":
    main(sys.argv[1:])
