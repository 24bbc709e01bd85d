"""Fused weights as a folder that timm loads."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from timm.models import get_model_args
from timm.models._hub import save_config_for_hf
from timm.utils import unwrap_model
from torch import nn

from ..layers import ChannelGate, fold_asr
from ..models import plain_architecture

_ASR_ARGUMENTS = ('asr', 'asr_depth', 'asr_init', 'asr_learnable')
# They describe the training set-up or the publication of the stock model, not these weights.
_FOREIGN = ('tag', 'license', 'paper_ids', 'paper_name', 'origin_url', 'description', 'notes', 'custom_load')


def _plain_arguments(model: nn.Module) -> dict[str, Any]:
    """Constructor arguments of the plain architecture, those of ASR dropped."""
    drop = _ASR_ARGUMENTS
    if not any(isinstance(m, ChannelGate) for m in model.modules()):
        drop += ('rd_ratio',)  # it was that of ASR's gates alone
    return {name: value for name, value in get_model_args(model).items() if name not in drop}


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    # safetensors takes contiguous tensors that share no memory; channels_last weights are not contiguous.
    return {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}


def save_fused(model: nn.Module, folder: str | os.PathLike, model_args: dict[str, Any] | None = None) -> Path:
    """Fold a model's ASR and write it as a folder that timm loads, by ``create_model('local-dir:FOLDER', True)``.

    The weights are those of the plain architecture: stock timm alone loads them where timm has it (``resnet50``,
    ``vit_small_patch16_224``); a CIFAR ResNet, or one with gates in its blocks, needs ``import timm_asr`` first.
    The model itself is left as it is.

    Args:
        model: A model made by ``timm.create_model``, or one in a DDP or compiled wrapper.
        folder: Where ``model.safetensors`` and ``config.json`` go; made if absent. Files of these names are replaced.
        model_args: Constructor arguments of the plain architecture beyond those that timm remembers.

    Returns:
        The folder.

    Raises:
        ValueError: The model was not made by ``timm.create_model``, is a feature extractor, or its folded weights do
            not fit the plain architecture. Nothing is written.
    """
    model = unwrap_model(model)
    cfg = getattr(model, 'pretrained_cfg', None)
    if not cfg or not cfg.get('architecture') or not hasattr(model, 'num_classes'):
        raise ValueError(
            f'This {type(model).__name__} cannot be saved by name: save_fused takes whole models made by '
            'timm.create_model (without features_only).')
    fused = fold_asr(copy.deepcopy(model))
    plain = plain_architecture(cfg['architecture'])
    args = {**_plain_arguments(fused), **(model_args or {})}
    state = _state(fused)
    _check_fit(plain, args, state)

    fused._model_args = args
    fused.pretrained_cfg = {
        **{key: value for key, value in cfg.items() if key not in _FOREIGN}, 'architecture': plain}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights, config = folder / 'model.safetensors', folder / 'config.json'
    # Whole files only: written aside, then renamed. A file that save_file makes can be read by its owner alone.
    Path(f'{weights}.part').write_bytes(save(state, metadata={'format': 'pt'}))
    save_config_for_hf(fused, f'{config}.part')
    os.replace(f'{weights}.part', weights)
    os.replace(f'{config}.part', config)
    return folder


def _check_fit(plain: str, args: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    """Refuse what could not be loaded back: build the plain architecture without memory and compare."""
    try:
        json.dumps(args)
        stock = timm.create_model(plain, **args, device='meta')
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The fused model is not a '{plain}' that can be rebuilt from its arguments ({error}); "
            'pass what is missing as model_args.') from None
    expected = {name: tuple(t.shape) for name, t in stock.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in state.items()}
    if expected != found:
        name = next(n for n in {**expected, **found} if expected.get(n) != found.get(n))
        raise ValueError(
            f"The fused weights do not fit '{plain}': '{name}' is {found.get(name, 'absent')} where it has "
            f'{expected.get(name, "none")}. If the model was built with further arguments, pass them as model_args.')
