"""Which modules of a network a constant per channel may stand for."""

from timm.layers import BatNonLocalAttn, NonLocalAttn, SelectiveKernel, SplitAttn, cbam, coord_attn
from torch import nn

from ..gates.forms import InferenceForm
from ..gates.gate import ChannelGate
from ..gates.shared import SharedUnit

_POSITIONS = 'it weighs positions too'
#: Attention that no constant per channel can stand for, and why. What is inside such a module is left alone too.
NOT_CHANNEL_GATES: dict[type[nn.Module], str] = {
    **dict.fromkeys((
        cbam.CbamModule, cbam.LightCbamModule, coord_attn.CoordAttn, coord_attn.SimpleCoordAttn,
        coord_attn.EfficientLocalAttn, coord_attn.StripAttn, NonLocalAttn, BatNonLocalAttn), _POSITIONS),
    **dict.fromkeys((SelectiveKernel, SplitAttn), 'it weighs branches against each other'),
    SharedUnit: 'the blocks of a stage share it'}


def other_attention(model: nn.Module) -> dict[str, str]:
    """Names of the modules with attention that is not a gate per channel, each with the reason."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, ChannelGate) and not module.per_channel:
            found[name] = _POSITIONS
        found.update((name, reason) for kind, reason in NOT_CHANNEL_GATES.items() if isinstance(module, kind))
    return found


def candidates(model: nn.Module) -> set[str]:
    """Names of the modules that may be channel gates: all with parameters, outside of other attention.

    Raises:
        ValueError: The model has its inference form, or weights that are not finite.
    """
    for name, module in model.named_modules():
        if isinstance(module, InferenceForm):
            raise ValueError(
                f"'{name}' has its inference form already, a {type(module).__name__}, in which its gate cannot be "
                'replaced; freeze_attention goes before reparameterize().')
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"The weights of this {type(model).__name__} are not finite: look at '{name}'.")
    closed = tuple(f'{name}.' for name in other_attention(model))
    return {
        name for name, module in model.named_modules()
        if name and not f'{name}.'.startswith(closed) and next(module.parameters(), None) is not None}
