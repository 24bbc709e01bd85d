"""ASR: a layer's channels weighed by attention that is fed by a learned vector."""

import re
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from ..gates.gate import ChannelGate
from .blocks import facts_of
from .checks import refuse_scripted, refuse_shared, sharing
from .passes import take
from .scaled import WITH_ACTIVATION, channel_dim, out_channels, run_with, scale_, scaled_names, scaled_tensors
from .ungated import Ungated

MAX_DEPTH = 4


#: Not within ``torch.func.grad`` and the like.
_may_save_by_hooks: Callable[[], bool] = getattr(torch._C._autograd, '_saved_tensors_hooks_is_enabled')  # noqa: B009


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def parse_init(init: float | str | None) -> tuple[str, float | None]:
    """``asr_init`` as ('C', value) for a constant (0.1, ``'C_0.1'``) or ('N', s) for N(0, s^2) (``'N_0.1'``), the
    paper's Table 8; ('C', None) where nothing was asked for.

    Raises:
        ValueError: ``init`` is none of these.
    """
    if init is None:
        return 'C', None
    match = re.fullmatch(r'([CN])?_?(-?\d*\.?\d+(?:e-?\d+)?)', str(init), re.IGNORECASE)
    if match is None:
        raise ValueError(f"asr_init is {init!r}; it takes a number, 'C_0.1' for a constant or 'N_0.1' for N(0, 0.1^2).")
    return (match[1] or 'C').upper(), float(match[2])


