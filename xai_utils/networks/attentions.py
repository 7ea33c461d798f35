"""The attention probabilities of a pass, whether a network computes them step by step or in one fused call.

    attention = softmax(scale Q Kᵀ + mask),   output = attention V

torch's fused calls never show them, so while `Attentions` is active they are computed openly, to the same output up to
rounding. Calls are seen as they are made, in the passes of this thread: no module is touched.
"""

from types import FunctionType

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

SOFTMAX = {functional.softmax, torch.softmax, torch.special.softmax, torch.Tensor.softmax}

# the body of nn.MultiheadAttention, without the question that hides it from modes: whether one is active
_multi_head_attention = FunctionType(
    functional.multi_head_attention_forward.__code__,
    vars(functional) | {"has_torch_function": lambda tensors: False},
)


class Attentions(TorchFunctionMode):
    """While active, keeps the attention probabilities of the passes in `found`, in the order in which they are made.

    Each is (N, heads, queries, keys), or without an axis for heads, and part of the graph of the answers: its gradient
    can be asked for. What counts is scaled_dot_product_attention, and else a softmax over the last axis of a tensor
    with three axes or more.
    """

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is functional.multi_head_attention_forward:
            with self:  # it is off in here
                return _multi_head_attention(*args, **kwargs)
        if function is functional.scaled_dot_product_attention:
            return self._attended(*args, **kwargs)
        output = function(*args, **kwargs)
        if function in SOFTMAX and output.ndim > 2:
            axis = args[1] if len(args) > 1 else kwargs.get("dim")
            if axis in (-1, output.ndim - 1):
                self.found.append(output)
        return output

    def _attended(
        self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False
    ):
        """As torch.nn.functional.scaled_dot_product_attention, whose arguments they are."""
        if enable_gqa:  # several heads of queries share one of keys and values
            key, value = (each.repeat_interleave(query.shape[-3] // each.shape[-3], -3) for each in (key, value))
        scores = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.mT  # (N, heads, queries, keys)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        attention = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        self.found.append(attention)
        return functional.dropout(attention, dropout_p).to(value.dtype) @ value
