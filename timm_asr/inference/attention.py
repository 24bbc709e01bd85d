"""The inference form of the attention in a network, wherever it stands."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from ..asr.wrapper import ASR
from ..gates.forms import InferenceForm
from ..gates.gate import ChannelGate
from ..gates.shared import SharedUnit
from .block import inference_block, is_gated_block
from .stage import inference_stage, is_shared_stage


class InferenceGate(InferenceForm):
    """A gate alone, x' = x * v, where nothing is known of what comes before and after.

    Args:
        pool: The pooling, (B, C, H, W) -> (B, D); global average pooling where it is None.
        gate: The rest, (B, D) -> (B, C).
    """

    def __init__(self, pool: nn.Module | None, gate: nn.Module) -> None:
        super().__init__()
        self.pool, self.gate = pool, gate
        self.train(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = F.adaptive_avg_pool2d(x, 1).flatten(1) if self.pool is None else self.pool(x)
        return x * self.gate(u)[:, :, None, None]


@torch.no_grad()
def _form(module: nn.Module) -> nn.Module | None:
    """The inference form of this very module; None where it has none, whatever is inside."""
    if is_shared_stage(module):
        return inference_stage(module)
    if is_gated_block(module):
        return inference_block(module)
    if isinstance(module, SharedUnit):  # in a stage of other blocks
        unit = module.inference_form([])
        return unit and unit.unit
    if isinstance(module, ChannelGate):
        form = module.inference_form()
        return form and InferenceGate(form.pool, form.gate)
    return None


@torch.no_grad()
def _has_form(module: nn.Module) -> bool:
    if is_shared_stage(module) or is_gated_block(module):
        return True
    if isinstance(module, SharedUnit):
        return module.inference_form([]) is not None
    return isinstance(module, ChannelGate) and module.inference_form() is not None


def find_attention(module: nn.Module, name: str = '') -> Iterator[tuple[str, nn.Module]]:
    """Names and modules that have an inference form: stages with a shared unit, blocks with a gate, gates alone."""
    if _has_form(module):
        yield name, module
    elif not isinstance(module, ASR | ChannelGate | SharedUnit | InferenceForm):
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
            form = _form(old)
            assert form is not None
            made[old] = form
        if not name:
            return made[old]
        module.set_submodule(name, made[old])
    return module
