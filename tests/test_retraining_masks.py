"""The masks of ROAR and KAR: of exactly the promised size, at the most or least salient positions."""

import pytest
import torch
import toy_networks
from torch import nn

from xai_utils.explainers.activation_statistics import PRE_ACTIVATION, STATISTICS
from xai_utils.networks import build, captured, find_layer, pre_activations
from xai_utils.networks.probe import layout_of
from xai_utils.retraining import masks

LAYERS = ("relu", "layer1", "layer2", "layer3", "layer4")


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return build("tiny_resnet", range(3)).eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("least", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5, 12])
def test_exactly_k_positions_are_kept(count, least):
    """None, one, some and all positions, also of a map full of ties; most and least salient are the ends of a ramp."""
    ramp = torch.arange(12.0).reshape(1, 3, 4)
    tied = torch.cat([torch.zeros(1, 3, 4), (ramp > 3).float(), ramp])
    kept = masks.kept_positions(tied, count, least=least)
    assert kept.flatten(1).sum(1).tolist() == [count] * 3
    expected = ramp[0] < count if least else ramp[0] >= 12 - count
    assert torch.equal(kept[2], expected)
    assert torch.equal(kept[0].flatten(), torch.arange(12) < count)  # ties go by row-major index


def test_a_share_keeps_at_least_one_position():
    """2.5 % of 7 x 7 is one position, of 112 x 112 it is 314; a share outside (0, 1] is refused."""
    assert [masks.kept_count(0.025, n) for n in (49, 112**2, 196)] == [1, 314, 5]
    assert masks.kept_count(1, 36) == 36
    for share in (0, 1.1):
        with pytest.raises(ValueError, match=r"lies in \(0, 1\]"):
            masks.kept_count(share, 10)


def recorded(capture, model, images, layer):
    with torch.no_grad(), capture(model, [layer], reduce=lambda _, output: output.clone()) as found:
        model(images)
    return found[layer]


@pytest.mark.parametrize("statistic", [None, "smoe_scale", "truncated_normal_entropy"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_masked_layer_by_hand(tiny, images, layer, statistic):
    """Behind the mask stands the layer's own output at its most salient positions, times positions / kept, else 0."""
    capture = pre_activations if statistic == "truncated_normal_entropy" else captured
    plain, seen = (recorded(each, tiny, images, layer) for each in (captured, capture))
    positions = plain[0, 0].numel()
    count = masks.kept_count(0.1, positions)
    masked, behind = masks.layer_masked_model(tiny, layer, statistic=statistic, share=0.1), []
    layout_of(masked.model, images, layer)  # looks at the network once
    following = {"relu": "maxpool", "layer1": "layer2", "layer2": "layer3", "layer3": "layer4", "layer4": "avgpool"}
    find_layer(masked.model, following[layer]).register_forward_pre_hook(
        lambda _, given: behind.append(given[0].clone())
    )
    torch.manual_seed(7)
    with torch.no_grad():
        masked(images)
    torch.manual_seed(7)
    maps = torch.rand(2, *plain.shape[2:]) if statistic is None else STATISTICS[statistic](seen)
    keep = masks.kept_positions(maps, count)
    torch.testing.assert_close(behind[0], torch.where(keep[:, None], plain * positions / count, 0))


@pytest.mark.parametrize("name", toy_networks.NETWORKS)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_layers_that_no_relu_ends_are_masked_in_any_layout(name, statistic):
    """Negative values count as 0 where a statistic needs a ReLU's output; two of the places stay as they are."""
    target, images = toy_networks.target(name), torch.rand(2, 3, *toy_networks.SIZES[name])
    layer = {"tokens": "blocks.1"}.get(name, "stages.0")
    plain = toy_networks.as_map(name, recorded(captured, target, images, layer))
    saliency = STATISTICS[statistic](plain if statistic in PRE_ACTIVATION else plain.relu())
    share, after = 2 / saliency[0].numel(), []
    masked = masks.layer_masked_model(target, layer, statistic=statistic, share=share, scale=False)
    behind = find_layer(masked.model, {"tokens": "blocks.2"}.get(name, "stages.1"))
    behind.register_forward_pre_hook(lambda _, given: after.append(given[0].clone()))
    with torch.no_grad():
        masked(images)
    torch.testing.assert_close(toy_networks.as_map(name, after[-1]), plain * masks.kept_positions(saliency, 2)[:, None])


def test_all_positions_are_the_plain_network(tiny, images):
    """A share of 1 changes nothing; without scaling neither; the user's model keeps no hook and is not the copy."""
    with torch.no_grad():
        for scale in (True, False):
            masked = masks.layer_masked_model(tiny, "layer2", statistic="mean", share=1, scale=scale)
            torch.testing.assert_close(masked(images), tiny(images))
    assert not any(module._forward_hooks for module in (*tiny.modules(), *masked.modules()))
    assert masked.model is not tiny


def test_least_salient_positions_and_no_scaling(tiny, images):
    """KAR of share s and ROAR of share 1 - s split the positions: unscaled, the two layer outputs sum to the plain."""
    seen = {}
    for name, share, least in (("most", 0.25, False), ("least", 0.75, True)):
        masked = masks.layer_masked_model(tiny, "layer4", statistic="mean", share=share, least=least, scale=False)
        hook = find_layer(masked.model, "avgpool").register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0].clone()})
        )
        with torch.no_grad():
            masked(images)
        hook.remove()
    with torch.no_grad(), captured(tiny, ["layer4"]) as plain:
        tiny(images)
    torch.testing.assert_close(seen["most"] + seen["least"], plain["layer4"])


