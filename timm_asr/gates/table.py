"""The table of gates: one row makes a gate known everywhere."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ..asr.scaled import nearest
from .cbam import CBAM
from .eca import ECA
from .gate import ChannelGate
from .ie import IE
from .ras import RAS, RecurrentECA, RecurrentSE, RecurrentSPA
from .se import SE
from .sge import SGE
from .spa import SPA
from .spe import SPE
from .srm import SRM

GATES: dict[str, type[ChannelGate]] = {
    'se': SE,
    'eca': ECA,
    'ie': IE,
    'srm': SRM,
    'spa': SPA,
    'cbam': CBAM,
    'sge': SGE,
    'spe': SPE,
    'ras': RAS,
    'ras_se': RecurrentSE,
    'ras_eca': RecurrentECA,
    'ras_spa': RecurrentSPA,
}
# What a single learned vector needs: no batch statistics; of one pixel, maximum and minimum are the same for any mix.
_UNDER_ASR: dict[type[ChannelGate], dict[str, Any]] = {
    SRM: {'fixed_stats': True},
    RAS: {'fixed_stats': True},
    SPE: {'mix': 0.5},
}
_RECURRENT = ('ras', 'ras_se', 'ras_eca', 'ras_spa')
#: Keyword of a model -> argument of its gate, and the gates that have it.
OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    'rd_ratio': ('rd_ratio', ('se', 'spa', 'cbam', 'ras_se', 'ras_spa')),
    'se_bias': ('bias', ('se', 'ras_se')),
    'eca_kernel': ('kernel_size', ('eca', 'ras_eca')),
    'spe_mix': ('mix', ('spe',)),
    'spe_reweight': ('reweight', ('spe',)),
    'spe_eta': ('eta', ('spe',)),
    'ras_depth': ('steps', _RECURRENT),
    'ras_connect': ('connect', _RECURRENT),
    'ras_share': ('share', _RECURRENT),
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
        raise ValueError(f"Unknown gate '{name}'{nearest(name, list(GATES))}; known gates: {', '.join(GATES)}.")
    return GATES[name]


def asr_gate(name: str, rd_ratio: float | None = None, **options: Any) -> Callable[..., ChannelGate]:
    """The constructor of a gate as ASR uses it, ``f(channels, device=None, dtype=None)``.

    Args:
        name: Of the gate.
        rd_ratio: Hidden width over channels, for gates with a hidden layer.
        options: See :data:`OPTIONS`.

    Raises:
        ValueError: The name is unknown, or that gate cannot be folded.
        TypeError: An option is not that gate's, or has no meaning under ASR.
    """
    gate = get_gate(name)
    if not gate.foldable:
        why = (
            'fed with a constant, its hidden units could be dead for ever' if name.startswith('ras_')
            else "it weighs positions too, which no layer's parameters can express")
        raise ValueError(
            f"ASR cannot use the gate '{name}': {why}; use one of {', '.join(list_gates(foldable=True))}.")
    kwargs = gate_arguments(name, {'rd_ratio': rd_ratio, **options})
    fixed = _UNDER_ASR.get(gate, {})
    if set(kwargs) & set(fixed):
        raise TypeError(
            f"Under ASR the gate '{name}' has no {min(set(kwargs) & set(fixed))} to choose, since it sees one pixel.")
    return partial(gate, **kwargs, **fixed)


def gate_arguments(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options of a model, as :data:`OPTIONS` names them, as the keyword arguments of its gate; None means not given.

    Raises:
        TypeError: An option is not that gate's.
    """
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in OPTIONS:
            raise TypeError(f"There is no option '{option}' of gates; there are {', '.join(OPTIONS)}.")
        gates = OPTIONS[option][1]
        if name not in gates:
            why = 'has no hidden layer and takes no rd_ratio' if option == 'rd_ratio' else f'takes no {option}'
            raise TypeError(f"The gate '{name}' {why}; {', '.join(gates)} {'does' if len(gates) == 1 else 'do'}.")
    return {OPTIONS[option][0]: value for option, value in given.items()}
