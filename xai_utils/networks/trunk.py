"""The layers of a network before an explained one, left out of a pass where what they would answer is known."""

import copy
import threading
from collections import Counter
from contextlib import contextmanager, suppress

import torch

from xai_utils.networks.answers import unpacked
from xai_utils.networks.layers import find_layer, observed
from xai_utils.networks.layouts import tensor_of
from xai_utils.networks.probe import layout_of


class _Skippable:
    """The `forward` of a layer before an explained one: while `skipped()` has a stand-in for its output, that.

    A tensor, or a shape of zeros, which cost nothing, where what follows does not read the output.
    """

    def __init__(self, layer, skipped):
        self.layer, self.forward, self.skipped = layer, layer.forward, skipped

    def __deepcopy__(self, memo):
        return copy.deepcopy(self.forward, memo)

    def __call__(self, *given, **options):
        output = self.skipped().get(self.layer)
        if output is None:
            return self.forward(*given, **options)
        return given[0].new_zeros(()).expand(len(given[0]), *output) if isinstance(output, tuple) else output.clone()


class Trunk:
    """What of `model`, a frozen copy in eval mode, need not run again for what is behind a layer.

    Its layers' `forward` are replaced: nothing but a copy of one's own is given here. `forward` is the model's pass
    (None: its own). Each thread leaves out for itself.
    """

    def __init__(self, model, forward=None):
        self.model, self.forward = model, forward or model.forward
        self.here, self.known = threading.local(), {}

    @property
    def skipped(self):
        """Layer -> the stand-in for its output, in the passes of this thread: a tensor (N, ...) or a shape (...)."""
        return getattr(self.here, "skipped", {})

    @contextmanager
    def skipping(self, outputs):
        """The passes inside the `with` take `outputs`, as of `skipped`, for what their layers answer."""
        self.here.skipped = outputs
        try:
            yield
        finally:
            self.here.skipped = {}

    @contextmanager
    def once(self, layer, images):
        """Of the passes of `images` inside the `with`, the first is whole; later ones run what is behind `layer`.

        All are whole where `before` finds nothing that can be left out.
        """
        layout_of(self.model, images, layer)  # its probe, a pass of other images, is made now or never
        with torch.inference_mode(False), torch.no_grad():
            found = self.before(layer, images)
        if found is None:
            yield
            return
        (shapes, read), outputs = found, {}

        def keep(_, module, output):
            outputs.setdefault(module, tensor_of(output).detach().clone())

        def end(*_):
            self.here.skipped = shapes | outputs

        ended = self.model.register_forward_hook(end)
        try:
            with observed(self.model, keep, modules={name: find_layer(self.model, name) for name in (layer, *read)}):
                yield
        finally:
            ended.remove()
            self.here.skipped = {}

    def before(self, layer, images):
        """What need not run for what is behind `layer`: layer -> the shape of its output for an image, and the names of
        those whose output is read all the same. None where something else there has weights, or nothing answers alone.

        For images of this shape, type and device; two of noise are looked at.
        """
        key = layer, tuple(images.shape[1:]), images.dtype, images.device
        if key not in self.known:
            noise = torch.rand(2, *images.shape[1:], generator=torch.Generator().manual_seed(0)).to(images)
            self.known[key] = self._look(layer, noise)
        return self.known[key]

    def _look(self, layer, images):
        calls, finished = Counter(), {}

        def note(name, module, output):
            calls[name] += 1
            if layer not in finished:
                finished[name] = module, output.clone() if isinstance(output, torch.Tensor) else output

        with observed(self.model, note):
            expected = unpacked(self.forward(images))
        whole = [
            name
            for name, (_, output) in finished.items()
            if calls[name] == 1 and isinstance(output, torch.Tensor) and len(output) == len(images)
        ]
        inside = tuple(f"{name}." for name in whole)
        weighty = (name for name, (module, _) in finished.items() if [*module.parameters(recurse=False)])
        if layer not in whole or not all(f"{name}.".startswith(inside) for name in weighty):
            return None
        shapes = {finished[name][0]: tuple(finished[name][1].shape[1:]) for name in whole}
        for module in shapes:
            if not isinstance(module.forward, _Skippable):
                module.forward = _Skippable(module, lambda: self.skipped)
        before = [name for name in whole if name != layer and not name.startswith(f"{layer}.")][-1:]
        for read in ([], before):  # a shortcut around the layer, as a transformer's around its norm
            known = {finished[name][0]: finished[name][1] for name in (layer, *read)}
            # an error: a function writes into what is left out; other bits: what is left out is read
            with suppress(RuntimeError), self.skipping(shapes | known):
                if torch.equal(unpacked(self.forward(images)), expected):
                    return shapes, read
        return None
