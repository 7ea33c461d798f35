"""A pass leaves out the layers before an explained one where what they answer is known, and nothing else."""

from contextlib import suppress

import pytest
import torch
from torch import nn

from xai_utils.networks import build, cam_layer, head_gradient, inference_copy
from xai_utils.networks.trunk import Trunk

NETWORKS = {"small_resnet": 64, "timm:test_vit": 160, "timm:test_convnext": 64}


def copied(name):
    """A copy of one's own, images, the layer of class activation maps, and how often its first weights were used."""
    images = torch.rand(3, 3, NETWORKS[name], NETWORKS[name])
    model, uses = inference_copy(build(name, range(5)), images[:1]), []
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    pass_of = first.forward

    def counted(*given):
        uses.append(len(given[0]))
        return pass_of(*given)

    first.forward = counted
    return model, images, cam_layer(model, images), uses


@pytest.mark.parametrize("name", NETWORKS)
def test_the_second_pass_of_the_same_images_runs_the_head_alone(name):
    model, images, layer, uses = copied(name)
    trunk = Trunk(model)
    with torch.no_grad():
        expected = model(images)
        with trunk.once(layer, images):
            found = head_gradient(model, images, layer)[2]
            del uses[:]
            again = model(images)
        assert not uses
        other = model(images.flip(0))
    assert torch.equal(found, expected)
    assert torch.equal(again, expected)
    assert uses == [len(images)]
    assert torch.equal(other, expected.flip(0))


def test_a_pass_that_fails_leaves_nothing_out_of_the_next():
    model, images, layer, uses = copied("small_resnet")
    trunk = Trunk(model)
    with suppress(ZeroDivisionError), torch.no_grad(), trunk.once(layer, images):
        model(images)
        raise ZeroDivisionError
    del uses[:]
    with torch.no_grad():
        model(images)
    assert uses == [len(images)]


def test_a_network_that_reads_its_image_again_is_run_whole():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.early, self.late = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, images):
            return (self.late(self.early(images)) * self.weight[:, None, None]).mean((2, 3)) + self.early(images).mean()

    model, images = Reads().eval().requires_grad_(False), torch.rand(2, 3, 16, 16)
    assert Trunk(model).before("late", images) is None
