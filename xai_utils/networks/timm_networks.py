"""Networks of timm: `timm:NAME`, or `timm:NAME.TAG` with the configuration of its weights TAG. Imported when asked for.

What timm says of a network (its pretrained_cfg) is followed: normalisation, classes, the names of its heads, whether it
is built for one size of images.
"""

import sys
from difflib import get_close_matches
from functools import cache, partial


def _timm():
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ModuleNotFoundError(
            "targets timm:NAME and efficientnet_lite0 need timm: pip install 'xai-utils[pipeline]'"
        ) from error
    return timm


def configuration(name):
    """timm's PretrainedCfg of `name`, with or without a tag; ValueError with close names, or with the tags."""
    timm, (plain, _, tag) = _timm(), name.partition(".")
    if plain not in (names := timm.list_models()):
        close = ", ".join(get_close_matches(plain, names, n=6, cutoff=0.5))
        raise ValueError(
            f"timm has no network {plain!r}{close and f'; close names: {close}'}; timm.list_models() lists them"
        )
    if tag not in ("", *(tags := _tags(plain))):
        raise ValueError(f"timm has no weights {tag!r} of {plain}; it has: {', '.join(tags) or 'none'}")
    return timm.get_pretrained_cfg(name)


def _tags(name):
    listed = _timm().list_pretrained(f"{name}.*")
    return [each.partition(".")[2] for each in listed]


def creator(name):
    """The function of the number of classes that makes `name`, untrained; with image_size where timm fixes the size."""
    return partial(_sized if configuration(name).fixed_input_size else _unsized, name=name)


def _unsized(num_classes, *, name):
    return _timm().create_model(name, num_classes=num_classes)


def _sized(num_classes, *, name, image_size=None):
    return _timm().create_model(name, num_classes=num_classes, **({"img_size": image_size} if image_size else {}))


def heads(network):
    """The names of the layers that give the logits; none where timm names none."""
    named = network.pretrained_cfg.get("classifier") or ()
    return [named] if isinstance(named, str) else [*named]


def resampled(network, tensors):
    """`tensors` of a network that was built for another size, made to fit `network` by timm's own function for it."""
    adapt = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    return adapt(dict(tensors), network) if adapt else tensors


def about(name):
    """(classes or None, mean, std) of the weights that `name` has a tag of, or of timm's first: ImageNet's by name."""
    given = configuration(name)
    return _classes(given), given.mean, given.std


def _classes(given):
    from timm.data import infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": given.num_classes})
    return None if subset is None else [*imagenet(subset).values()]


@cache
def imagenet(subset="imagenet-1k"):
    """Synset -> the first of its names, for ImageNet's classes in the order in which networks answer them."""
    _timm()
    from timm.data import ImageNetInfo

    named = ImageNetInfo(subset)
    return {synset: named.label_name_to_description(synset).split(",")[0] for synset in named.label_names()}


def published(name, tag):
    """timm's weights `tag` of `name`: (state dict, their classes or None, mean, std); fetched once."""
    given = configuration(whole := f"{name}.{tag}")
    try:
        network = _timm().create_model(whole, pretrained=True)
    except Exception as error:  # of whatever library fetches: httpx, requests, huggingface_hub, urllib
        place = f"https://huggingface.co/{given.hf_hub_id}" if given.hf_hub_id else given.url
        raise ConnectionError(
            f"timm's weights {whole} cannot be fetched ({(str(error).splitlines() or [type(error).__name__])[0]}); "
            f"fetch them elsewhere ({place}: model.safetensors), put the file into data/weights and name it: "
            f"timm:{whole}:FILE"
        ) from error
    return network.state_dict(), *about(whole)
