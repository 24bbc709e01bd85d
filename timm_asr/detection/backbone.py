"""A timm network and a feature pyramid, as torchvision's detectors take them."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers import Format, freeze_batch_norm_2d
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from ..asr.fold import has_asr
from ..asr.wrapper import ASR
from ..checkpoints.read import read_checkpoint
from ..checkpoints.weights import averaged_in, state_dict_of
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
                f'The backbone has features at the strides {", ".join(map(str, has))}, and none '
                f'{f"at {missing[0]}" if missing else "of these is used"}; choose among them with strides=(...).')
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
    body = create_model(name, pretrained=pretrained and not checkpoint, asr=asr, features_only=True, **kwargs)
    if checkpoint:
        state = _read_state(Path(checkpoint))
        trained = any(key.endswith('.vectors.0.psi') for key in state)
        if trained and not has_asr(body):
            raise ValueError(
                f"The checkpoint {checkpoint} has ASR, and '{name}' by its name has none: name its gate, e.g. "
                "asr='se', or export it (timm-asr export) and give model.safetensors of that folder.")
        complaint = f"The checkpoint {checkpoint} is not one of '{name}'{' with this ASR' if asr and trained else ''}"
        attached = bool(asr) and not trained  # what is attached is not in the checkpoint yet
        body.load_state_dict(body.state_dict() | _found(body, state, attached, complaint))
        for site in body.modules() if attached and kwargs.get('preserve') is not False else ():
            if isinstance(site, ASR):
                site.preserve_()
    return freeze_batch_norm_2d(body) if frozen_bn else body


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ValueError(f'There is no checkpoint of the backbone at {path}.')
    try:
        content = read_checkpoint(path)
        return state_dict_of(content, averaged_in(content) is not None, path)
    except BadInput as error:
        raise ValueError(f'{error}.') from None


def _found(
        body: nn.Module, state: dict[str, torch.Tensor], without_asr: bool, complaint: str) -> dict[str, torch.Tensor]:
    """A checkpoint's weights under the names of a body; timm's features have others: ``stages_0``, a prefix."""
    wanted = body.state_dict()
    plain = {key: key.replace('.layer.', '.') if without_asr else key
             for key in wanted if not (without_asr and '.vectors.' in key)}
    names = {key: name.removeprefix('model.').replace('_', '.') for key, name in plain.items()}
    flat = {key.replace('_', '.'): value for key, value in state.items()}
    for key, name in names.items():
        if name not in flat or flat[name].shape != wanted[key].shape:
            there = f'{tuple(flat[name].shape)} where it has {tuple(wanted[key].shape)}' if name in flat else 'absent'
            raise ValueError(f"{complaint}: '{plain[key]}' is {there}.")
    known = set(names.values())
    for key in sorted(flat.keys() - known):
        site, vectors, _ = key.partition('.vectors.')
        if vectors and any(name.startswith(f'{site}.') for name in known):  # it would be another function without
            raise ValueError(f"{complaint}: it also has '{key}' (asr_depth=...).")
    return {key: flat[name] for key, name in names.items()}
