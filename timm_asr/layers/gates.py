"""The table of gates: one row makes a gate known everywhere."""

import difflib
from collections.abc import Callable
from functools import partial

from .cbam import CBAM
from .eca import ECA
from .gate import ChannelGate
from .ie import IE
from .se import SE
from .sge import SGE
from .spa import SPA
from .srm import SRM

GATES: dict[str, type[ChannelGate]] = {
    'se': SE,
    'eca': ECA,
    'ie': IE,
    'srm': SRM,
    'spa': SPA,
    'cbam': CBAM,
    'sge': SGE,
}


def list_gates(foldable: bool | None = None) -> list[str]:
    """Names of the gates, of the foldable or the other ones only where ``foldable`` is given."""
    return [name for name, gate in GATES.items() if foldable in (None, gate.foldable)]


def get_gate(name: str) -> type[ChannelGate]:
    """The class of a gate by its name.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in GATES:
        near = difflib.get_close_matches(name, GATES, n=1)
        hint = f", did you mean '{near[0]}'" if near else ''
        raise ValueError(f"Unknown gate '{name}'{hint}; known gates: {', '.join(GATES)}.")
    return GATES[name]


def asr_gate(name: str, rd_ratio: float | None = None) -> Callable[..., ChannelGate]:
    """The constructor of a gate as ASR uses it, ``f(channels, device=None, dtype=None)``.

    Raises:
        ValueError: The name is unknown, or that gate cannot be folded.
        TypeError: ``rd_ratio`` is given for a gate that has no hidden layer.
    """
    gate = get_gate(name)
    if not gate.foldable:
        raise ValueError(
            f"ASR cannot use the gate '{name}': it weighs positions too, which no layer's parameters can express; "
            f"use one of {', '.join(list_gates(foldable=True))}.")
    kwargs = {} if gate is not SRM else {'fixed_stats': True}
    return partial(gate, **kwargs, **reduction(name, rd_ratio))


def reduction(name: str, rd_ratio: float | None) -> dict[str, float]:
    """``rd_ratio`` as the keyword arguments of a gate, none where it is None.

    Raises:
        TypeError: That gate has no hidden layer.
    """
    if rd_ratio is None:
        return {}
    if name not in ('se', 'spa', 'cbam'):
        raise TypeError(f"The gate '{name}' has no hidden layer and takes no rd_ratio; se, spa and cbam do.")
    return {'rd_ratio': rd_ratio}
