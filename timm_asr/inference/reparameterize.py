"""From the trained network to the one that runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.models import reparameterize_model
from torch import nn

from ..asr.fold import fold_asr, has_asr
from ..asr.wrapper import ASR
from .attention import attention_for_inference, check_attention_eval, find_attention
from .fold_bn import check_batch_norm_eval, fold_batch_norm

_TIMM_VERBS = ('fuse', 'reparameterize', 'switch_to_deploy')


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
        The module.

    Raises:
        ValueError: ``fold_bn``, merging branches, or gates in the blocks, in training mode, where each would change
            the function. The module is unchanged.
    """
    merging = [m for m in module.modules() if not isinstance(m, Reparameterizable) and _merges(m)]
    if module.training and merging:
        raise ValueError(
            f'Merging the branches of {type(merging[0]).__name__} in training mode would change what the model '
            'computes; call model.eval() first, or fold_asr(model) to fold the attention alone.')
    check_attention_eval(module)
    if fold_bn:
        check_batch_norm_eval(module)
    module = fold_asr(module)
    if merging:
        with _default_dtype_of(module):
            if module in merging:  # timm's function looks at children only
                module = _merge_root(module)
            reparameterize_model(module, inplace=True)
    return attention_for_inference(fold_batch_norm(module) if fold_bn else module)


def is_foldable(model: nn.Module) -> bool:
    """True while the model has attention vectors, branches or gates that its inference form would not have so."""
    return (
        has_asr(model)
        or next(find_attention(model), None) is not None
        or any(getattr(m, 'reparam_conv', m) is None for m in model.modules()))


def _merges(module: nn.Module) -> bool:
    return not isinstance(module, ASR) and any(callable(getattr(module, verb, None)) for verb in _TIMM_VERBS)


def _merge_root(module: nn.Module) -> nn.Module:
    if callable(getattr(module, 'fuse', None)):
        return module.fuse()
    verb = 'reparameterize' if hasattr(module, 'reparameterize') else 'switch_to_deploy'
    getattr(module, verb)()
    return module


@contextmanager
def _default_dtype_of(module: nn.Module) -> Iterator[None]:
    """Let layers that are made meanwhile have a module's dtype: some of timm's (LeViT, TinyViT) would be float32."""
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
    before = torch.get_default_dtype()
    if len(dtypes) == 1:
        torch.set_default_dtype(dtypes.pop())
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def built_for_inference(model: nn.Module, form: bool | str) -> None:
    """Give a model under construction its inference form, so that a state dict of that form fits.

    Args:
        model: The model, as its constructor has built it.
        form: False for none, True, or 'fold_bn'.

    Raises:
        ValueError: ``form`` is something else.
    """
    if form not in (False, True, 'fold_bn'):
        raise ValueError(f"reparameterized={form!r} is not known; it takes True, 'fold_bn' or False.")
    if form:
        reparameterize(model.eval(), fold_bn=form == 'fold_bn')


class Reparameterizable:
    """Gives a model the method ``reparameterize`` that timm looks for."""

    def reparameterize(self, fold_bn: bool = False) -> nn.Module:
        """This model's inference form, in place; see :func:`timm_asr.reparameterize`."""
        return reparameterize(self, fold_bn=fold_bn)  # type: ignore[arg-type]  # mixed into modules only
