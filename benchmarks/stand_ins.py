"""Import this before xai_utils on machines where nothing can be installed: stand-ins for libraries that are missing.

`device.py` calls nothing of them: LIME, integrated gradients and the reading of YAML are not measured.
"""

import importlib
import sys
from unittest.mock import MagicMock

LIBRARIES = ("captum", "captum.attr", "ruamel", "ruamel.yaml", "ruamel.yaml.error", "skimage", "skimage.segmentation")

for name in LIBRARIES:
    try:
        importlib.import_module(name)
    except ImportError:
        sys.modules[name] = MagicMock()
        print(f"not installed, and not needed here: {name}", file=sys.stderr)
