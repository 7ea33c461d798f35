"""The inspector: a page that asks a network about one image. Notebooks show `inspector()`, `make inspect` the page."""

from xai_utils.widgets.opening import open_subject
from xai_utils.widgets.page import Inspector, inspector

__all__ = ["Inspector", "inspector", "open_subject"]
