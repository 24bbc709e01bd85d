"""The table of gates: one row makes a gate known everywhere."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..errors import did_you_mean
from .cbam import CBAM
from .dia_lstm import SharedLightLSTM, SharedLSTM
from .eca import ECA
from .gate import ChannelGate
from .ie import IE
from .ras import RAS, RecurrentECA, RecurrentSE, RecurrentSPA
from .se import SE
from .sem import SEM
from .sge import SGE
from .shared import SharedUnit
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
    'sem': SEM,
    'spe': SPE,
    'spem': SPE,
    'ras': RAS,
    'ras_se': RecurrentSE,
    'ras_eca': RecurrentECA,
    'ras_spa': RecurrentSPA,
}
#: Units of a stage (DIA) that are no gates; every shareable gate is one too.
UNITS: dict[str, type[SharedUnit]] = {'lstm': SharedLSTM, 'lstm_light': SharedLightLSTM}


def list_gates(foldable: bool | None = None) -> list[str]:
    """Names of the gates; of the foldable ones only, or of the others, where ``foldable`` is given."""
    return [name for name, gate in GATES.items() if foldable in (None, gate.foldable)]


def list_units() -> list[str]:
    """Names of what the blocks of a stage can share (DIA): the shareable gates and the recurrent units."""
    return [*(name for name, gate in GATES.items() if gate.shareable), *UNITS]


def get_gate(name: str) -> type[ChannelGate]:
    """The class of a gate by its name.

    Raises:
        ValueError: The name is unknown.
    """
    _check('gate', name, list_gates())
    return GATES[name]


def get_unit(name: str, options: Mapping[str, Any]) -> Callable[..., SharedUnit]:
    """The constructor of a unit for the blocks of a stage, ``f(channels, device=None, dtype=None)``.

    Args:
        name: Name of the unit.
        options: Keywords of a model and their values; None means not given.

    Raises:
        ValueError: The name is unknown, or a value is out of range.
        TypeError: An option is not that unit's.
    """
    _check('shared unit', name, list_units())
    own = dict(options)
    shared_norm, normed = own.pop('dia_shared_norm', None), [key for key, gate in GATES.items() if gate.norm_stays]
    if shared_norm is not None and name not in normed:
        raise TypeError(f"dia_shared_norm is for units with a BatchNorm, {' and '.join(normed)}; '{name}' has none.")
    kwargs = gate_arguments(name, own)

    def make(channels: int, **where: Any) -> SharedUnit:
        if name in UNITS:
            return UNITS[name](channels, **kwargs, **where)
        return GATES[name](channels, **kwargs, **where).as_unit(bool(shared_norm))

    make(8, device='meta')  # so that a wrong value is refused before a network is built
    return make


def asr_gate(name: str, **options: Any) -> Callable[..., ChannelGate]:
    """The constructor of a gate as ASR uses it, ``f(channels, device=None, dtype=None)``.

    Args:
        name: Name of the gate.
        options: Keywords of a model that the gate's class names in ``options``; None means not given.

    Raises:
        ValueError: The name is unknown, or that gate cannot be folded.
        TypeError: An option is not that gate's, or has no meaning under ASR.
    """
    gate = get_gate(name)
    if not gate.foldable:
        raise ValueError(f"ASR cannot use the gate '{name}': {gate.unfoldable}; "
                         f'use one of {", ".join(list_gates(foldable=True))}.')
    kwargs = gate_arguments(name, options)
    fixed = sorted(set(kwargs) & set(gate.under_asr))
    if fixed:
        raise TypeError(f"Under ASR the gate '{name}' has no {fixed[0]} to choose, since it sees one pixel.")
    return partial(gate, **kwargs, **gate.under_asr)


def gate_options() -> list[str]:
    """Keywords of ``timm.create_model`` that are options of some gate, such as 'rd_ratio' and 'se_bias'."""
    return list(dict.fromkeys(option for gate in GATES.values() for option in gate.options))


def takers(option: str) -> list[str]:
    """Names of the gates and units that take an option."""
    return [name for name, kind in (GATES | UNITS).items() if option in kind.options]


def gate_arguments(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a model as the keyword arguments of its gate, or unit; None means not given.

    Raises:
        TypeError: An option is not that gate's.
    """
    known = (GATES | UNITS)[name].options
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option in known:
            continue
        names = takers(option)
        if not names:
            raise TypeError(f"There is no option '{option}' of gates; there are {', '.join(gate_options())}.")
        why = 'has no hidden layer and takes no rd_ratio' if option == 'rd_ratio' else f'takes no {option}'
        raise TypeError(f"The gate '{name}' {why}; {', '.join(names)} {'does' if len(names) == 1 else 'do'}.")
    return {known[option]: value for option, value in given.items()}


def _check(what: str, name: str, names: list[str]) -> None:
    if name not in names:
        raise ValueError(f"Unknown {what} '{name}'{did_you_mean(name, names)}; known {what}s: {', '.join(names)}.")
