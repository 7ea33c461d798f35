"""How much a map shows, whatever the model thinks of it."""

from xai_utils.images import finite_maps, unit_range


def mean_intensity(model, images, target, maps):
    """Mean over the pixels of each map stretched to [0, 1]: (N,), in [0, 1] (AKD, Table 3).

    mean_ij (map_ij - min map) / (max map - min map)

    Low: the map points at little; 1 would be the image itself, a constant map counts 0. Needs neither model nor masks.
    """
    return unit_range(finite_maps(maps, images).float()).mean((1, 2)).cpu()
