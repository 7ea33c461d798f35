"""Saliency maps that can be rerun, compared and trusted.

from xai_utils import explain
maps = explain(model, images, method="grad_cam")    # (N, H, W)
"""

__all__ = ["EXPLAINERS", "explain"]


def __getattr__(name):
    # torch takes seconds to import: only those who explain pay for it, not the pipeline's runner
    if name in __all__:
        from xai_utils import explainers

        return getattr(explainers, name)
    raise AttributeError(f"module 'xai_utils' has no attribute '{name}'; it offers {', '.join(__all__)}")
