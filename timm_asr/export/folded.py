"""From a model to the tensors of its plain architecture, and the proof that they are the same function."""

import json
import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models import get_model_args
from torch import nn

from ..asr.options import VECTOR_KEYWORDS
from ..gates.forms import InferenceForm
from ..gates.gate import ChannelGate
from ..gates.table import gate_options
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


def check_fit(plain: str, args: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> None:
    """Raise ``ValueError`` for what could not be loaded back: build the plain architecture and compare its tensors."""
    try:
        json.dumps(args)
        stock = timm.create_model(plain, **args, device='meta')
    except (TypeError, ValueError) as error:
        raise ValueError(f"The folded network is not a '{plain}' that can be rebuilt from its arguments ({error}); "
                         'pass what is missing as model_args.') from None
    except (RuntimeError, NotImplementedError):  # some constructors compute on their tensors
        stock = timm.create_model(plain, **args)
    expected = {name: tuple(t.shape) for name, t in stock.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in state.items()}
    if expected == found:
        return
    lost = [name for name in expected if name not in found and name.endswith('running_mean')]
    if lost:
        raise ValueError(
            f"The norm '{lost[0].removesuffix('.running_mean')}' of '{plain}' is gone: the model is in its inference "
            'form (reparameterize() has folded or merged it), which nobody could load by that name; export the model '
            'as it was before, and let whoever runs it merge.')
    name = next(n for n in {**expected, **found} if expected.get(n) != found.get(n))
    raise ValueError(
        f"The folded weights do not fit '{plain}': '{name}' is {found.get(name, 'absent')} where it has "
        f'{expected.get(name, "none")}. If the model was built with further arguments, pass them as model_args.')


def tag_of(model: str, asr: Mapping[str, Any] | None, data: str | None) -> str | None:
    """A pretrained tag in timm's style that is no stock one: what was folded and what it was trained on.

    ``resnet20_asr_se`` on ``torch/cifar10`` makes ``resnet20.asr_se_cifar10``.
    """
    variant = variant_of(model or '')
    gate = variant.asr if variant else ''
    parts = [f'asr_{gate}' if gate else f'asr_{asr.get("asr", "")}'.rstrip('_') if asr else '', data_slug(data)]
    return '_'.join(part for part in parts if part) or None


def data_slug(data: str | None) -> str:
    """The last part of a data set's name in small letters, digits and underscores."""
    return re.sub(r'[^a-z0-9]+', '_', (data or '').rstrip('/').rpartition('/')[2].lower()).strip('_')
