"""Before a folder is said to be written, it is loaded as its users will load it, and compared."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import is_model, model_entrypoint
from torch import nn

from ..checkpoints.names import WEIGHTS
from ..checkpoints.read import first_line
from ..checkpoints.trainable import create_trainable
from ..inference.compare import random_images, relative_difference, tolerance


def needs_of(architecture: str) -> list[str]:
    """Packages to import for an architecture, none for timm's; ``ValueError`` if nobody else has what registers it."""
    if not is_model(architecture):
        raise ValueError(f"timm knows no architecture '{architecture}', so nobody could load these weights by name.")
    home = model_entrypoint(architecture).__module__.partition('.')[0]
    if home not in ('timm', 'timm_asr'):
        raise ValueError(
            f"The architecture '{architecture}' is registered by '{home}' and not by timm or timm_asr, so nobody else "
            'could load these weights by name.')
    return [] if home == 'timm' else [home]


def check_written(folder: Path, model: nn.Module, data: Mapping[str, Any], label_names: Sequence[str] | None,
                  trainable: bool) -> float:
    """Load a folder and compare it with the model that was written, in eval mode, on random images.

    Args:
        data: timm's data configuration that the loaded model must resolve to.
        trainable: Load the trainable form, as :func:`timm_asr.load_trainable` does.

    Returns:
        The largest difference of a logit over the largest logit.

    Raises:
        ValueError: It does not load, or is not the same.
    """
    try:
        loaded = create_trainable(folder) if trainable else timm.create_model(f'local-dir:{folder}', pretrained=True)
    except Exception as error:  # whatever timm raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()][:2]  # torch says more in the second
        reason = ' '.join(lines).rstrip('.')[:300] or first_line(error)
    else:
        reason = _difference(loaded, folder, model, data, label_names)
        if not reason:
            images = random_images(tuple(data['input_size']))
            with torch.inference_mode():
                relative = relative_difference(model(images), loaded.eval()(images))
            if relative <= tolerance(model):
                return relative
            reason = f'its logits differ by {relative:.1e} of the largest (allowed {tolerance(model):.0e})'
    raise ValueError(f'What was written does not load back ({reason}); it is not kept.')


def _difference(loaded: nn.Module, folder: Path, model: nn.Module, data: Mapping[str, Any],
                label_names: Sequence[str] | None) -> str:
    """The first thing in which a loaded model is not what it was, logits apart; '' for nothing."""
    written, state = load_file(folder / WEIGHTS), loaded.state_dict()
    if set(written) != set(state):
        return f"the key '{sorted(set(written) ^ set(state))[0]}' is in one of file and model only"
    for name, tensor in written.items():
        if not torch.equal(tensor.to(state[name].dtype), state[name]):
            return f"'{name}' was changed while loading"
    config = json.loads(json.dumps(timm.data.resolve_model_data_config(loaded)))
    names = loaded.pretrained_cfg.get('label_names')
    pairs = {name: (getattr(model, name, None), getattr(loaded, name, None)) for name in ('num_classes', 'in_chans')}
    pairs |= {f'{name} of the images': (wanted, config[name]) for name, wanted in data.items()}
    for name, (wanted, found) in pairs.items():
        if wanted != found:
            return f'{name} is {found} where it was {wanted}'
    return f'its label names are {names}' if label_names and list(names or ()) != list(label_names) else ''
