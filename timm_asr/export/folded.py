"""From a model to the tensors of its plain architecture, and the proof that they load back to the same function."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_model_args, is_model, model_entrypoint
from torch import nn

from ..asr.options import VECTOR_KEYWORDS
from ..checkpoints.trainable import create_trainable
from ..gates.forms import InferenceForm
from ..gates.gate import ChannelGate
from ..gates.table import gate_options
from ..inference.compare import random_images, relative_difference, tolerance
from ..models.registry import variant_of


def plain_arguments(model: nn.Module) -> dict[str, Any]:
    """Constructor arguments of the plain architecture, those of ASR dropped."""
    drop = ('asr', 'last_norm_init', *VECTOR_KEYWORDS)
    if not any(isinstance(m, ChannelGate) for m in model.modules()):
        drop += tuple(gate_options())  # they were those of ASR's gates alone
    return {name: value for name, value in get_model_args(model).items() if name not in drop}


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as safetensors takes it: contiguous tensors that share no memory, under their plain names.

    Left out are the statistics that split BN keeps of augmented images; added is the counter that a frozen BN has not.
    """
    state = {name.replace('_orig_mod.', ''): t.detach().cpu().contiguous().clone()
             for name, t in model.state_dict().items() if '.aux_bn.' not in name}
    for name in [name for name in state if name.endswith('running_mean')]:
        state.setdefault(f'{name.removesuffix("running_mean")}num_batches_tracked', torch.tensor(0))
    return state


def refuse_inference_form(model: nn.Module, name: str) -> None:
    """Raise ``ValueError`` for what ``reparameterize`` has merged: it does not load by the architecture's name."""
    merged = next((m for m in model.modules() if isinstance(m, InferenceForm)
                   or isinstance(getattr(m, 'reparam_conv', None), nn.Module)), None)
    if merged is not None:
        raise ValueError(
            f"This '{name}' is in its inference form (reparameterize() made its {type(merged).__name__}), which "
            'nobody could load by that name; export the model as it was before, and let whoever runs it merge.')


def tag_of(facts: Mapping[str, Any], trainable: bool) -> str | None:
    """A pretrained tag in timm's style that is no stock one: what was folded and what it was trained on.

    ``resnet20_asr_se`` on ``torch/cifar10`` makes ``resnet20.asr_se_cifar10``.
    """
    data = re.sub(r'[^a-z0-9]+', '_', (facts.get('dataset') or '').rstrip('/').rpartition('/')[2].lower()).strip('_')
    if trainable:
        return data or 'trainable'
    variant, attached = variant_of(facts.get('model') or ''), facts.get('asr')
    gate = (variant.asr if variant else '') or (attached or {}).get('asr', '')
    return '_'.join(part for part in ('asr' if gate or attached else '', gate, data) if part) or None


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

    ``data`` is timm's data configuration that it must resolve to. Returns the largest difference of a logit over the
    largest logit; ``ValueError``: it does not load, or is not the same.
    """
    try:
        loaded = create_trainable(folder) if trainable else timm.create_model(f'local-dir:{folder}', pretrained=True)
    except Exception as error:  # whatever timm raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()][:2]  # torch says more in the second
        raise ValueError(
            f'What was written does not load back ({" ".join(lines).rstrip(".")[:300]}); it is not kept. If the model '
            'was built with further arguments, pass them as model_args.') from None
    config, names = timm.data.resolve_model_data_config(loaded), loaded.pretrained_cfg.get('label_names')
    pairs = {name: (getattr(model, name, None), getattr(loaded, name, None)) for name in ('num_classes', 'in_chans')}
    pairs |= {f'{name} of the images': (wanted, json.loads(json.dumps(config[name]))) for name, wanted in data.items()}
    pairs['the list of classes'] = (list(label_names or names or ()), list(names or ()))
    images = random_images(tuple(data['input_size']))
    reason = next((f'{name} is {found} where it was {wanted}' for name, (wanted, found) in pairs.items()
                   if wanted != found), '')
    if not reason:
        with torch.inference_mode():
            relative = relative_difference(model(images), loaded.eval()(images))
        if relative <= tolerance(model):
            return relative
        reason = f'its logits differ by {relative:.1e} of the largest (allowed {tolerance(model):.0e})'
    raise ValueError(f'What was written does not load back ({reason}); it is not kept.')
