"""From the trained network to the one that runs."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from timm.layers import unfreeze_batch_norm_2d
from timm.models import reparameterize_model
from torch import nn

from ..asr.fold import fold_asr, has_asr
from ..asr.scaled import has_hooks
from ..asr.wrapper import ASR
from ..gates.forms import GateForm, InferenceForm
from ..gates.gate import ChannelGate
from ..gates.shared import SharedStage, SharedUnit
from .block import block_maker, stage_maker
from .fold_bn import check_batch_norm_eval, fold_batch_norm


def reparameterize(module: nn.Module, fold_bn: bool = False) -> nn.Module:
    """Give a network its inference form, in place: the same function, by fewer operations.

    ASR vectors are folded first (:func:`timm_asr.fold_asr`), then the branches that timm's own layers know how to
    merge (RepVGG, MobileOne, ...), then gates that stand in residual blocks get a form that is for inference only:
    what can be computed beforehand is, and a block reads and writes its feature maps fewer times. The module may hold
    a network of this package anywhere inside: a detector, a segmentation network, a DataParallel or compiled wrapper.
    A second call changes nothing.

    Args:
        module: The module.
        fold_bn: Fold each BatchNorm into the convolution before it as well. For inference only: what is left has no
            BatchNorm to train.

    Returns:
        The module, or the new one where it is itself a stage, a block or a gate.

    Raises:
        ValueError: ``fold_bn``, merging branches, or gates in the blocks, in training mode, where each would change
            the function. The module is unchanged.
    """
    merging = [
        m for m in module.modules() if not isinstance(m, ASR | Reparameterizable)
        and any(callable(getattr(m, verb, None)) for verb in ('fuse', 'reparameterize', 'switch_to_deploy'))]
    if module.training and merging:
        raise ValueError(
            f'Merging the branches of {type(merging[0]).__name__} in training mode would change what the model '
            'computes; call model.eval() first, or fold_asr(model) to fold the attention alone.')
    for name, m, _ in _attention(module):
        if m.training:
            where = f"'{name}' (a {type(m).__name__})" if name else f'a {type(m).__name__}'
            raise ValueError(
                f'The inference form of {where} would change what the model computes in training mode; '
                'call model.eval() first, or fold_asr(model) to fold the vectors of ASR alone.')
    if fold_bn:
        check_batch_norm_eval(module)
    module = fold_asr(module)
    if merging:
        for m in merging:  # timm merges norms that are not frozen; in eval mode they are the same
            unfreeze_batch_norm_2d(m).eval()
        module = _merge(module, module in merging)
    if fold_bn:
        module = fold_batch_norm(module)
    made: dict[nn.Module, nn.Module] = {}
    for name, old, make in list(_attention(module)):
        if old not in made:
            made[old] = make()
        if not name:
            return made[old]
        module.set_submodule(name, made[old])
    return module


def is_foldable(model: nn.Module) -> bool:
    """True while the model has attention vectors, branches or gates that its inference form would not have so."""
    return (
        has_asr(model) or next(_attention(model), None) is not None
        or any(getattr(m, 'reparam_conv', m) is None for m in model.modules()))


class InferenceGate(InferenceForm):
    """A gate alone, x' = x * v, where nothing is known of what comes before and after; ``form`` is the gate's."""

    def __init__(self, form: GateForm) -> None:
        super().__init__()
        self.pool, self.gate = form.pool, form.gate
        self.train(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = F.adaptive_avg_pool2d(x, 1).flatten(1) if self.pool is None else self.pool(x)
        return x * self.gate(u)[..., None, None]


@torch.no_grad()
def _maker(module: nn.Module) -> Callable[[], nn.Module] | None:
    """What makes the inference form of this very module; None where it has none, whatever is inside, or where hooks
    would be lost, those of pruning say.
    """
    if has_hooks(module):
        return None
    if isinstance(module, SharedUnit):  # in a stage of other blocks
        shared = module.inference_form([])
        return shared and (lambda: shared.gate)
    form = module.inference_form() if isinstance(module, ChannelGate) and module.multiplies else None
    return stage_maker(module) or block_maker(module) or (form and (lambda: InferenceGate(form)))


def _attention(module: nn.Module, name: str = '') -> Iterator[tuple[str, nn.Module, Callable[[], nn.Module]]]:
    """What has an inference form: stages with a shared unit, blocks with a gate, gates alone; name, module, maker."""
    make = _maker(module)
    if make is not None:
        yield name, module, torch.no_grad()(make)
    elif not isinstance(module, ASR | ChannelGate | SharedUnit | InferenceForm) and not (
            isinstance(module, SharedStage) and has_hooks(module)):
        for key, child in module._modules.items():  # named_children() skips a module met twice
            if child is not None:
                yield from _attention(child, f'{name}.{key}' if name else key)


@torch.random.fork_rng(devices=[])  # the merged layers are drawn before they are filled
def _merge(module: nn.Module, itself: bool) -> nn.Module:
    """Merge parallel branches by timm's function, which looks at children only."""
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
    before = torch.get_default_dtype()
    if len(dtypes) == 1:  # the layers that some of timm's (LeViT, TinyViT) make would be float32
        torch.set_default_dtype(dtypes.pop())
    try:
        root = reparameterize_model(nn.Sequential(module) if itself else module, inplace=True)
    finally:
        torch.set_default_dtype(before)
    return root[0] if itself else root


class Reparameterizable:
    """Gives a model the method ``reparameterize`` that timm looks for."""

    def reparameterize(self, fold_bn: bool = False) -> nn.Module:
        """This model's inference form, in place; see :func:`timm_asr.reparameterize`."""
        return reparameterize(self, fold_bn=fold_bn)  # type: ignore[arg-type]  # mixed into modules only
