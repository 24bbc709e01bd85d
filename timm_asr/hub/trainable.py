"""A model from an exported folder, fused or trainable, in a process that has imported this package."""

import json
from pathlib import Path

from torch import nn

from ..engine.errors import BadInput
from .provenance import KEY


def create_trainable(folder: str | Path) -> nn.Module:
    """The model of a folder that :func:`timm_asr.save_fused` wrote, or of ``trainable`` inside it, in train mode.

    ASR that is registered under a name of its own comes with that name; ASR that was attached to another model's name
    is attached again.

    Raises:
        BadInput: The folder is not one of weights, or they do not fit.
    """
    from ..engine.load_model import load_model, load_weights, read_checkpoint
    folder = Path(folder)
    try:
        config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        config = {}
    section = config.get(KEY) or {}
    if section.get('form') != 'trainable' or not section.get('asr'):
        return load_model(str(folder))
    from .. import create_model  # type: ignore[attr-defined]
    try:
        model = create_model(config['architecture'], **config.get('model_args', {}), **section['asr'])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f'{folder} cannot be made again ({str(error).splitlines()[0]})') from None
    load_weights(model, folder, read_checkpoint(folder / 'model.safetensors'), config['architecture'])
    model.pretrained_cfg = {**model.pretrained_cfg, **config['pretrained_cfg']}  # type: ignore[dict-item, assignment]
    return model
