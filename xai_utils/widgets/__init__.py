"""The inspector: a page that asks networks about images. Notebooks show `inspector()`, `make inspect` the page."""

import importlib

FOLDERS = "XAI_INSPECTOR_FOLDERS"  # in the environment: what `make inspect` was given, a list in JSON
_PLACES = {
    "open_photographs": "opening",
    "open_subject": "opening",
    "openers": "opening",
    "Inspector": "page",
    "inspector": "page",
}
__all__ = ["FOLDERS", "Inspector", "inspector", "open_photographs", "open_subject", "openers"]


def __getattr__(name):
    # torch takes seconds to import: only the page's kernel pays for it, not the server
    if name in _PLACES:
        return getattr(importlib.import_module(f"xai_utils.widgets.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'xai_utils.widgets' has no attribute '{name}'; it offers {', '.join(__all__)}")
