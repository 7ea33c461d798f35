"""python -m xai_utils.pipeline STAGE"""

from xai_utils.pipeline.stage import main

main()
