"""The step of an LSTM cell, from what its four gates are made of to the new state, and its gradient."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .fused import gradients_of, in_training_for


def squash(c: Tensor, act: str) -> Tensor:
    """The output activation of a cell."""
    if act == 'sigmoid':
        return c.sigmoid()
    return c.tanh() if act == 'tanh' else c.relu()


def _advance(u: Tensor, weight: Tensor | None, c: Tensor, act: str) -> tuple[Tensor, Tensor]:
    i, f, g, o = (u if weight is None else F.linear(u, weight)).chunk(4, 1)
    c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
    return o.sigmoid() * squash(c, act), c


@in_training_for(_advance)
def advance(u: Tensor, weight: Tensor | None, c: Tensor, act: str) -> tuple[Tensor, Tensor]:
    """The new hidden and cell state: c = sigmoid(f) * c' + sigmoid(i) * tanh(g), h = sigmoid(o) * act(c).

    Args:
        u: Pre-activations (B, 4C) of the gates i, f, g, o; or (B, D), which ``weight`` makes these of.
        weight: W of u W^T, (4C, D).
        c: Cell state c', (B, C).
        act: 'sigmoid', 'tanh' or 'relu'.
    """
    kind = u.device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if weight is None or u.dtype != c.dtype or casts:
        return _advance(u, weight, c, act)
    return _Advance.apply(u, weight, c, act)[:2]


_BACKWARD = {
    'sigmoid': torch.ops.aten.sigmoid_backward, 'tanh': torch.ops.aten.tanh_backward,
    'relu': lambda grad, y: torch.ops.aten.threshold_backward(grad, y, 0),
}


class _Advance(torch.autograd.Function):
    """Both gated products are gated linear units, a * sigmoid(b), whose gradients are one operation each."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, weight: Tensor, c: Tensor, act: str) -> tuple[Tensor, ...]:
        i, f, g, o = F.linear(u, weight).chunk(4, 1)
        inner = torch.cat([c, g.tanh(), f, i], 1).unflatten(1, (2, 2, -1))  # (B, factor or gate, term, C)
        kept, added = F.glu(inner, 1).squeeze(1).unbind(1)
        c = kept + added
        outer = torch.cat([squash(c, act), o], 1)
        return F.glu(outer, 1), c, inner, outer

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.act = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[2:])

    @staticmethod
    def backward(ctx: Any, of_h: Tensor | None, of_c: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
        u, weight, c, inner, outer = ctx.saved_tensors
        of_h = torch.zeros_like(c) if of_h is None else of_h
        if torch.is_grad_enabled():
            grads = of_h, torch.zeros_like(c) if of_c is None else of_c
            return *gradients_of(lambda u, weight, c: _advance(u, weight, c, ctx.act), (u, weight, c), grads), None
        of_squashed, of_o = torch.ops.aten.glu_backward(of_h, outer, 1).chunk(2, 1)
        of_squashed = _BACKWARD[ctx.act](of_squashed, outer.chunk(2, 1)[0])
        of_c = of_squashed if of_c is None else of_c + of_squashed
        of_inner = torch.ops.aten.glu_backward(of_c[:, None, None].expand(-1, 1, 2, -1), inner, 1)
        of_g = torch.ops.aten.tanh_backward(of_inner[:, 0, 1], inner[:, 0, 1])
        of_gates = torch.cat([of_inner[:, 1, 1], of_inner[:, 1, 0], of_g, of_o], 1)
        return of_gates @ weight, of_gates.t() @ u, of_inner[:, 0, 0], None