@pytest.mark.parametrize("layer", LAYERS)
def test_only_what_lies_behind_the_layer_is_trained(tiny, images, layer):
    """A step of training leaves the trunk's weights and batch statistics bit for bit, and moves all of the rest."""
    masked = masks.layer_masked_model(tiny, layer, statistic="smoe_scale", share=0.2).train()
    masked.freeze_trunk(images[:1])
    before = {name: value.clone() for name, value in masked.state_dict().items()}
    order = ["conv1", "bn1", "relu", "layer1", "layer2", "layer3", "layer4", "fc"]
    trunk = order[: order.index(layer) + 1]
    masked.train()
    optimizer = torch.optim.SGD([weights for weights in masked.parameters() if weights.requires_grad], lr=0.1)
    nn.functional.cross_entropy(masked(images), torch.tensor([0, 1])).backward()
    optimizer.step()
    for name, value in masked.state_dict().items():
        if name.endswith(("mean", "std")) and "bn" not in name and "downsample" not in name and "layer" not in name:
            continue  # the normalisation of the images
        frozen = name.removeprefix("model.network.").split(".")[0] in trunk
        assert torch.equal(value, before[name]) == frozen, name


def test_a_layout_that_is_known_needs_no_probe(tiny, images, monkeypatch):
    """With the layer's layout the network is not looked at, and answers the same."""
    options = {"statistic": "smoe_scale", "share": 0.25}
    expected, layout = masks.layer_masked_model(tiny, "layer3", **options)(images), layout_of(tiny, images, "layer3")
    monkeypatch.setattr(masks, "layout_of", None)
    torch.testing.assert_close(masks.layer_masked_model(tiny, "layer3", **options, layout=layout)(images), expected)


def test_no_gradient_passes_where_nothing_is_kept(tiny, images):
    """The mask is a constant: a tail's gradient is that of the kept values, and of no removed one."""
    masked = masks.layer_masked_model(tiny, "layer3", statistic="smoe_scale", share=0.25, scale=False)
    leaf = {}

    def begin(_, __, output):
        leaf["in"] = output.detach().requires_grad_()
        return leaf["in"].clone()

    find_layer(masked.model, "layer3").register_forward_hook(begin)
    masked(images).sum().backward()
    touched = leaf["in"].grad.abs().sum(1) > 0  # (N, h, w)
    kept = masks.kept_positions(STATISTICS["smoe_scale"](leaf["in"].detach()), 9)
    assert not (touched & ~kept).any()
    assert touched.any()


def test_masked_images_by_hand():
    """Top 25 % of a ramp kept or removed, all channels, the rest in the fill colour; levels hold every percentage."""
    ramp, pictures = torch.arange(16.0).reshape(1, 4, 4), torch.rand(1, 3, 4, 4)
    shares = masks.thresholds([25, 50])
    assert shares == [25, 50, 75]
    levels = masks.levels(ramp, shares)
    assert levels.dtype == torch.uint8
    assert levels.flatten().tolist() == [3] * 4 + [2] * 4 + [1] * 4 + [0] * 4
    fill = (0.1, 0.2, 0.3)
    for place, percent in enumerate(shares):
        top = ramp[0] >= 16 - 16 * percent // 100
        for keep in (True, False):
            masked = masks.masked_images(pictures, levels.numpy(), place, keep=keep, fill=fill)
            stays = top if keep else ~top
            assert torch.equal(masked[..., stays], pictures[..., stays])
            assert torch.equal(masked[..., ~stays], torch.tensor(fill)[None, :, None].expand(1, 3, int((~stays).sum())))


def test_unknown_names_are_refused(tiny):
    """A statistic or a layer that does not exist is an error that lists what does."""
    with pytest.raises(ValueError, match="statistic 'median' is unknown; choose one of smoe_scale"):
        masks.layer_masked_model(tiny, "layer1", statistic="median", share=0.1)
    with pytest.raises(ValueError, match="layer 'layer9' is unknown; close names: layer"):
        masks.layer_masked_model(tiny, "layer9", statistic="mean", share=0.1)
