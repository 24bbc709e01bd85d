"""A model from an exported folder, fused or trainable, in a process that has imported this package."""

import json
from pathlib import Path

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..errors import BadInput
from ..models.create import create_model
from .place import CONFIG, WEIGHTS
from .provenance import KEY


def create_trainable(folder: str | Path) -> nn.Module:
    """The model of a folder that :func:`timm_asr.save_fused` wrote, or of ``trainable`` inside it, in train mode.

    ASR that is registered under a name of its own comes with that name; ASR that was attached to another model's name
    is attached again.

    Raises:
        BadInput: The folder is not one of weights, or they do not fit.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
        section = config.get(KEY) or {}
        if section.get('form') != 'trainable' or not section.get('asr'):
            return timm.create_model(f'local-dir:{folder}', pretrained=True)
        model = create_model(config['architecture'], **config.get('model_args', {}), **section['asr'])
        model.load_state_dict(load_file(folder / WEIGHTS), strict=True)
        # As timm does: names of classes at the root go inside.
        cfg = {**config['pretrained_cfg'], **{key: config[key] for key in ('label_names',) if key in config}}
        model.pretrained_cfg = {**model.pretrained_cfg, **cfg}  # type: ignore[dict-item, assignment]
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        raise BadInput(f'{folder} cannot be loaded ({(str(error).strip().splitlines() or [""])[0][:200]})') from None
    return model
