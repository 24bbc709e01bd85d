"""A timm network and a feature pyramid, as torchvision's detectors take them."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import Format, freeze_batch_norm_2d
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from ..asr.fold import has_asr
from ..asr.options import ASR_KEYWORDS
from ..checkpoints.read import read_checkpoint
from ..checkpoints.weights import state_dict_of
from ..errors import BadInput
from ..models.create import create_model


class TimmPyramid(nn.Module):
    """Features of a timm network at several strides, all brought to the same number of channels by an FPN.

    (B, 3, H, W) to an ordered dictionary of maps (B, out_channels, H / stride, W / stride), named '0', '1', ... from
    the finest on, and those of the extra block after them.

    Args:
        body: A network made with ``features_only=True``.
        strides: Those to use, as (4, 8, 16, 32), in any order; of several features of a stride, the last is taken.
        extra_blocks: Makes further, coarser maps.

    Raises:
        ValueError: The network has no feature at one of these strides.
    """

    def __init__(self, body: nn.Module, strides: Sequence[int], out_channels: int = 256,
                 extra_blocks: ExtraFPNBlock | None = None) -> None:
        super().__init__()
        has = {stride: index for index, stride in enumerate(body.feature_info.reduction())}
        missing = [stride for stride in strides if stride not in has]
        if missing or not strides:
            raise ValueError(
                f'The backbone has features at the strides {", ".join(map(str, has))}, and '
                f'{f"none at {missing[0]}" if missing else "none of these was asked for"}; choose among them with '
                'strides=(...).')
        self.body = body
        self.strides = tuple(sorted(set(strides)))  # the pyramid goes from the coarsest down
        self.indices = [has[stride] for stride in self.strides]
        self.channels_last = Format(getattr(body, 'output_fmt', 'NCHW')) == Format.NHWC
        channels = body.feature_info.channels()
        self.fpn = FeaturePyramidNetwork([channels[i] for i in self.indices], out_channels, extra_blocks)
        self.out_channels = out_channels

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.body(x)
        maps = [features[index] for index in self.indices]
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps]
        return self.fpn(OrderedDict((str(n), m) for n, m in enumerate(maps)))


def make_body(name: str, pretrained: bool = False, checkpoint: str | os.PathLike = '', asr: str | None = None,
              frozen_bn: bool = False, **kwargs: Any) -> nn.Module:
    """A timm network by name that puts out its features; options and errors are those of :func:`create_detector`."""
    state = _read_state(Path(checkpoint)) if checkpoint else {}
    if asr and _has_vectors(state):
        body = create_model(name, asr=asr, features_only=True, **{**kwargs, 'preserve': False})
        _load_attached(body, state, f"The checkpoint {checkpoint} is not one of '{name}' with this ASR")
    else:
        if checkpoint:
            _check_checkpoint(name, state, f'The checkpoint {checkpoint}', asr, kwargs)
            # timm loads it before it takes the network apart, and leaves out a classifier that is not there.
            pretrained, kwargs = True, {**kwargs, 'pretrained_cfg_overlay': {'state_dict': state}}
        body = create_model(name, pretrained=pretrained, asr=asr, features_only=True, **kwargs)
        for part in body.modules():  # timm keeps what it loaded from
            (getattr(part, 'pretrained_cfg', None) or {}).pop('state_dict', None)
    return freeze_batch_norm_2d(body) if frozen_bn else body


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ValueError(f'There is no checkpoint of the backbone at {path}.')
    try:
        content = read_checkpoint(path)
        return state_dict_of(content, any(key in content for key in ('state_dict_ema', 'model_ema')), path)
    except BadInput as error:
        raise ValueError(f'{error}.') from None


def _has_vectors(state: dict[str, torch.Tensor]) -> bool:
    return any(key.endswith('.vectors.0.psi') for key in state)


def _load_attached(body: nn.Module, state: dict[str, torch.Tensor], complaint: str) -> None:
    """Load what was trained with ASR attached; timm's features have other names: ``stages_0``, a prefix."""
    flat = {key.replace('_', '.'): value for key, value in state.items()}
    names = {key: key.removeprefix('model.').replace('_', '.') for key in body.state_dict()}
    _refuse_other({names[key]: value for key, value in body.state_dict().items()}, flat, complaint)
    known = set(names.values())
    for key in sorted(flat.keys() - known):
        site, vectors, _ = key.partition('.vectors.')
        if vectors and any(name.startswith(f'{site}.') for name in known):  # it would be another function without
            raise ValueError(f"{complaint}: it also has '{key}' (asr_depth=...).")
    body.load_state_dict({key: flat[name] for key, name in names.items()})


def _check_checkpoint(
        name: str, state: dict[str, torch.Tensor], what: str, asr: str | None, kwargs: dict[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights of a network; without classifier, timm would leave them as they start."""
    keywords = {key: value for key, value in kwargs.items() if not (
        key in ('out_indices', 'feature_cls', 'preserve') or (asr and key in ASR_KEYWORDS))}
    network = timm.create_model(name, **keywords, device='meta')
    if _has_vectors(state) and not has_asr(network):
        raise ValueError(
            f"{what} has ASR, and '{name}' by its name has none: name its gate, e.g. asr='se', or export it (python -m "
            'timm_asr export) and give model.safetensors of that folder.')
    head = network.default_cfg.get('classifier') or ()
    heads = tuple(f'{part}.' for part in ((head,) if isinstance(head, str) else head))
    wanted = {key: value for key, value in network.state_dict().items() if not key.startswith(heads)}
    _refuse_other(wanted, state, f"{what} is not one of '{name}'")


def _refuse_other(wanted: dict[str, torch.Tensor], state: dict[str, torch.Tensor], complaint: str) -> None:
    for key, value in wanted.items():
        if key not in state or state[key].shape != value.shape:
            found = f'{tuple(state[key].shape)} where it has {tuple(value.shape)}' if key in state else 'absent'
            raise ValueError(f"{complaint}: '{key}' is {found}.")
