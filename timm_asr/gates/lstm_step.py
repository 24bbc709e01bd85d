"""The step of an LSTM cell, from what its four gates are made of to the new state, and its gradient."""

from typing import Any

import torch
import torch.nn.functional as F

from .pooling import needs_gradient


def squash(c: torch.Tensor, act: str) -> torch.Tensor:
    """The output activation of a cell."""
    if act == 'sigmoid':
        return c.sigmoid()
    if act == 'tanh':
        return c.tanh()
    return c.relu()


def advance(
        u: torch.Tensor, weight: torch.Tensor | None, c: torch.Tensor, act: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The new hidden and cell state: c = sigmoid(f) * c' + sigmoid(i) * tanh(g), h = sigmoid(o) * act(c).

    Args:
        u: Pre-activations (B, 4C) of the gates i, f, g, o; or (B, D), which ``weight`` makes these of.
        weight: W of u W^T, (4C, D).
        c: Cell state c', (B, C).
        act: 'sigmoid', 'tanh' or 'relu'.
    """
    if torch.jit.is_scripting():
        return _literally(u if weight is None else F.linear(u, weight), c, act)
    else:  # noqa: RET505 - TorchScript compiles what follows a return
        return _advance(u, weight, c, act)


def _literally(gates: torch.Tensor, c: torch.Tensor, act: str) -> tuple[torch.Tensor, torch.Tensor]:
    i, f, g, o = gates.chunk(4, 1)
    c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
    return o.sigmoid() * squash(c, act), c


@torch.jit.unused
def _advance(
        u: torch.Tensor, weight: torch.Tensor | None, c: torch.Tensor, act: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    if weight is None or not needs_gradient(u, weight, c) or u.dtype != c.dtype or _casts(u):
        return _literally(u if weight is None else F.linear(u, weight), c, act)
    return _Advance.apply(u, weight, c, act)[:2]


def _casts(x: torch.Tensor) -> bool:
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


_BACKWARD = {
    'sigmoid': torch.ops.aten.sigmoid_backward, 'tanh': torch.ops.aten.tanh_backward,
    'relu': lambda grad, y: torch.ops.aten.threshold_backward(grad, y, 0),
}


class _Advance(torch.autograd.Function):
    """Both gated products are gated linear units, a * sigmoid(b), whose gradients are one operation each.

    The pre-activations are not kept: where a gradient of the gradient is wanted they are computed again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(u: torch.Tensor, weight: torch.Tensor, c: torch.Tensor, act: str) -> tuple[torch.Tensor, ...]:
        i, f, g, o = F.linear(u, weight).chunk(4, 1)
        inner = torch.cat([c, g.tanh(), f, i], 1).unflatten(1, (2, 2, -1))  # (B, factor or gate, term, C)
        kept, added = F.glu(inner, 1).squeeze(1).unbind(1)
        c = kept + added
        outer = torch.cat([squash(c, act), o], 1)
        return F.glu(outer, 1), c, inner, outer

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        *tensors, ctx.act = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[2:])
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(
            ctx: Any, of_h: torch.Tensor | None, of_c: torch.Tensor | None, *_: object,
    ) -> tuple[torch.Tensor | None, ...]:
        u, weight, c, inner, outer = ctx.saved_tensors
        of_h = torch.zeros_like(c) if of_h is None else of_h
        if torch.is_grad_enabled():  # a gradient of this one is wanted, so it is made of the inputs
            i, f, g, o, q, slope = _parts(u, weight, c, ctx.act)
            of_new = of_h * o * slope if of_c is None else of_h * o * slope + of_c
            of_i, of_f, of_g = of_new * g * i * (1 - i), of_new * c * f * (1 - f), of_new * i * (1 - g * g)
            of_gates = torch.cat([of_i, of_f, of_g, of_h * q * o * (1 - o)], 1)
            of_old = of_new * f
        else:
            of_squashed, of_o = torch.ops.aten.glu_backward(of_h, outer, 1).chunk(2, 1)
            of_squashed = _BACKWARD[ctx.act](of_squashed, outer.chunk(2, 1)[0])
            of_c = of_squashed if of_c is None else of_c + of_squashed
            of_inner = torch.ops.aten.glu_backward(of_c[:, None, None].expand(-1, 1, 2, -1), inner, 1)
            of_g = torch.ops.aten.tanh_backward(of_inner[:, 0, 1], inner[:, 0, 1])
            of_gates = torch.cat([of_inner[:, 1, 1], of_inner[:, 1, 0], of_g, of_o], 1)
            of_old = of_inner[:, 0, 0]
        return of_gates @ weight, of_gates.t() @ u, of_old, None

    @staticmethod
    def jvp(ctx: Any, of_u: Any, of_weight: Any, of_c: Any, _: None) -> tuple[torch.Tensor | None, ...]:
        u, weight, c = ctx.saved_tensors
        i, f, g, o, q, slope = _parts(u, weight, c, ctx.act)
        of_gates = torch.zeros_like(i).repeat(1, 4)
        if of_u is not None:
            of_gates = of_gates + F.linear(of_u, weight)
        if of_weight is not None:
            of_gates = of_gates + F.linear(u, of_weight)
        di, df, dg, do = of_gates.chunk(4, 1)
        new = f * (1 - f) * c * df + i * (1 - i) * g * di + i * (1 - g * g) * dg
        if of_c is not None:
            new = new + f * of_c
        return o * (1 - o) * q * do + o * slope * new, new, None, None


def _parts(u: torch.Tensor, weight: torch.Tensor, c: torch.Tensor, act: str) -> tuple[torch.Tensor, ...]:
    """The gates i, f, tanh(g) and o, act(c) and its slope, all (B, C)."""
    gates = F.linear(u, weight)
    i, f, g, o = gates.chunk(4, 1)
    q = squash(_literally(gates, c, act)[1], act)
    slope = {'sigmoid': q * (1 - q), 'tanh': 1 - q * q, 'relu': (q > 0).to(q)}[act]
    return i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid(), q, slope
