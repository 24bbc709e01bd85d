"""Fold every BatchNorm into the convolution before it."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame, FrozenBatchNormAct2d
from timm.models import get_notrace_functions, get_notrace_modules
from torch import fx, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops.misc import FrozenBatchNorm2d

from ..asr.scaled import has_hooks
from ..gates.forms import PointwiseConv2d

# Exact types: a weight-standardised convolution would normalise the folded scale away.
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv2dSame, PointwiseConv2d)
_FROZEN = (FrozenBatchNorm2d, FrozenBatchNormAct2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNormAct2d, *_FROZEN)
_TRACING = threading.RLock()


class Tracer(fx.Tracer):
    """torch.fx's tracer with timm's list of what it cannot trace through, and further modules to stop at.

    torch.fx changes how modules of the whole process are called while it traces: one traces at a time, and modules that
    other threads run meanwhile are run.
    """

    def __init__(self, leaves: Iterable[nn.Module] = ()) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.kinds = tuple(get_notrace_modules())
        self.leaves = set(leaves)

    def trace(self, root: nn.Module, concrete_args: dict[str, Any] | None = None) -> fx.Graph:  # type: ignore[override]
        with _TRACING:
            self.thread = threading.get_ident()
            return super().trace(root, concrete_args)

    def call_module(
            self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (m in self.leaves or isinstance(m, (*self.kinds, FrozenBatchNorm2d))
                or super().is_leaf_module(m, module_qualified_name))


def foldable(conv: nn.Module, bn: nn.Module) -> bool:
    """Whether a norm can be folded into a convolution that it alone reads; not where hooks would be lost (pruning)."""
    return (type(conv) in _CONVS and type(bn) in _NORMS and bn.running_mean is not None
            and not parametrize.is_parametrized(conv) and not has_hooks(conv) and not has_hooks(bn))


def find_pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Names of the (convolution, BatchNorm) pairs of a module in which the norm alone reads the convolution.

    Parts of the module that torch.fx cannot trace as a whole are searched part by part.
    """
    if not list(module.children()):
        return []
    try:
        graph = Tracer().trace(module)
    except Exception:
        return [
            (f'{name}.{conv}', f'{name}.{bn}')
            for name, child in module.named_children() for conv, bn in find_pairs(child)]
    calls = Counter(node.target for node in graph.nodes if node.op == 'call_module')
    pairs = []
    for node in graph.nodes:
        before = node.args[0] if node.op == 'call_module' and node.args else None
        if not isinstance(before, fx.Node) or before.op != 'call_module' or len(before.users) > 1:
            continue
        names = (before.target, node.target)
        if all(calls[name] == 1 for name in names) and foldable(*map(module.get_submodule, names)):
            pairs.append(names)
    return pairs


def check_batch_norm_eval(module: nn.Module) -> None:
    """Refuse to fold norms that use the statistics of the batch, by a ``ValueError``."""
    for name, bn in module.named_modules():
        if type(bn) in _NORMS and type(bn) not in _FROZEN and bn.training:
            raise ValueError(
                f"fold_bn=True would change what the model computes: BatchNorm '{name}' is in training mode and uses "
                'the statistics of the batch; call model.eval() first.')


@torch.no_grad()
def fold_batch_norm(module: nn.Module) -> nn.Module:
    """Fold every BatchNorm that directly follows a convolution into it, in place, and return the module.

    conv(x; w, b) then BN = conv(x; w * s, (b - mean) * s + beta) with s = gamma / sqrt(var + eps). A folded norm is
    replaced by its activation or an identity. A second call changes nothing.

    Raises:
        ValueError: A norm is in training mode. The module is unchanged.
    """
    check_batch_norm_eval(module)
    for conv_name, bn_name in find_pairs(module):
        conv, bn = module.get_submodule(conv_name), module.get_submodule(bn_name)
        if not foldable(conv, bn):  # two parts share them, and they are folded under the other name
            continue
        mode = conv.training
        folded = fuse_conv_bn_eval(conv.eval(), bn.eval()).train(mode)
        module.set_submodule(conv_name, PointwiseConv2d.of(folded) if PointwiseConv2d.fits(folded) else folded)
        act = nn.Sequential(bn.drop, bn.act) if isinstance(bn, BatchNormAct2d | FrozenBatchNormAct2d) else nn.Identity()
        module.set_submodule(bn_name, act.train(mode))
    return module
