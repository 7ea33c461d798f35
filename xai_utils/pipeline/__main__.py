"""python -m xai_utils.pipeline STAGE"""

import sys

from xai_utils.pipeline.stage import main

try:
    main()
except (OSError, ValueError) as error:  # a damaged notebook, say: its message tells the file and the fix
    sys.exit(str(error))