class ASRVector(nn.Module):
    """A learned vector psi and the gate that makes channel weights of it: v = gain * sigmoid(F(psi)), (C,).

    ASR paper, section 3.2. psi stands for a feature map of one pixel and is stored flat, so that timm's rule by rank
    exempts it from weight decay. Instead of a gate there may be one of :mod:`timm_asr.asr.ungated`.

    A constant input leaves a hidden ReLU that is inactive at the start inactive for ever, and psi without a gradient
    where all are. Rows that are inactive at the initial psi therefore change sign, which a symmetric initialisation
    does not notice.

    Args:
        gate: Constructor ``f(channels, device=None, dtype=None)`` of a foldable gate.
        channels: Channels C.
        init: Before a gate: the initial psi, 0.1 by default. Without a gate: the initial v, by default gain / 2 for
            ``free`` and 1 for ``scale`` and ``scalar``. In both cases ``'N_0.1'`` draws psi from N(0, 0.1^2).
        learnable: Whether psi is trained.
        constant: Train neither psi nor the gate: v stays what it starts as.
        gain: Factor of v; 2 lets the v of most gates start near one.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: ``init`` is malformed, out of range, or leaves a hidden unit inactive; ``gain`` is not positive; or
            the gate does not fit C channels.
    """

    gain = 1.0

    def __init__(
            self,
            gate: Callable[..., ChannelGate],
            channels: int,
            init: float | str | None = None,
            learnable: bool = True,
            constant: bool = False,
            gain: float = 1.0,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 < gain < float('inf'):
            raise ValueError(f'asr_gain is {gain!r}; it takes a positive number, such as 2.')
        self.gain = float(gain)
        self.gate = gate(channels, device=device, dtype=dtype)
        kind, value = parse_init(init)
        if isinstance(self.gate, Ungated):
            size = self.gate.psi_size()
            if kind == 'C':
                start = self.gate.start if value is None else value
                value = self.gate.psi_at(0.5 if start is None else start / self.gain)
        else:
            size, value = self.gate.psi_ratio * channels, 0.1 if value is None else value
        psi = torch.empty(size, device=device, dtype=dtype)
        if kind == 'N':
            nn.init.normal_(psi, std=abs(value))
        else:
            nn.init.constant_(psi, value)
        self.psi = nn.Parameter(psi, requires_grad=learnable)
        self._check_and_revive(channels, init)
        if constant:
            self.requires_grad_(False)

    @torch.no_grad()
    def _check_and_revive(self, channels: int, init: float | str) -> None:
        try:
            v = self()
        except RuntimeError as error:
            raise ValueError(f'The gate {type(self.gate).__name__} does not fit {channels} channels: {error}') from None
        if v.shape != (channels,):
            raise ValueError(
                f'The gate {type(self.gate).__name__} gives weights of shape {tuple(v.shape)} '
                f'where the layer has {channels} channels.')
        if not isinstance(self.gate, Ungated) and not v.is_meta and not ((v != 0) & v.isfinite()).all():
            raise ValueError(f'asr_init={init!r} makes channel weights that are zero or not finite; use 0.1, say.')
        u = self.gate.describe(self.psi)
        hidden = self.gate.hidden(u)
        if hidden is None or hidden.is_meta:
            return
        self.gate.flip_hidden(hidden[0] <= 0)
        if (self.gate.hidden(u) <= 0).any():
            raise ValueError(
                f'asr_init={init!r} leaves hidden units of {type(self.gate).__name__} at zero, without a gradient; '
                'use another value, such as 0.1.')

    def forward(self) -> torch.Tensor:
        """The channel weights v, (C,)."""
        v = self.gate.excite(self.gate.describe(self.psi)).squeeze(0)
        return v if self.gain == 1.0 else v * self.gain


@register_notrace_module
class ASR(nn.Module):
    """A layer whose output channels are multiplied by v = v_1 * ... * v_delta, through its parameters.

    layer(x; w, b) * v = layer(x; v * w, v * b) (ASR paper, Eq. 5 to 7), while training and when fused. The layer stays
    an ordinary module inside, so what converts, freezes or synchronises BatchNorms finds it and the attention stays.

    Args:
        layer: A layer with C output channels: BatchNorm and its kin, LayerNorm, GroupNorm, LayerScale, linear,
            convolution; or a block that sums branches which end in such layers, of a class that
            :mod:`timm_asr.asr.blocks` knows.
        gate: Constructor ``f(channels, device=None, dtype=None)`` of a foldable gate.
        depth: Number of vectors delta, 1 to 4.
        options: Of each vector: ``init``, ``learnable``, ``constant``, ``gain``, see :class:`ASRVector`.

    Raises:
        TypeError: The layer cannot be scaled.
        ValueError: ``depth`` or ``init`` is out of range, or the gate does not fit the layer.
    """

    def __init__(
            self,
            layer: nn.Module,
            gate: Callable[..., ChannelGate],
            depth: int = 1,
            **options: Any,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.channel_dim = channel_dim(layer)
        self.vectors = nn.ModuleList()
        self.add_vectors(gate, depth, **options)

    @torch.jit.ignore
    def add_vectors(
            self,
            gate: Callable[..., ChannelGate],
            depth: int = 1,
            **options: Any,
    ) -> None:
        """Add ``depth`` vectors; arguments and errors as in the constructor."""
        if not 1 <= depth <= MAX_DEPTH - len(self.vectors):
            raise ValueError(
                f'asr_depth={depth} does not fit: a site takes 1 to {MAX_DEPTH} vectors'
                + (f' and has {len(self.vectors)}.' if len(self.vectors) else '.'))
        channels = out_channels(self.layer)
        like = next(t for t in (*self.layer.parameters(), *self.layer.buffers()) if t.is_floating_point())
        self.vectors.extend([
            ASRVector(gate, channels, **options, device=like.device, dtype=like.dtype) for _ in range(depth)])

    def attention_vector(self) -> torch.Tensor:
        """The channel weights v, (C,), the product over all vectors at this site."""
        v: list[torch.Tensor] = []
        for vector in self.vectors:
            v.append(vector())
        return v[0] if len(v) == 1 else torch.stack(v).prod(0)

    @torch.jit.ignore
    def _full_precision_vector(self) -> torch.Tensor:
        # Autocast would round v to 8 bits of mantissa here, and fusing could not reproduce it. It costs nothing.
        device = self.vectors[0].psi.device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return self.attention_vector()
        with torch.autocast(device, enabled=False):
            return self.attention_vector()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():  # TorchScript cannot run a layer with other parameters than its own
            return self.scripted(x, self.attention_vector())
        else:  # noqa: RET505 - TorchScript compiles what follows a return
            return self._run(x)

    @torch.jit.ignore
    def _run(self, x: torch.Tensor) -> torch.Tensor:
        tensors = None
        if not torch.compiler.is_compiling():
            tensors = take(self, self.vectors[0].psi)  # type: ignore[arg-type]
            if tensors is None and torch.is_grad_enabled() and _may_save_by_hooks():
                # A checkpoint must not count what is saved here: the first time it may have been handed out.
                with saved_tensors_hooks(_as_it_is, _as_it_is):
                    tensors = scaled_tensors(self.layer, self._full_precision_vector())
        if tensors is None:
            tensors = scaled_tensors(self.layer, self._full_precision_vector())
        return run_with(self.layer, tensors, x)

    def scripted(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """What TorchScript compiles in the place of :func:`run_with`."""
        y = self.layer(x)
        shape = [1] * y.ndim
        shape[self.channel_dim] = -1
        return y * v.view(shape)

    def __prepare_scriptable__(self) -> nn.Module:
        """Called by ``torch.jit.script``: refuses what scripting would silently change."""
        after = isinstance(self.layer, WITH_ACTIVATION) or bool(facts_of(self.layer).ends)
        if after and type(self).scripted is ASR.scripted:
            self._refuse_scripting()
        return self

    @torch.jit.ignore
    def _refuse_scripting(self) -> None:
        raise TypeError(
            f'ASR on a {type(self.layer).__name__} cannot be scripted, since its scale comes before the activation; '
            'call timm_asr.fold_asr(model) first, or use torch.compile or torch.export.')

    @torch.jit.ignore
    def fold(self) -> nn.Module:
        """Multiply the layer's parameters by v in place and return the layer; a second call changes nothing."""
        if len(self.vectors):
            scale_(self.layer, self._full_precision_vector())
            self.vectors = nn.ModuleList()
        return self.layer

    @torch.jit.ignore
    def fuse(self) -> nn.Module:
        """:meth:`fold`, then what the layer itself has to merge: the call that timm looks for.

        timm goes on inside this wrapper, not inside what it returns, so a layer that would return another one in its
        turn must do it here.
        """
        layer = self.fold()
        if callable(getattr(layer, 'fuse', None)):
            self.layer = layer = layer.fuse()
        return layer

    @torch.jit.ignore
    @torch.no_grad()
    def check_preservable(self) -> None:
        """Refuse a v by which the layer's parameters cannot be divided.

        Raises:
            ValueError: A parameter would be infinite.
        """
        scaled = scaled_tensors(self.layer, self._full_precision_vector().reciprocal())
        if not all(t.is_meta or t.isfinite().all() for t in scaled.values()):
            raise ValueError(
                'a channel weight is zero or so small that dividing by it gives infinite parameters; start nearer to '
                'one (asr_init), or pass preserve=False.')

    @torch.jit.ignore
    @torch.no_grad()
    def preserve_(self) -> None:
        """Divide the layer's parameters by v, so that the wrapped layer computes what the plain one did."""
        scale_(self.layer, self._full_precision_vector().reciprocal())

    def _load_from_state_dict(
            self,
            state_dict: dict,
            prefix: str,
            local_metadata: dict,
            strict: bool,
            missing_keys: list[str],
            unexpected_keys: list[str],
            error_msgs: list[str],
    ) -> None:
        fused = [key for key in (prefix + name for name in scaled_names(self.layer)) if key in state_dict]
        if fused:
            error_msgs.append(
                f"This is a fused or plain checkpoint ('{fused[0]}') and the model still trains its ASR vectors: load "
                'it into the plain architecture (or fold_asr(model) first); to go on training from it, use '
                'attach_asr(plain_model, gate, preserve=True).')
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)


def wrap(layer: nn.Module, gate: Callable[..., ChannelGate], depth: int = 1, **options: Any) -> ASR:
    """The :class:`ASR` that fits a layer best: where its class is one that TorchScript needs help with, a subclass."""
    kind: Any = facts_of(layer).scripted or ASR
    return kind(layer, gate, depth, **options)


def has_asr(module: nn.Module) -> bool:
    """Whether unfused ASR vectors are left anywhere inside a module."""
    return any(isinstance(m, ASR) and len(m.vectors) > 0 for m in module.modules())


def fold_asr(module: nn.Module) -> nn.Module:
    """Fold every ASR vector into the layer it scales, in place, and nothing else.

    What is left is the stock network: its classes, state-dict keys, shapes and parameter count, still trainable, and
    the same function. Calling it twice changes nothing.

    Args:
        module: Any module with ASR somewhere inside, or an ASR layer itself.

    Returns:
        The module (for an ASR layer, the layer inside).

    Raises:
        TypeError: The module is scripted.
        ValueError: A layer shares its parameters with another. The module is unchanged.
    """
    refuse_scripted(module, 'fold ASR')
    layers = {name: m for name, m in module.named_modules() if isinstance(m, ASR) and len(m.vectors)}
    shared = sharing(module) if layers else {}
    for name, asr in layers.items():
        try:
            refuse_shared(shared, asr.layer)
        except ValueError as error:
            raise ValueError(f"ASR of the site '{name}' cannot be folded: {error}") from None
    if isinstance(module, ASR):
        return module.fold()
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # named_children() skips a module met twice
            if isinstance(child, ASR):
                setattr(parent, name, child.fold())
    return module
