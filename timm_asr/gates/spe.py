"""SPE, self-adaptive pooling enhancement: a learned mix of max and min pooling.

The shares of maximum and minimum are computed for all gates of a network at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from .forms import Excite, GateForm, PairSigmoid, double
from .fused import (
    affine,
    average_pool,
    check_mix,
    extremes_of,
    gradients_of,
    in_training_for,
    max_min,
    needs_gradient,
    standard,
    unsaved,
)
from .gate import ChannelGate, check_unused
from .passes import begin, end, take, uncounted

#: Ways to reweight: the paper's, those of its Figure 4, and none.
REWEIGHTS = ('shared', 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'none')


class SPE(ChannelGate):
    """Self-adaptive pooling enhancement, v = v_exc * v_rew: SPENet paper, Algorithm 1.

    u = lambda max(x) + (1 - lambda) min(x), lambda = p0^2 / (p0^2 + p1^2), p0 = p1 = 1/2 at the start (Eq. 2 and 3),
    v_exc = sigmoid(w u + b) (Eq. 4), v_rew = sigmoid(w' min(x) + w' max(x) + b') (Eq. 6), all w starting at 0 and all
    b at -1. With g(y) = w' y + b', the ablations of Table 4 are:

    ========  =============================================================
    reweight  v_rew
    ========  =============================================================
    'shared'  sigmoid(w' min + w' max + b'), the paper's
    'a'       sigmoid(g1(min) + g2(max)), each with its own w' and b'
    'b'       w' min + w' max + b', no sigmoid
    'c'       sigmoid(g(min) * g(max))
    'd'       sigmoid(g(min)) + sigmoid(g(max))
    'e'       sigmoid(g(min)) * sigmoid(g(max))
    'f'       sigmoid(g(max))
    'g'       sigmoid(g(min))
    'none'    1
    ========  =============================================================

    Zhong, Wen, Qin: Mix-Pooling Strategy for Attention Mechanism, https://arxiv.org/abs/2208.10322.

    Args:
        mix: Fixed lambda in [0, 1] (Table 3), 'max' for 1, 'min' for 0; 'average' for u = average pooling (Figure 2),
            while the reweighting still sees maximum and minimum; None learns lambda.
        reweight: See above.
        eta: Factor of the penalty p0^2 + p1^2 (Eq. 8), which training adds through ``timm_asr.auxiliary_loss``. Where
            nobody asks for it, as in timm's own ``train.py``, its gradient is added in the backward pass, which
            refuses float16 autocast: that scales the loss. A loss divided for accumulation does not divide it.

    Raises:
        ValueError: ``mix``, ``reweight`` or ``eta`` is out of range.
    """

    options = {'spe_mix': 'mix', 'spe_reweight': 'reweight', 'spe_eta': 'eta'}
    under_asr = {'mix': 0.5}  # of one pixel, maximum and minimum are the same for any mix
    form_in_onnx = True
    paper = 'zhong2022mixpooling'

    def __init__(
            self, channels: int, mix: float | str | None = None, reweight: str = 'shared', eta: float = 0.1,
            device: torch.device | str | None = None, dtype: torch.dtype | None = None, **unused: Any) -> None:
        check_unused('SPE', unused)
        super().__init__()
        if reweight not in REWEIGHTS:
            raise ValueError(f"SPE's reweight is {reweight!r}; it takes one of {', '.join(REWEIGHTS)}.")
        if not 0 <= eta < inf:
            raise ValueError(f"SPE's eta is {eta}; the factor of a penalty is finite and not negative.")
        dd = {'device': device, 'dtype': dtype}
        self.reweight = reweight
        self.eta = eta
        # Makes the mix 1/2 where both its parameters are zero; changes it by less than 1e-12 where one exceeds 0.1.
        self.eps = 1e-14
        self.average = mix == 'average'
        self.fixed_mix = 0.5 if mix is None or mix == 'average' else check_mix(mix, 'spe_mix')
        self.mix = nn.Parameter(torch.full((2,), 0.5, **dd)) if mix is None else None
        self.collected = False
        self._watch()
        self.exc_weight = nn.Parameter(torch.zeros(channels, **dd))
        self.exc_bias = nn.Parameter(torch.full((channels,), -1.0, **dd))
        width = {'a': 2 * channels, 'none': 0}.get(reweight, channels)  # 'a': for max, then for min
        self.rew_weight = nn.Parameter(torch.zeros(width, **dd)) if width else None
        self.rew_bias = nn.Parameter(torch.full((width,), -1.0, **dd)) if width else None

    def pool(self, x: Tensor) -> Tensor:
        """Maximum and minimum of every channel, and its average where the mix is that: Eq. 1.

        (B, C, H, W) -> (B, 2C) or (B, 3C), all maxima first.
        """
        u = max_min(x)
        return torch.cat([u, average_pool(x).flatten(1)], 1) if self.average else u

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return extremes_of(x) if self.multiplies and not self.average else (x, self.pool(x))

    def describe(self, psi: Tensor) -> Tensor:
        return torch.cat([psi, psi]).unsqueeze(0)

    def shares(self) -> Tensor:
        """Shares (2,) of maximum and minimum, lambda and 1 - lambda: Eq. 3. Needs a learned mix."""
        if torch.jit.is_scripting():
            assert self.mix is not None
            return shares(self.mix, self.eps)
        else:  # noqa: RET505 - TorchScript compiles what follows a return
            return self._found_shares()

    def excite(self, u: Tensor) -> Tensor:
        w, b = self.rew_weight, self.rew_bias
        share = None if self.mix is None else self.shares()
        if self.reweight == 'shared' and share is not None and w is not None and b is not None:
            return mixed_weights(u, share, self.exc_weight, self.exc_bias, w, b)
        parts = u.chunk(3 if self.average else 2, 1)
        high, low = parts[0], parts[1]
        if self.average:
            mixed = parts[2]
        elif share is not None:
            mixed = torch.lerp(low, high, share[0].to(high.dtype))
        else:
            mixed = torch.lerp(low, high, self.fixed_mix)
        return affine(mixed, self.exc_weight, self.exc_bias).sigmoid() * self._reweights(high, low)

    @torch.jit.unused
    def _found_shares(self) -> Tensor:
        """The shares as :func:`shares_at_once` handed them, or the gate's own."""
        p, kind = self.mix, self.exc_bias.device.type
        assert p is not None
        if torch.compiler.is_compiling():
            return shares(p, self.eps)
        self._watch()
        handed = take(self, p)
        with uncounted():
            found = shares(p, self.eps) if handed is None else handed['shares']
        if (isinstance(found, Tensor) and found.requires_grad  # FX traces with stand-ins
                and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
                and torch.get_autocast_dtype(kind) == torch.float16):
            found.register_hook(self._refuse_scaled)
        return found

    def _refuse_scaled(self, gradient: Tensor) -> None:
        if self.eta and not self.collected:
            raise RuntimeError("SPE's penalty (Eq. 8) would be lost beside a loss that is scaled for float16: add "
                               'timm_asr.auxiliary_loss(model) to the loss, or take bfloat16 (--amp-dtype bfloat16).')

    def _reweights(self, high: Tensor, low: Tensor) -> Tensor:
        w, b = self.rew_weight, self.rew_bias
        if w is None or b is None:
            return torch.ones_like(high)
        if self.reweight == 'a':
            w_high, w_low = w.chunk(2)
            return (w_high * high + w_low * low + b.view(2, -1).sum(0)).sigmoid()
        if self.reweight in ('shared', 'b'):
            z = affine(high + low, w, b)
            return z if self.reweight == 'b' else z.sigmoid()
        of_high, of_low = affine(high, w, b), affine(low, w, b)
        if self.reweight == 'c':
            return (of_high * of_low).sigmoid()
        if self.reweight == 'd':
            return of_high.sigmoid() + of_low.sigmoid()
        if self.reweight == 'e':
            return of_high.sigmoid() * of_low.sigmoid()
        return of_high.sigmoid() if self.reweight == 'f' else of_low.sigmoid()

    def __setstate__(self, state: dict[str, Any]) -> None:  # of copies and pickles, whose parameters have no hooks
        super().__setstate__(state)
        self.collected = False  # whoever trains the copy may not add the penalty
        self._watch()

    def _load_from_state_dict(self, *args: Any) -> None:  # of ``assign=True``, which replaces parameters
        super()._load_from_state_dict(*args)
        self._watch()

    def _watch(self) -> None:
        """See that this parameter, which may have taken the place of another, adds the penalty to its gradient."""
        if isinstance(self.mix, nn.Parameter) and self.mix.requires_grad and not any(
                getattr(hook, '__self__', None) is self for hook in (self.mix._backward_hooks or {}).values()):
            self.mix.register_hook(self._with_penalty)

    def _with_penalty(self, gradient: Tensor | None) -> Tensor | None:
        """The gradient of the mix; with that of the penalty where nobody adds the penalty to the loss."""
        return gradient if gradient is None or self.collected else gradient + 2 * self.eta * self.mix.detach()

    @torch.jit.ignore
    def penalty(self) -> tuple[float, Tensor] | None:
        """eta and (p0, p1) of the penalty eta (p0^2 + p1^2), None where the mix is fixed: Eq. 8.

        Who asks adds it to the loss: from then on its gradient is not added here.
        """
        self.collected = self.collected or torch.is_grad_enabled()  # who only logs it adds it to nothing
        return None if self.mix is None else (self.eta, self.mix)

    @torch.jit.ignore
    def inference_form(self, conv: nn.Module | None = None) -> GateForm | None:
        if self.average:
            return None
        if self.reweight not in ('shared', 'none'):
            return GateForm('output', MaxMinPool(), Excite(self))
        high, low = (self.fixed_mix, 1 - self.fixed_mix) if self.mix is None else double(self.shares())
        w = double(self.exc_weight)
        weights, biases = [torch.stack([high * w, low * w])], [double(self.exc_bias)]
        if self.rew_weight is not None:
            weights.append(double(self.rew_weight).expand(2, -1))
            biases.append(double(self.rew_bias))
        excite = PairSigmoid(torch.stack(weights, dim=1).to(self.exc_weight), torch.stack(biases).to(self.exc_weight))
        return GateForm('output', MaxMinPool(), excite)


class MaxMinPool(nn.Module):
    """Maximum and minimum of every channel, (B, C, H, W) -> (B, 2C), all maxima first."""

    def forward(self, x: Tensor) -> Tensor:
        return max_min(x)


def shares(p: Tensor, eps: float) -> Tensor:
    """Shares of maximum and minimum, q / (q_0 + q_1) with q = p^2 + eps: Eq. 3. (..., 2) -> (..., 2)."""
    # In single precision at least: squares of small float16 numbers are zero.
    q = (p * p.new_ones([1], dtype=torch.float32)).square() + eps
    return q / q.sum(-1, keepdim=True)


@contextmanager
def shares_at_once(gates: list[Any]) -> Iterator[None]:
    """Compute the shares of SPE gates together and hand them out until the end of the context.

    A gate that runs later, as when blocks are recomputed for the backward pass, computes its own. So do those whose
    parameters cannot be stacked, such as the shards of FSDP, and those that are frozen: a share of all that are trained
    would send the backward pass through all that comes before it.
    """
    gates = [gate for gate in gates if isinstance(gate.mix, Tensor) and gate.mix.requires_grad]  # FX has stand-ins
    mixes = [gate.mix for gate in gates]
    kinds = {(p.dtype, p.device, gate.eps) for p, gate in zip(mixes, gates, strict=True)}
    full = all(type(p) in (Tensor, nn.Parameter) and p.dtype in (torch.float32, torch.float64) for p in mixes)
    if len(kinds) != 1 or not full or not needs_gradient(mixes):
        yield
        return
    each = AllShares.apply(gates[0].eps, *mixes)
    begin(gates[0], {gate: {'shares': own} for gate, own in zip(gates, each, strict=True)},
          dict(zip(gates, mixes, strict=True)))
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
            of_z, mixed, weight, *standard(weight), *unsaved(weight), False, 0.0, [True, True, True])
        of_mixed = of_mixed.view_as(pair)
        of_u = torch.bmm(rows.t().expand(len(pair), 2, 2), of_mixed).flatten(1)
        of_share = (of_mixed[:, :1] * pair).sum((0, 2))
        (of_w, of_w2), (of_b, of_b2) = of_weight.chunk(2), of_bias.chunk(2)
        return of_u, of_share, of_w, of_b, of_w2, of_b2
