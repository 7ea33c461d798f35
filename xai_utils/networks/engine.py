"""A copy of a model whose passes onnxruntime makes, where no gradient is needed; all else runs in PyTorch as before.

A graph is exported for each size of image and each set of layers whose outputs are read, when the first such batch
comes. It is kept in FOLDER, under a name that stands for all that it was made of, and checked whenever it is opened.
"""

import copy
import io
import os
import sys
import threading
import warnings
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack as function_modes
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as dispatch_modes

from xai_utils.files import fingerprint, write_atomically
from xai_utils.networks.answers import unpacked
from xai_utils.networks.digests import digest
from xai_utils.networks.inference import inference_copy
from xai_utils.networks.layers import bare, find_layer, observed
from xai_utils.networks.layouts import tensor_of
from xai_utils.networks.trunk import Trunk

CHOICES = ("auto", "onnxruntime", "copy")
FOLDER = Path(".checkpoints/engine")
TOLERANCE = 1e-5  # of the largest value: sums in another order stay below
NEEDED = ("onnxruntime", "onnx")  # onnx writes what torch exports
_made = WeakKeyDictionary()  # model -> {what its engine was made of: its engine}


def engine(model, images, layers=(), reduce=None, *, choice="auto", keep=()):
    """An `inference_copy` whose passes without gradients onnxruntime makes on the CPU, in 0.5 to 0.8 of the time.

    It takes the model's place in methods and metrics: maps are the same up to rounding. What needs a gradient of the
    whole network, hooks inside it, or another device runs in PyTorch; class activation maps take the activation from
    the graph, and only the head behind it runs there. Like the copy it has eval mode and is frozen; weights that are
    changed afterwards are seen, by PyTorch. `images` (N, 3, H, W): those of the first passes; other sizes and numbers
    of images work.

    engine(images) are logits (N, K). With `layers` (names) they are a pair: logits and a dict layer -> output, or
    what `reduce`, a function (name, output) -> tensor with a row per image, makes of it inside the graph.

    `choice`: "copy" is PyTorch alone. "auto" and "onnxruntime" warn with one line and use PyTorch where the network
    cannot be exported, or where the graph's answers to the probe are further than 1e-5 of the largest from PyTorch's.
    Where onnxruntime is not installed, "auto" does without, and "onnxruntime" is an ImportError. `told` says what was
    used. `keep` as in `inference_copy`.
    """
    lacking = lacking_for(choice)
    made = inference_copy(model, images[:1], keep=keep)
    passes = made.forward = Passes(made, layers, reduce, images[:1].detach())
    if choice == "copy":
        passes.why = "it was asked for"
    elif images.device.type != "cpu":
        passes.why = f"the images are on {images.device.type}"
    elif torch.is_autocast_enabled("cpu"):
        passes.why = f"passes are made in {torch.get_autocast_dtype('cpu')}".replace("torch.", "")
    elif lacking:
        passes.why = f"{' and '.join(lacking)} cannot be imported"
    else:
        passes.graph(images, passes.own)
    return made


def lacking_for(choice) -> list[str]:
    """The packages that onnxruntime's passes need and that are not installed; as errors those of `engine`."""
    if choice not in CHOICES:
        raise ValueError(f"engine {choice!r} is unknown; choose one of {', '.join(CHOICES)}")
    lacking = [name for name in NEEDED if find_spec(name) is None]
    if choice == "onnxruntime" and lacking:
        raise ImportError(
            f'engine is "onnxruntime", and {" and ".join(lacking)} cannot be imported; install the extra `pipeline` '
            '(pip install ".[pipeline]"), or choose "auto" or "copy"'
        )
    return lacking


def engine_of(model, images, choice, keep=()):
    """The `engine` of a model, made once for as long as its weights are the same; an engine is its own."""
    if passes_of(model) is not None:
        return model
    key, made = (digest(model), choice, tuple(keep)), _made.setdefault(bare(model), {})
    if key not in made:
        made.clear()
        made[key] = engine(model, images, choice=choice, keep=keep)
    return made[key]


def told(model) -> str:
    """What makes the passes of an `engine`, and why, in words."""
    passes = passes_of(model)
    if passes is None or passes.why:
        return "PyTorch, on the inference copy" + (f": {passes.why}" if passes else "")
    return "onnxruntime, where no gradient is needed"


