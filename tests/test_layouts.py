"""What a layer's output is, decided by what it answers to: maps in three layouts, and what only has their shape."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from xai_utils.networks import head_gradient
from xai_utils.networks.layouts import Layout
from xai_utils.networks.probe import layout_of, layouts

IMAGES = torch.rand(1, 3, 64, 96)  # patches of 16 pixels: a grid of 4 x 6


class Patches(nn.Module):
    """The 16 x 16 patches of an image, projected to 8 channels: (N, h, w, 8), or tokens behind a learned prefix."""

    def __init__(self, prefix=None):
        super().__init__()
        self.project = nn.Conv2d(3, 8, 16, 16)
        self.first = None if prefix is None else nn.Parameter(torch.rand(1, prefix, 8))

    def forward(self, images):
        features = self.project(images)
        if self.first is None:
            return features.permute(0, 2, 3, 1)
        return torch.cat([self.first.expand(len(images), -1, -1), features.flatten(2).transpose(1, 2)], 1)


class Heads(nn.Module):
    """Attention of two heads among tokens: weights (N, 2, T, T), values (N, 2, T, 4), a bias of positions, a mean."""

    def __init__(self, tokens):
        super().__init__()
        self.weights, self.values, self.positions = nn.Identity(), nn.Identity(), nn.Identity()
        self.windows, self.named = nn.Identity(), Named()
        self.bias = nn.Parameter(torch.rand(1, tokens, 8))

    def forward(self, tokens):
        split = tokens.unflatten(2, (2, 4)).transpose(1, 2)  # (N, 2, T, 4)
        attention = self.weights(functional.softmax(split @ split.transpose(2, 3), -1))
        mixed = self.values(attention @ split).transpose(1, 2).flatten(2)
        self.windows(torch.cat(tokens.split(12, 1)[:2]))  # two windows of each image: (2 N, 12, 8)
        self.named(tokens)
        return tokens + mixed + self.positions(self.bias.expand(len(tokens), -1, -1))


class Named(nn.Module):
    def forward(self, tokens):
        return {"tokens": tokens}


class Mean(nn.Module):
    def forward(self, tokens):
        return tokens.mean(1)


def transformer(images, prefix):
    """Patches, attention, a mean over tokens and a head; one layer is never run."""
    tokens = prefix + images.shape[-2] * images.shape[-1] // 256
    model = nn.Sequential(Patches(prefix), Heads(tokens), Mean(), nn.Linear(8, 3)).eval()
    model[3].unused = nn.Identity()
    return model


@pytest.mark.parametrize("size", [(96, 96), (64, 96), (96, 64), (160, 96)])
def test_channels_last_is_told_from_channels_first(size):
    """(N, h, w, 8) and (N, 8, h, w) of the same patches, the first of which could be read as the second."""
    model = nn.Sequential(Patches(), nn.Flatten(), nn.LazyLinear(3)).eval()
    images, grid = torch.rand(1, 3, *size), (size[0] // 16, size[1] // 16)
    model(images)
    assert layouts(model, images) == {"0.project": Layout("channels first", grid), "0": Layout("channels last", grid)}


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("size", [(96, 96), (64, 96), (96, 64)])
def test_tokens_before_the_grid_are_counted(size, prefix):
    """Class, distillation and register tokens are no places, on square grids and others (64 x 96 pixels: 4 x 6)."""
    images = torch.rand(1, 3, *size)
    found = layouts(transformer(images, prefix), images)
    grid = size[0] // 16, size[1] // 16
    assert found["0"] == found["1"] == Layout("tokens", grid, prefix)
    assert set(found) == {"0.project", "0", "1"}


@pytest.mark.parametrize(
    ("layer", "returned"),
    [("1.weights", r"\(N, 2, 25, 25\)"), ("1.values", r"\(N, 2, 25, 4\)"), ("1.positions", r"\(N, 25, 8\)"),
     ("1.named", "a dict"), ("2", r"\(N, 8\)")],
)  # fmt: skip
def test_what_only_looks_like_a_map_is_none(layer, returned):
    """Attention, its heads' values, a bias that never sees the image, a dict and a mean, each by its shape."""
    with pytest.raises(ValueError, match=f"layer '{layer}' returns {returned} for images of 64 x 96 pixels, no map"):
        layout_of(transformer(IMAGES, 1), IMAGES, layer)


def test_a_table_of_positions_is_no_map_of_as_many_images():
    """Coordinates of 6 x 6 places, as windows have them, come in an order and are as many as the probe's images."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.project, self.table = nn.Conv2d(3, 8, 16, 16), nn.Linear(2, 8)

        def forward(self, images):
            steps = torch.arange(6.0)
            places = self.table(torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1))  # (6, 6, 8)
            return self.project(images).mean((2, 3)) + places.mean((0, 1))

    images = torch.rand(1, 3, 96, 96)
    assert set(layouts(Positions().eval(), images)) == {"project"}


def test_windows_and_layers_that_do_not_run_are_no_maps():
    """An output of two rows for each image holds no map of one; a layer that is not run, or unknown, says so."""
    model = transformer(IMAGES, 0)
    with pytest.raises(ValueError, match=r"'1\.windows' returns .* no map"):
        layout_of(model, IMAGES, "1.windows")
    with pytest.raises(ValueError, match=r"layer '3\.unused' is not run by the model's forward pass"):
        layout_of(model, IMAGES, "3.unused")
    with pytest.raises(ValueError, match="layer '4' is unknown"):
        layout_of(model, IMAGES, "4")


@pytest.mark.parametrize(
    ("layout", "shape"),
    [(Layout("channels first", (4, 6)), (2, 8, 4, 6)), (Layout("channels last", (4, 6)), (2, 4, 6, 8)),
     (Layout("tokens", (4, 6)), (2, 24, 8)), (Layout("tokens", (4, 6), 5), (2, 29, 8))],
)  # fmt: skip
def test_a_map_goes_into_an_output_and_back(layout, shape):
    """`as_map` is a view (N, C, h, w); what `with_map` puts in comes out, and the tokens before the grid stay."""
    output, other = torch.rand(shape), torch.rand(2, 8, 4, 6)
    found = layout.as_map(output)
    assert found.shape == other.shape
    assert found.untyped_storage().data_ptr() == output.untyped_storage().data_ptr()
    assert torch.equal(layout.with_map(output, found), output)
    changed = layout.with_map(output, other)
    assert changed.shape == output.shape
    assert torch.equal(layout.as_map(changed), other)
    assert torch.equal(changed[:, : layout.prefix], output[:, : layout.prefix]) or not layout.prefix
    assert layout.channels(shape[1:]) == 8


@pytest.mark.parametrize("prefix", [None, 0, 1])
def test_activation_and_gradient_are_maps_of_the_places(prefix):
    """Whatever the layout, head_gradient gives the (N, 8, 4, 6) of a convolution with the same weights."""
    patches = Patches(prefix)
    model = nn.Sequential(patches, nn.Flatten(1, -2) if prefix is None else nn.Identity(), Mean(), nn.Linear(8, 3))
    activation, gradient, _, _ = head_gradient(model.eval(), IMAGES, "0", 1)
    torch.testing.assert_close(activation, patches.project(IMAGES).detach())
    places = 24 + (prefix or 0)
    expected = (model[3].weight[1].detach() / places)[None, :, None, None].expand(1, 8, 4, 6)
    torch.testing.assert_close(gradient, expected)
