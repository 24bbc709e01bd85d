"""Keywords of all residual networks here: a unit shared by each stage (DIA), and the DIA paper's stress tests."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import get_device_dtype
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from ..asr.blocks import BLOCKS
from ..gates.shared import PlainStage, SharedStage
from ..gates.table import gate_options, get_unit
from .wide import WideBlock
from .zoo import ZooModel


class ResidualModel(ZooModel):
    """Mixed into a timm-like ResNet: the keywords of :class:`ZooModel`, shared units, no norms, no skips.

    Args:
        dia: Attention that each stage shares, one of :func:`timm_asr.gates.table.list_units`.
        dia_stages: Stages that have a unit, counted from 1 (default all).
        dia_cell: Of 'lstm': 'squeezed' (default), 'light' or 'standard'.
        dia_cells: Of 'lstm': stacked cells, 1 to 3 (default 1).
        dia_act: Of 'lstm': output activation 'sigmoid', 'tanh' or 'relu' (default sigmoid, tanh in a standard cell).
        dia_shared_norm: Of SRM and CBAM: share their BatchNorm as well, which the paper shows to fail.
        no_norm: Remove the norms of stem and blocks; those of projection shortcuts stay, as in the paper's Table 14,
            and so do those inside gates.
        no_skip: Remove every shortcut.
    """

    def __init__(
            self, block: type[nn.Module], layers: Sequence[int], *args: Any, dia: str | None = None,
            dia_stages: Sequence[int] | None = None, dia_cell: str | None = None, dia_cells: int | None = None,
            dia_act: str | None = None, dia_shared_norm: bool | None = None, no_norm: bool = False,
            no_skip: bool = False, **kwargs: Any) -> None:
        own = {'dia_cell': dia_cell, 'dia_cells': dia_cells, 'dia_act': dia_act, 'dia_shared_norm': dia_shared_norm}
        given = [key for key, value in {**own, 'dia_stages': dia_stages}.items() if value is not None]
        if dia is None and given:
            raise TypeError(f"{given[0]} is for models with a shared unit; this one has none (dia='lstm' adds it).")
        if no_norm and (kwargs.get('asr') is not None or kwargs.get('last_norm_init') is not None):
            raise TypeError('no_norm removes the norms that asr and last_norm_init scale; a model has one of the two.')
        stages: tuple[int, ...] = ()
        if dia is not None:
            alone = kwargs.get('gate') is None and kwargs.get('asr') is None
            options = {key: kwargs.pop(key) if alone else kwargs[key] for key in gate_options() if key in kwargs}
            make_unit = get_unit(dia, {**own, **options})
            every = range(1, len(layers) + 1)
            stages = tuple(every) if dia_stages is None else (
                (dia_stages,) if isinstance(dia_stages, int) else tuple(dia_stages))
            if not stages or not set(stages) <= set(every):
                raise ValueError(f'dia_stages={stages} does not fit: this network has the stages 1 to {len(layers)}.')
            block = tuple(BLOCKS[block].branch if n in stages else block for n in every)
        super().__init__(block, layers, *args, **kwargs)
        for number, info in enumerate(self.feature_info[1:] if stages else (), 1):  # type: ignore[attr-defined]
            blocks = list(getattr(self, f'layer{number}'))
            setattr(self, f'layer{number}', PlainStage(*blocks) if number not in stages else SharedStage(
                blocks, make_unit(info['num_chs'], **get_device_dtype(self))))  # type: ignore[arg-type]
        blocks = [m for m in self.modules() if isinstance(m, BasicBlock | Bottleneck | WideBlock)]  # type: ignore[attr-defined]
        for module in (self, *blocks) if no_norm else ():
            for name in {'bn1', 'bn2', 'bn3', 'norm'} & module._modules.keys():
                setattr(module, name, nn.Identity())
        for module in blocks if no_skip else ():
            module.downsample = NoShortcut()

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade computation for memory in the backward pass."""
        # A stage with a unit must not be flattened into its blocks, as timm does: such stages checkpoint themselves.
        own = [m for m in self.children() if hasattr(m, 'grad_checkpointing')]  # type: ignore[attr-defined]
        super().set_grad_checkpointing(enable and not own)  # type: ignore[misc]
        for stage in own:
            stage.grad_checkpointing = enable


class NoShortcut(nn.Module):
    """Stands where a block has its projection, and adds nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros([1])
