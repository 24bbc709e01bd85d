"""How SPE's gates mix maximum and minimum: the shares of both, those of a whole network at once, and the weights."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .fused import standard
from .passes import Pass, begin, end, take, uncounted, version


def shares(p: torch.Tensor, eps: float) -> torch.Tensor:
    """Shares of maximum and minimum, q / (q_0 + q_1) with q = p^2 + eps: Eq. 3. (..., 2) -> (..., 2)."""
    # In single precision at least: squares of small float16 numbers are zero.
    q = (p * p.new_ones([1], dtype=torch.float32)).square() + eps
    return q / q.sum(-1, keepdim=True)


def shares_of(gate: Any) -> torch.Tensor:
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
    full = all(type(p) in (torch.Tensor, nn.Parameter) and p.dtype in (torch.float32, torch.float64) for p in mixes)
    if len(kinds) != 1 or not full:
        yield
        return
    each = AllShares.apply(gates[0].eps, *mixes)
    owner = _Owner()
    begin(Pass(
        weakref.ref(owner),
        {gate: {'shares': own} for gate, own in zip(gates, each, strict=True)},
        {gate: (p, version(p)) for gate, p in zip(gates, mixes, strict=True)},
        torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
    try:
        yield
    finally:
        end(owner)


class _Owner:
    """Of one pass."""


class AllShares(torch.autograd.Function):
    """The shares of each pair of parameters; a pair whose shares nobody used gets no gradient, not one of zeros.

    Else the hook that adds the penalty to a gradient would add it twice where a gate has run again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(eps: float, *mixes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return shares(torch.stack(mixes), eps).unbind()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.eps, *mixes = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*mixes)
        ctx.save_for_forward(*mixes)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        p, share, total = _with_total(ctx)
        g = torch.stack([p.new_zeros(2) if grad is None else grad for grad in grads])
        found = (2 * p / total * (g - (g * share).sum(-1, keepdim=True))).unbind()
        return None, *(None if grad is None else own for grad, own in zip(grads, found, strict=True))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        p, share, total = _with_total(ctx)
        of_q = 2 * p * torch.stack([p.new_zeros(2) if t is None else t for t in tangents])
        return ((of_q - share * of_q.sum(-1, keepdim=True)) / total).unbind()


def _with_total(ctx: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    p = torch.stack(ctx.saved_tensors)
    q = p.square() + ctx.eps
    total = q.sum(-1, keepdim=True)
    return p, q / total, total


class MixedWeights(torch.autograd.Function):
    """v = sigmoid(w u + b) * sigmoid(w' (max + min) + b') with u = share_0 * max + share_1 * min: Eq. 2, 4 and 6.

    Maximum and minimum side by side, (B, 2, C), are multiplied by the matrix [share; 1] of two rows, which gives u and
    max + min. Both then pass one product, one sum and one sigmoid. The gradients are as few operations.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
            pair: torch.Tensor, share: torch.Tensor,
            w: torch.Tensor, b: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        rows = torch.stack([share, standard(share)[1]])
        mixed = torch.bmm(rows.expand(len(pair), 2, 2), pair)
        weight, bias = torch.cat([w, w2, b, b2]).chunk(2)
        s = torch.addcmul(bias, mixed.flatten(1), weight).sigmoid()
        return s[:, :len(w)] * s[:, len(w):], rows, mixed, s, weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *output)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None, *_: object) -> tuple[torch.Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        *inputs, v, rows, mixed, s, weight = ctx.saved_tensors
        pair = inputs[0]
        twice = torch.is_grad_enabled()  # a gradient of this one is wanted, so it is made of the inputs
        if twice:
            rows, mixed, s, weight = _parts(*inputs)
            v = s.chunk(2, 1)[0] * s.chunk(2, 1)[1]
        of_log = (grad * v).unsqueeze(1)
        of_z = torch.addcmul(of_log, of_log, s.view_as(pair), value=-1).flatten(1)
        if twice:
            of_mixed, of_weight, of_bias = of_z * weight, (of_z * mixed.flatten(1)).sum(0), of_z.sum(0)
        else:
            of_mixed, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
                of_z, mixed.flatten(1), weight, *standard(weight), None, None, False, 0.0, [True, True, True])
        of_mixed = of_mixed.view_as(pair)
        of_pair = torch.bmm(rows.t().expand(len(pair), 2, 2), of_mixed)
        of_share = (of_mixed[:, :1] * pair).sum((0, 2))
        (of_w, of_w2), (of_b, of_b2) = of_weight.chunk(2), of_bias.chunk(2)
        return of_pair, of_share, of_w, of_b, of_w2, of_b2

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        inputs = ctx.saved_tensors
        of_pair, share, w, b, w2, b2 = (
            torch.zeros_like(x) if t is None else t for x, t in zip(inputs, tangents, strict=True))
        rows, mixed, s, weight = _parts(*inputs)
        of_mixed = rows @ of_pair + torch.stack([share, torch.zeros_like(share)]) @ inputs[0]
        of_z = of_mixed.flatten(1) * weight + mixed.flatten(1) * torch.cat([w, w2]) + torch.cat([b, b2])
        first, second = s.chunk(2, 1)
        return (first * second * ((1 - s) * of_z).unflatten(1, (2, -1)).sum(1), *[None] * 4)


def _parts(pair: torch.Tensor, share: torch.Tensor, w: torch.Tensor, b: torch.Tensor, w2: torch.Tensor,
           b2: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What ``forward`` keeps, by operations that have gradients of their own."""
    rows = torch.stack([share, torch.ones_like(share)])
    mixed, weight = rows @ pair, torch.cat([w, w2])
    return rows, mixed, (mixed.flatten(1) * weight + torch.cat([b, b2])).sigmoid(), weight