def passes_of(model) -> "Passes | None":
    """The Passes of an engine; None of any other model."""
    forward = getattr(bare(model), "forward", None)
    return forward if isinstance(forward, Passes) else None


class _Graph(nn.Module):
    """What is exported: images -> the logits, and what was `asked` for."""

    def __init__(self, passes, asked):
        super().__init__()
        self.passes, self.asked = passes, asked

    def forward(self, images):
        return self.passes.in_pytorch(images, self.asked)


class Passes:
    """The `forward` of an engine's model.

    PyTorch makes a pass where images want a gradient, are not on the CPU or not float32, under autocast, where hooks
    inside the model do more than `reading`, modes see PyTorch's operations (to count them, say), or weights were
    changed.
    """

    def __init__(self, model, layers, reduce, images):
        self.model, self.forward, self.images, self.reduce = model, model.forward, images, reduce
        self.own = tuple((name, reduce is not None) for name in layers)  # (layer, whether its output is reduced)
        self.why, self.lock, self.here = None, threading.RLock(), threading.local()
        self.graphs, self.readers, self.trunk = {}, [], Trunk(model, self.forward)
        self.tensors = [*model.parameters(), *model.buffers()]
        self.versions, self.hooks = self._versions(), self._hooks()

    def __deepcopy__(self, memo):  # its weights may become others: it runs in PyTorch
        return copy.deepcopy(self.forward, memo)

    def __call__(self, images):
        if not self.own or self.trunk.skipped:
            found = self._run(images, ())
            return self.forward(images) if found is None else found[0]
        logits, *found = self._run(images, self.own) or self.in_pytorch(images, self.own)
        return logits, dict(zip((name for name, _ in self.own), found, strict=True))

    def in_pytorch(self, images, asked):
        """The logits, and an output for each of `asked` (layer, whether it is reduced)."""
        seen = {}

        def keep(name, _, output):
            output = tensor_of(output)
            seen[name, False] = output.clone()  # a later module may write into it
            if (name, True) in asked:
                seen[name, True] = self.reduce(name, output)

        with observed(self.model, keep, modules=self._layers(name for name, _ in asked)):
            logits = unpacked(self.forward(images))
        return logits, *(seen[each] for each in asked)

    @contextmanager
    def reading(self, see, layers):
        """Inside the `with`, `see(name, layer, output)` as in `observed`, for a function that changes nothing."""
        mine = [(threading.get_ident(), name, see) for name in layers]

        def see_computed(*given):
            if not self.trunk.skipped and not getattr(self.here, "looking", False):
                see(*given)

        with observed(self.model, see_computed, modules=self._layers(layers)):
            self.readers += mine
            try:
                yield
            finally:
                self.readers = [each for each in self.readers if each not in mine]

    def activation(self, images, layer):
        """A layer's output by onnxruntime, and the context in which a pass computes only what is behind the layer.

        None where PyTorch has to make the whole pass.
        """
        if not self._plain(images):
            return None
        with self._looking():
            before = self.trunk.before(layer, images)
        if before is None:
            return None
        shapes, read = before
        found = self._run(images, tuple((name, False) for name in (layer, *read)))
        if found is None:
            return None
        return found[1], self.trunk.skipping(shapes | dict(zip(self._layers(read).values(), found[2:], strict=True)))

    def _layers(self, names):
        return {name: find_layer(self.model, name) for name in names}

    @contextmanager
    def _looking(self):
        """For passes of the engine's own, which no reader is to see."""
        self.here.looking = True
        try:
            with self.lock, torch.inference_mode(False), torch.no_grad():
                yield
        finally:
            self.here.looking = False

    def _versions(self):
        return [tensor._version for tensor in self.tensors]

    def _hooks(self):
        inside = (module for module in self.model.modules() if module is not self.model)
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in inside)

    def _plain(self, images):
        """Whether onnxruntime may make this pass."""
        return (
            self.why is None
            and not self.trunk.skipped
            and len(images) > 0
            and (images.device.type, images.dtype) == ("cpu", torch.float32)
            and not (images.requires_grad and torch.is_grad_enabled())
            and not (function_modes() or dispatch_modes())
            and not torch.is_autocast_enabled("cpu")
            and self._hooks() == self.hooks + len(self.readers)
            and self._versions() == self.versions
        )

    def _run(self, images, asked):
        """(logits, an output for each of `asked`) by onnxruntime, shown to readers, too; None where PyTorch has to."""
        if not self._plain(images):
            return None
        readers = [(name, see) for thread, name, see in self.readers if thread == threading.get_ident()]
        every = tuple(dict.fromkeys([*asked, *((name, False) for name, _ in readers)]))
        if (graph := self.graph(images, every)) is None:
            return None
        logits, *found = _outputs(graph, images)
        outputs = dict(zip(every, found, strict=True))
        for name, see in readers:
            see(name, find_layer(self.model, name), outputs[name, False])
        return logits, *(outputs[each] for each in asked)

    def graph(self, images, asked):
        """The session of such a pass, opened when first wanted; None, after a warning, where there can be none."""
        key = (torch.get_num_threads(), *images.shape[1:], asked)
        with self._looking():
            if key not in self.graphs:
                try:
                    self.graphs[key] = self._opened(*images.shape[1:], asked=asked)
                except Exception as error:  # whatever torch, onnx or onnxruntime say of a network
                    first = (str(error).splitlines() or [""])[0][:200]
                    reason = f"{type(error).__name__}: {first}" if type(error) is not _Unequal else first
                    if not self.graphs:
                        self.why = reason
                    warnings.warn(
                        f"{type(bare(self.model)).__name__} runs in PyTorch for images of {images.shape[2]} x "
                        f"{images.shape[3]} pixels, not in onnxruntime ({reason})",
                        stacklevel=2,
                    )
                    self.graphs[key] = None
            return self.graphs[key]

    def _opened(self, *shape, asked):
        import onnx
        import onnxruntime

        noise = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
        probe = torch.cat([self.images, noise]) if self.images.shape[1:] == shape else noise
        expected = self.in_pytorch(probe, asked)
        reduce = self.reduce and f"{self.reduce.__module__}.{self.reduce.__qualname__}"
        versions = [library.__version__ for library in (torch, onnx, onnxruntime)]
        facts = [digest(self.model), repr(self.model), shape, asked, reduce, versions]
        path = FOLDER / f"{fingerprint(facts)}.onnx"
        try:
            return _agreeing(onnxruntime, path.read_bytes(), probe, expected)
        except Exception:  # there is none, or it is broken or of other code
            exported = self._exported(probe[:2], asked)
        with suppress(OSError):  # it serves from memory, too
            write_atomically(path, lambda partial: partial.write_bytes(exported), size=len(exported))
        return _agreeing(onnxruntime, exported, probe, expected)

    def _exported(self, probe, asked):
        outputs, file = ["logits", *(f"output_{place}" for place in range(len(asked)))], io.BytesIO()
        options = {"dynamic_axes": {name: {0: "images"} for name in ("images", *outputs)}, "dynamo": False}
        with warnings.catch_warnings(), _silenced():
            warnings.simplefilter("ignore")  # of tracing, whose result is checked
            names = {"input_names": ["images"], "output_names": outputs}
            torch.onnx.export(_Graph(self, asked).eval(), (probe,), file, **names, **options)
        return file.getvalue()


@contextmanager
def _silenced():
    """Nothing reaches the process's own standard output: where an export fails, torch's C++ prints the graph there."""
    sys.stdout.flush()
    with open(os.devnull, "wb") as nowhere:
        kept = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


class _Unequal(ValueError):
    """A graph's answers are not PyTorch's."""


def _outputs(graph, images):
    return [*map(torch.from_numpy, graph.run(None, {"images": images.detach().contiguous().numpy()}))]


def _agreeing(onnxruntime, content, probe, expected):
    """The session of a graph whose outputs for the `probe` are those `expected`, up to TOLERANCE."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # PyTorch's threads want the cores next
    graph = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    for place, (found, wanted) in enumerate(zip(_outputs(graph, probe), expected, strict=True)):
        far = ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)).item()
        if found.shape != wanted.shape or not far <= TOLERANCE:
            what = f"outputs {place}" if place else "logits"
            raise _Unequal(f"its {what} differ by {far:.1g} of the largest, where {TOLERANCE:g} is allowed")
    return graph
