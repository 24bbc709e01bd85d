"""A learned vector psi and what makes channel weights v of it."""

import re
import warnings
from collections.abc import Callable

import torch
from torch import nn

from ..gates.gate import ChannelGate
from .ungated import Ungated


def _has_values(tensor: torch.Tensor) -> bool:
    """False on the device 'meta', and under FakeTensorMode."""
    return type(tensor) in (torch.Tensor, nn.Parameter) and not tensor.is_meta


def _complain(init: float | str | None, what: str) -> None:
    if init is not None:
        raise ValueError(f'asr_init={init!r} {what}; use another value, such as 0.1.')
    # Weights may be about to be loaded, and not be drawn before (as by Lightning's empty_init).
    warnings.warn(f'The initial psi, 0.1, {what}.', stacklevel=4)


class ASRVector(nn.Module):
    """A learned vector psi and the gate that makes channel weights of it: v = gain * sigmoid(F(psi)), (C,).

    ASR paper, section 3.2. psi stands for a feature map of one pixel and is stored flat, so that timm's rule by rank
    exempts it from weight decay. Instead of a gate there may be one of :mod:`timm_asr.asr.ungated`.

    A constant input leaves a hidden ReLU that is inactive at the start inactive for ever. Such rows change sign, which
    a symmetric initialisation does not notice.

    Args:
        gate: Constructor ``f(channels, device=None, dtype=None)`` of a foldable gate.
        channels: Channels C.
        init: Before a gate: the initial psi, 0.1 by default. Without a gate: the initial v, by default gain / 2 for
            ``free`` and 1 for ``scale`` and ``scalar``. In both cases ``'N_0.1'`` draws psi from N(0, 0.1^2).
        learnable, constant, gain: As in :func:`timm_asr.attach_asr`.

    Raises:
        ValueError: ``init`` is malformed, out of range, or leaves a hidden unit inactive; ``gain`` is not positive; or
            the gate does not fit C channels.
        TypeError: The constructor makes no gate that folds.
    """

    def __init__(
            self, gate: Callable[..., ChannelGate], channels: int, init: float | str | None = None,
            learnable: bool = True, constant: bool = False, gain: float = 1.0, device: torch.device | str | None = None,
            dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if not 0 < gain < float('inf'):
            raise ValueError(f'asr_gain is {gain!r}; it takes a positive number, such as 2.')
        self.gain = float(gain)
        self.gate = gate(channels, device=device, dtype=dtype)
        if not isinstance(self.gate, ChannelGate) or not self.gate.foldable:
            raise TypeError(f'A {type(self.gate).__name__} is no gate whose weights are constants of a vector.')
        match = re.fullmatch(r'([CN])?_?(-?\d*\.?\d+(?:e-?\d+)?)', str(init), re.IGNORECASE)
        if init is not None and match is None:
            raise ValueError(
                f"asr_init is {init!r}; it takes a number, 'C_0.1' for a constant or 'N_0.1' for N(0, 0.1^2).")
        drawn, value = match is not None and (match[1] or '').upper() == 'N', float(match[2]) if match else None
        if isinstance(self.gate, Ungated):
            size = self.gate.size
            if not drawn:
                start = self.gate.start if value is None else value
                value = self.gate.psi_at(0.5 if start is None else start / self.gain)
        else:
            size, value = self.gate.psi_ratio * channels, 0.1 if value is None else value
        psi = torch.empty(size, device=device, dtype=dtype)
        psi = psi.normal_(std=abs(value)) if drawn else psi.fill_(value)
        self.psi = nn.Parameter(psi, requires_grad=learnable)
        self._check_and_revive(channels, init)
        if constant:
            self.requires_grad_(False)

    @torch.no_grad()
    def _check_and_revive(self, channels: int, init: float | str) -> None:
        try:
            v = self()
        except (RuntimeError, ValueError) as error:
            raise ValueError(f'The gate {type(self.gate).__name__} does not fit {channels} channels: {error}') from None
        if v.shape != (channels,):
            raise ValueError(
                f'The gate {type(self.gate).__name__} gives weights of shape {tuple(v.shape)} '
                f'where the layer has {channels} channels.')
        if not isinstance(self.gate, Ungated) and _has_values(v) and not ((v != 0) & v.isfinite()).all():
            _complain(init, 'makes channel weights that are zero or not finite')
        u = self.gate.describe(self.psi)
        hidden = self.gate.hidden(u)
        if hidden is None or not _has_values(hidden):
            return
        self.gate.flip_hidden(hidden[0] <= 0)  # rows that are inactive change sign
        if (self.gate.hidden(u) <= 0).any():
            _complain(init, f'leaves hidden units of {type(self.gate).__name__} at zero, without a gradient')

    def forward(self) -> torch.Tensor:
        """The channel weights v, (C,)."""
        v = self.gate.excite(self.gate.describe(self.psi)).squeeze(0)
        return v if self.gain == 1.0 else v * self.gain
