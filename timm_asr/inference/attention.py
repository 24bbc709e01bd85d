"""The inference form of the attention in a network, wherever it stands."""

from collections.abc import Iterator

from torch import nn

from ..asr.vector import ASR
from ..gates.dia_lstm import SharedLSTM
from ..gates.gate import ChannelGate
from ..gates.shared import SharedUnit
from .block import InferenceBranch, inference_block, is_gated_block
from .gates import InferenceGate, has_inference_form, inference_gate
from .shared import InferenceLSTM, first_layer
from .stage import InferenceStage, inference_stage, is_shared_stage

# What holds gates that are not called as modules, or that have their inference form already.
_CLOSED = (ASR, ChannelGate, SharedUnit, InferenceBranch, InferenceGate, InferenceStage)


def _is_open(module: nn.Module) -> bool:
    return (
        is_shared_stage(module) or is_gated_block(module)
        or isinstance(module, SharedLSTM) or has_inference_form(module))


def _form(module: nn.Module) -> nn.Module:
    if is_shared_stage(module):
        return inference_stage(module)
    if is_gated_block(module):
        return inference_block(module)
    if isinstance(module, SharedLSTM):  # in a stage of other blocks
        return InferenceLSTM(module, first_layer(module)).eval()
    form = inference_gate(module)
    return InferenceGate(form.pool, form.gate)


def find_attention(module: nn.Module, name: str = '') -> Iterator[tuple[str, nn.Module]]:
    """Names and modules that have an inference form: stages with a shared unit, blocks with a gate, gates alone."""
    if _is_open(module):
        yield name, module
    elif not isinstance(module, _CLOSED):
        for key, child in module._modules.items():  # named_children() skips a module met twice
            if child is not None:
                yield from find_attention(child, f'{name}.{key}' if name else key)


def check_attention_eval(module: nn.Module) -> None:
    """Refuse to change attention that is in training mode.

    Raises:
        ValueError: A module that has an inference form is in training mode.
    """
    for name, m in find_attention(module):
        if m.training:
            where = f"'{name}' (a {type(m).__name__})" if name else f'a {type(m).__name__}'
            raise ValueError(
                f'The inference form of {where} would change what the model computes in training mode; '
                'call model.eval() first, or fold_asr(model) to fold the vectors of ASR alone.')


def attention_for_inference(module: nn.Module) -> nn.Module:
    """Give the attention in a module in eval mode its inference form, in place.

    Returns:
        The module, or the new one where it is itself a stage, a block or a gate. A second call changes nothing.
    """
    made: dict[nn.Module, nn.Module] = {}
    for name, old in list(find_attention(module)):
        if old not in made:
            made[old] = _form(old)
        if not name:
            return made[old]
        module.set_submodule(name, made[old])
    return module
