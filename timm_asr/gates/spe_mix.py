"""How SPE's gates mix maximum and minimum: the shares of both, those of a whole network at once, and the weights."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .fused import gradients_of, in_training_for, needs_gradient, standard
from .passes import Pass, begin, end, take, uncounted, version


def shares(p: Tensor, eps: float) -> Tensor:
    """Shares of maximum and minimum, q / (q_0 + q_1) with q = p^2 + eps: Eq. 3. (..., 2) -> (..., 2)."""
    # In single precision at least: squares of small float16 numbers are zero.
    q = (p * p.new_ones([1], dtype=torch.float32)).square() + eps
    return q / q.sum(-1, keepdim=True)


def shares_of(gate: Any) -> Tensor:
    """The shares (2,) of an SPE gate, as it was handed them by :func:`shares_at_once`, or its own."""
    if torch.compiler.is_compiling():
        return shares(gate.mix, gate.eps)
    found = take(gate, gate.mix)
    if found is not None:
        return found['shares']
    with uncounted():
        return shares(gate.mix, gate.eps)


@contextmanager
def shares_at_once(gates: list[Any]) -> Iterator[None]:
    """Compute the shares of SPE gates together and hand them out until the end of the context.

    A gate that runs later, as when blocks are recomputed for the backward pass, computes its own. So do those whose
    parameters cannot be stacked, such as the shards of FSDP.
    """
    mixes = [gate.mix for gate in gates]
    kinds = {(p.dtype, p.device, gate.eps) for p, gate in zip(mixes, gates, strict=True)}
    full = all(type(p) in (Tensor, nn.Parameter) and p.dtype in (torch.float32, torch.float64) for p in mixes)
    if len(kinds) != 1 or not full or not needs_gradient(mixes):
        yield
        return
    each = AllShares.apply(gates[0].eps, *mixes)
    begin(Pass(
        weakref.ref(gates[0]),
        {gate: {'shares': own} for gate, own in zip(gates, each, strict=True)},
        {gate: (p, version(p)) for gate, p in zip(gates, mixes, strict=True)},
        torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
    try:
        yield
    finally:
        end(gates[0])


class AllShares(torch.autograd.Function):
    """The shares of each pair of parameters; a pair whose shares nobody used gets no gradient, not one of zeros.

    Else the hook that adds the penalty to a gradient would add it twice where a gate has run again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(eps: float, *mixes: Tensor) -> tuple[Tensor, ...]:
        return shares(torch.stack(mixes), eps).unbind()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.eps, *mixes = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*mixes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        p = torch.stack(ctx.saved_tensors)
        q = p.square() + ctx.eps
        total = q.sum(-1, keepdim=True)
        g = torch.stack([p.new_zeros(2) if grad is None else grad for grad in grads])
        found = (2 * p / total * (g - (g * q / total).sum(-1, keepdim=True))).unbind()
        return None, *(None if grad is None else own for grad, own in zip(grads, found, strict=True))


def _mixed_weights(u: Tensor, share: Tensor, w: Tensor, b: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    high, low = u.chunk(2, 1)
    mixed = torch.lerp(low, high, share[0].to(high.dtype))
    return torch.addcmul(b, mixed, w).sigmoid() * torch.addcmul(b2, high + low, w2).sigmoid()


@in_training_for(_mixed_weights)
def mixed_weights(u: Tensor, share: Tensor, w: Tensor, b: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """v = sigmoid(w (share_0 * max + share_1 * min) + b) * sigmoid(w' (max + min) + b'): Eq. 2, 4 and 6.

    Args:
        u: Maximum and minimum, (B, 2C).
        share: Their shares, (2,).
        w, b, w2, b2: (C,).
    """
    if not (u.dtype == share.dtype == w.dtype and w.dtype in (torch.float32, torch.float64)):
        return _mixed_weights(u, share, w, b, w2, b2)
    return _MixedWeights.apply(u, share, w, b, w2, b2)[0]


class _MixedWeights(torch.autograd.Function):
    """Maximum and minimum, (B, 2, C), times the matrix [share; 1] of two rows are u and max + min.

    Both then pass one product, one sum and one sigmoid. The gradients are as few operations.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, share: Tensor, w: Tensor, b: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, ...]:
        rows = torch.stack([share, standard(share)[1]])
        mixed = torch.bmm(rows.expand(len(u), 2, 2), u.unflatten(1, (2, -1))).flatten(1)
        weight, bias = torch.cat([w, w2, b, b2]).chunk(2)
        s = torch.addcmul(bias, mixed, weight).sigmoid()
        return s[:, :len(w)] * s[:, len(w):], rows, mixed, s, weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        *inputs, v, rows, mixed, s, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return gradients_of(_mixed_weights, inputs, grad)
        pair = inputs[0].unflatten(1, (2, -1))
        of_log = (grad * v).unsqueeze(1)
        of_z = torch.addcmul(of_log, of_log, s.view_as(pair), value=-1).flatten(1)
        of_mixed, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            of_z, mixed, weight, *standard(weight), None, None, False, 0.0, [True, True, True])
        of_mixed = of_mixed.view_as(pair)
        of_u = torch.bmm(rows.t().expand(len(pair), 2, 2), of_mixed).flatten(1)
        of_share = (of_mixed[:, :1] * pair).sum((0, 2))
        (of_w, of_w2), (of_b, of_b2) = of_weight.chunk(2), of_bias.chunk(2)
        return of_u, of_share, of_w, of_b, of_w2, of_b2
