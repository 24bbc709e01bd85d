"""Checkpoints of the papers' authors: their names of weights in ours.

Each paper's repository (zhongshsh/ASR, zhongshsh/RAM, gbup-group/DIANet on GitHub) names the same tensors differently.
A state dict is recognised by its keys, so any depth loads; docs/models.md lists which of our names they are.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

# What to replace in every key.
_ASR = [
    (r'\.bn3\.bn\.', '.bn3.layer.'), (r'\.bn3\.vector$', '.bn3.vectors.0.psi'),
    (r'\.bn3\.attention_module\.', '.bn3.vectors.0.gate.'), (r'\.attention_module\.', '.se.')]
_RAM = [(r'\.bn4\.', '.se.connections.0.'), (r'\.w$', '.se.weight'), (r'\.b$', '.se.bias')]
_DIA = [(r'\.ModuleList\.', '.'), (r'\.lstm\.(w_[ih]h)\.0\.seq\.', r'.0.unit.cells.0.\1.')]
_WIDE = [
    (r'^bn1\.', 'norm.'), (r'^block(\d)\.', r'layer\1.'), (r'\.bn_additional\.', '.bn3.'),
    (r'\.convShortcut\.', '.downsample.')]
_NEXT = [
    (r'^conv_1_3x3\.', 'conv1.'), (r'^bn_1\.', 'bn1.'), (r'^stage_(\d)\.', r'layer\1.'), (r'^classifier\.', 'fc.'),
    (r'\.conv_reduce\.', '.conv1.'), (r'\.bn_reduce\.', '.bn1.'), (r'\.conv_conv\.', '.conv2.'), (r'\.bn\.', '.bn2.'),
    (r'\.conv_expand\.', '.conv3.'), (r'\.bn_expand\.', '.bn3.'), (r'\.shortcut\.shortcut_conv\.', '.downsample.0.'),
    (r'\.shortcut\.shortcut_bn\.', '.downsample.1.')]
# A key that only this code has -> its renames.
_CODES = [
    (r'\.attention_module\.fc1\.', _ASR),
    (r'^layer\d\.\d+\.bn4\.', _RAM),
    (r'^layer\d\.ModuleList\.', _DIA),
    (r'^block\d\.ModuleList\.', _DIA + _WIDE),
    (r'^stage_\d\.ModuleList\.', _DIA + _NEXT)]


def our_names(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state dict of the authors' code (without ``module.``) under our names; any other one as it is."""
    renames = next((found for mark, found in _CODES if any(re.search(mark, key) for key in state_dict)), None)
    if renames is None:
        return state_dict
    found = {}
    for key, tensor in state_dict.items():
        if '.fused_bn.' in key:  # a copy of the norm for deployment, which is stale until the model is deployed
            continue
        for pattern, ours in renames:
            key = re.sub(pattern, ours, key)
        if key.endswith(('.psi', '.se.weight', '.se.bias')):  # (1, C, 1, 1) there, (C,) here
            tensor = tensor.flatten()
        elif key.endswith(('.fc1.weight', '.fc2.weight')) and tensor.ndim == 2:  # linear there, 1x1 convolutions here
            tensor = tensor[..., None, None]
        found[key] = tensor
    return found


def checkpoint_filter_fn(state_dict: dict[str, Any], model: torch.nn.Module) -> dict[str, Any]:
    """:func:`our_names` as timm's builder calls it for pretrained weights.

    ``ValueError``: their ASR vectors are not all that the model has, and timm, which loads weights for other classes
    without strict, would leave some as they were drawn.
    """
    found = dict(our_names(state_dict.get('state_dict', state_dict)))
    given, own = ({key for key in of if '.vectors.' in key} for of in (found, model.state_dict()))
    if given and own - given:
        raise ValueError('The ASR vectors of these weights come from another gate or asr_depth than the model has.')
    return found
