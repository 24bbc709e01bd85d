"""The inference form of the attention in a network, wherever it stands."""

from collections.abc import Iterator

from torch import nn

from ..layers.asr import ASR
from ..layers.gate import ChannelGate
from ..layers.inference_gates import InferenceGate
from ..layers.shared import SharedUnit
from . import inference_block as block
from .inference_block import InferenceBranch

# What holds gates that are not called as modules, or that have their inference form already.
_CLOSED = (ASR, ChannelGate, SharedUnit, InferenceBranch, InferenceGate)


def find_attention(module: nn.Module, name: str = '') -> Iterator[tuple[str, nn.Module]]:
    """Names and modules inside a module that have an inference form: residual blocks with a gate, other gates."""
    if block.has_inference_form(module):
        yield name, module
    elif not isinstance(module, _CLOSED):
        for key, child in module._modules.items():  # named_modules() skips a module met twice
            if child is not None:
                yield from find_attention(child, f'{name}.{key}' if name else key)


def check_attention_eval(module: nn.Module) -> None:
    """Refuse to change attention that is in training mode.

    Raises:
        ValueError: A module that has an inference form is in training mode.
    """
    for name, m in find_attention(module):
        if m.training:
            raise ValueError(
                f"The inference form of '{name}' (a {type(m).__name__}) would change what the model computes in "
                'training mode; call model.eval() first, or fold_asr(model) to fold the vectors of ASR alone.')


def attention_for_inference(module: nn.Module) -> nn.Module:
    """Give the attention in a module in eval mode its inference form, in place.

    Returns:
        The module, or the new one where it is itself a block or a gate. A second call changes nothing.
    """
    made: dict[nn.Module, nn.Module] = {}
    for name, old in list(find_attention(module)):
        if old not in made:
            made[old] = block.inference_form(old)
        if not name:
            return made[old]
        module.set_submodule(name, made[old])
    return module
