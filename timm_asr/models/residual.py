"""Keywords of all residual networks here: a unit shared by each stage (DIA), and the DIA paper's stress tests."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import get_device_dtype
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from ..asr.blocks import BLOCKS
from ..gates.dia_lstm import SharedLSTM
from ..gates.shared import SharedUnit, shared_gate
from ..gates.shared_stage import PlainStage, SharedStage
from ..gates.table import OPTIONS, gate_arguments, get_gate
from ..inference.reparameterize import built_for_inference
from .wide import WideBlock
from .zoo import ZooModel

#: What `dia` can be: gates, and the LSTM with its light form.
UNITS = ('se', 'eca', 'cbam', 'srm', 'spa', 'ie', 'spe', 'lstm', 'lstm_light')


class ResidualModel(ZooModel):
    """Mixed into a timm-like ResNet: the keywords of :class:`ZooModel`, shared units, no norms, no skips.

    Args:
        block: Class of the blocks.
        layers: Number of blocks in each stage.
        args: Of the network.
        dia: Attention that each stage shares: 'lstm', 'lstm_light', or a gate (se, eca, cbam, srm, spa, ie, spe).
        dia_stages: Stages that have a unit, counted from 1 (default all).
        dia_cell: Of 'lstm': 'squeezed' (default), 'light' or 'standard'.
        dia_cells: Of 'lstm': stacked cells, 1 to 3 (default 1).
        dia_act: Of 'lstm': output activation 'sigmoid', 'tanh' or 'relu' (default sigmoid, tanh in a standard cell).
        dia_shared_norm: Of SRM and CBAM: share their BatchNorm as well, which the paper shows to fail.
        no_norm: Remove the norms of stem and blocks; those of projection shortcuts stay, as in the paper's Table 14,
            and so do those inside gates.
        no_skip: Remove every shortcut.
        reparameterized: See :class:`ZooModel`.

    Raises:
        TypeError: A keyword is unknown, or has no meaning for this model.
        ValueError: A value is out of range.
    """

    def __init__(
            self,
            block: type[nn.Module],
            layers: Sequence[int],
            *args: Any,
            dia: str | None = None,
            dia_stages: Sequence[int] | None = None,
            dia_cell: str | None = None,
            dia_cells: int | None = None,
            dia_act: str | None = None,
            dia_shared_norm: bool | None = None,
            no_norm: bool = False,
            no_skip: bool = False,
            reparameterized: bool | str = False,
            **kwargs: Any,
    ) -> None:
        lstm = {'cell': dia_cell, 'cells': dia_cells, 'act': dia_act}
        given = [f'dia_{key}' for key, value in {**lstm, 'stages': dia_stages, 'shared_norm': dia_shared_norm}.items()
                 if value is not None]
        if dia is None and given:
            raise TypeError(f"{given[0]} is for models with a shared unit; this one has none (dia='lstm' adds it).")
        if no_norm and (kwargs.get('asr') is not None or kwargs.get('last_norm_init') is not None):
            raise TypeError('no_norm removes the norms that asr and last_norm_init scale; a model has one of the two.')
        if dia is not None:
            alone = kwargs.get('gate') is None and kwargs.get('asr') is None
            options = {key: kwargs.pop(key) if alone else kwargs[key] for key in OPTIONS if key in kwargs}
            make_unit = _unit_maker(dia, lstm, dia_shared_norm, options)
            stages = _check_stages(dia_stages, len(layers))
            block = tuple(BLOCKS[block].branch if n in stages else block for n in range(1, len(layers) + 1))
        super().__init__(block, layers, *args, **kwargs)
        if dia is not None:
            _share(self, stages, make_unit)
        if no_norm:
            _remove_norms(self)
        if no_skip:
            _remove_skips(self)
        built_for_inference(self, reparameterized)  # type: ignore[arg-type]

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade computation for memory in the backward pass."""
        # A stage with a unit must not be flattened into its blocks, as timm does: such stages checkpoint themselves.
        own = [m for m in self.children() if isinstance(m, SharedStage | PlainStage)]  # type: ignore[attr-defined]
        super().set_grad_checkpointing(enable and not own)  # type: ignore[misc]
        for stage in own:
            stage.grad_checkpointing = enable


def _unit_maker(
        dia: str,
        lstm: dict[str, Any],
        shared_norm: bool | None,
        options: dict[str, Any],
) -> Callable[..., SharedUnit]:
    if dia not in UNITS:
        raise ValueError(f"Unknown shared unit '{dia}'; units: {', '.join(UNITS)}.")
    lstm = {key: value for key, value in lstm.items() if value is not None}
    if shared_norm is not None and dia not in ('srm', 'cbam'):
        raise TypeError(f"dia_shared_norm is for units with a BatchNorm, srm and cbam; '{dia}' has none.")
    if not dia.startswith('lstm'):
        if lstm:
            raise TypeError(f"dia_{next(iter(lstm))} is for the units lstm and lstm_light, not '{dia}'.")
        gate = partial(get_gate(dia), **gate_arguments(dia, options))
        return partial(shared_gate, gate, shared_norm=bool(shared_norm))
    if dia == 'lstm_light' and lstm.setdefault('cell', 'light') != 'light':
        raise TypeError(f"The cell of lstm_light is light; for dia_cell='{lstm['cell']}' take dia='lstm'.")
    for key, value in options.items():
        if key != 'rd_ratio' and value is not None:
            raise TypeError(f"'{dia}' takes no {key}; {', '.join(OPTIONS[key][1])} do.")
    make: Callable[..., SharedUnit] = partial(SharedLSTM, rd_ratio=options.get('rd_ratio'), **lstm)
    make(8, device='meta')  # so that a wrong option is refused before the network is built
    return make


def _check_stages(stages: Sequence[int] | None, count: int) -> tuple[int, ...]:
    if stages is None:
        return tuple(range(1, count + 1))
    stages = (stages,) if isinstance(stages, int) else tuple(stages)
    if not stages or not set(stages) <= set(range(1, count + 1)):
        raise ValueError(f'dia_stages={stages} does not fit: this network has the stages 1 to {count}.')
    return stages


def _share(model: nn.Module, stages: tuple[int, ...], make_unit: Callable[..., SharedUnit]) -> None:
    for number, info in enumerate(model.feature_info[1:], 1):
        blocks = list(getattr(model, f'layer{number}'))
        if number in stages:
            stage: nn.Module = SharedStage(blocks, make_unit(info['num_chs'], **get_device_dtype(model)))
        else:
            stage = PlainStage(*blocks)
        setattr(model, f'layer{number}', stage)


class NoShortcut(nn.Module):
    """Stands where a block has its projection, and adds nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros([1])


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, BasicBlock | Bottleneck | WideBlock)]


def _remove_norms(model: nn.Module) -> None:
    for module in (model, *_blocks(model)):
        for name in ('bn1', 'bn2', 'bn3', 'norm'):
            if hasattr(module, name):
                setattr(module, name, nn.Identity())


def _remove_skips(model: nn.Module) -> None:
    for block in _blocks(model):
        block.downsample = NoShortcut()
