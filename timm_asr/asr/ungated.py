"""Vectors without a gate: v is learned directly. They are the controls that ASR's gates are compared with."""

import math
from collections.abc import Callable
from typing import Any

import torch

from ..gates.gate import ChannelGate
from ..gates.table import asr_gate


class Ungated(ChannelGate):
    """In the place of a gate under ASR: psi alone makes the weights v, and there is nothing else to learn.

    This one is ``scale``: v = psi, one unbounded factor a channel, as in LayerScale (Touvron et al., ICCV 2021).
    """

    #: v at the start, unless ``asr_init`` says another; None for half the gain, the middle of a sigmoid.
    start: float | None = 1.0

    def __init__(
            self, channels: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.channels = self.size = channels  #: and the number of values of psi

    def psi_at(self, v: float) -> float:
        """The psi that makes this v."""
        return v

    def logits(self, u: torch.Tensor) -> torch.Tensor:
        return u.expand(-1, self.channels)

    def squash(self, z: torch.Tensor) -> torch.Tensor:
        return z


class Scalar(Ungated):
    """``scalar``: v = psi, one factor for all channels, as in SkipInit (De and Smith, NeurIPS 2020)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.size = 1


class Free(Ungated):
    """``free``: v = sigmoid(psi), one free number a channel: the range of a gate without its network."""

    start = None

    def psi_at(self, v: float) -> float:
        if not 0 < v < 1:
            raise ValueError(f"v would start at {v:g} times asr_gain; the sigmoid of 'free' starts between 0 and 1.")
        return math.log(v / (1 - v))

    def squash(self, z: torch.Tensor) -> torch.Tensor:
        return z.sigmoid()


UNGATED: dict[str, type[Ungated]] = {'free': Free, 'scale': Ungated, 'scalar': Scalar}


def vector_maker(name: str, rd_ratio: float | None = None, **options: Any) -> Callable[..., ChannelGate]:
    """What makes v of psi, by the name that ``asr=`` takes: a foldable gate, or one of ``free``, ``scale``, ``scalar``.

    It is a constructor ``f(channels, device=None, dtype=None)``; ``options`` are those of the gate.

    Raises:
        ValueError: The name is unknown, or that gate cannot be folded.
        TypeError: An option is not that gate's, or has no meaning under ASR.
    """
    options = {key: value for key, value in {'rd_ratio': rd_ratio, **options}.items() if value is not None}
    if name not in UNGATED:
        try:
            gate = asr_gate(name, **options)
        except ValueError as error:
            raise ValueError(f'{error} Without a gate: {", ".join(UNGATED)}.') from None
        gate(8, device='meta')  # so that a wrong value is refused before a network is built
        return gate
    if options:
        raise TypeError(f"asr='{name}' is a vector without a gate and takes no {min(options)}.")
    return UNGATED[name]
