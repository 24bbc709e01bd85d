"""Which modules of a network are channel gates, and which weights they give to real images."""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch
from timm.layers import cbam, coord_attn, non_local_attn, selective_kernel, split_attn
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ..gates.sge import SGE
from ..gates.shared import SharedUnit
from ..inference.block import InferenceBranch
from ..inference.gates import InferenceGate
from ..inference.shared import InferenceLSTM
from ..inference.stage import InferenceStage

_POSITIONS = 'it weighs positions too'
_BRANCHES = 'it weighs branches against each other'
#: Attention that no constant per channel can stand for, and why. What is inside such a module is left alone too.
NOT_CHANNEL_GATES: dict[type[nn.Module], str] = {
    **dict.fromkeys((cbam.CbamModule, cbam.LightCbamModule, SGE), _POSITIONS),
    **dict.fromkeys((coord_attn.CoordAttn, coord_attn.SimpleCoordAttn), _POSITIONS),
    **dict.fromkeys((coord_attn.EfficientLocalAttn, coord_attn.StripAttn), _POSITIONS),
    **dict.fromkeys((non_local_attn.NonLocalAttn, non_local_attn.BatNonLocalAttn), _POSITIONS),
    **dict.fromkeys((selective_kernel.SelectiveKernel, split_attn.SplitAttn), _BRANCHES),
    SharedUnit: 'the blocks of a stage share it',
}
_INFERENCE_FORMS = (InferenceBranch, InferenceGate, InferenceLSTM, InferenceStage)
_TIMES = ('mul', '__mul__', '__rmul__', 'multiply')
_PLUS = ('add', '__add__', '__radd__')


def other_attention(model: nn.Module) -> dict[str, str]:
    """Names of the modules with attention that is not a gate per channel, each with the reason."""
    return {
        name: next(reason for kind, reason in NOT_CHANNEL_GATES.items() if isinstance(module, kind))
        for name, module in model.named_modules() if isinstance(module, tuple(NOT_CHANNEL_GATES))}


def check_trainable_form(model: nn.Module) -> None:
    """Refuse a model whose gates are no longer modules of their own.

    Raises:
        ValueError: The model has its inference form.
    """
    for name, module in model.named_modules():
        if isinstance(module, _INFERENCE_FORMS):
            raise ValueError(
                f"'{name}' has its inference form already, a {type(module).__name__}, in which its gate cannot be "
                'replaced; freeze_attention goes before reparameterize().')


def candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Names and modules that may be channel gates: all with parameters, outside of other attention."""
    closed = tuple(f'{name}.' for name in other_attention(model))
    return {
        name: module for name, module in model.named_modules()
        if name and not f'{name}.'.startswith(closed) and next(module.parameters(), None) is not None}


def _per_channel(w: Any, x: torch.Tensor) -> torch.Tensor | None:
    """w as (B, C), if it is one number per image and channel of x, (B, C, H, W); otherwise None."""
    if not isinstance(w, torch.Tensor) or w.ndim != 4 or w.shape[:2] != x.shape[:2]:
        return None
    if any(w.shape[dim] != 1 and w.stride(dim) != 0 for dim in (2, 3)):
        return None
    return w[:, :, 0, 0]


class GateWatch(TorchFunctionMode):
    """While entered, reports each call of a channel gate among some modules.

    A gate is known by what it does, not by its class: its output is its input, (B, C, H, W), times a number per image
    and channel, or plus one, or both. The multiplication that makes the output is seen as it happens, so the weights
    are the gate's own, to the last bit. A factor that is itself a parameter (LayerScale) is no gate.

    Args:
        modules: Names and modules to watch.
        report: Called as ``report(name, scale, shift)``, with (B, C) each or None.
    """

    def __init__(
            self,
            modules: dict[str, nn.Module],
            report: Callable[[str, torch.Tensor | None, torch.Tensor | None], None],
    ) -> None:
        super().__init__()
        self.modules = modules
        self.report = report
        self.handles: list[RemovableHandle] = []
        # Of each running call, innermost last: by identity, tensors that are the input times scale plus shift.
        self.calls: list[dict[int, tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]]] = []
        self.constants = {
            t.untyped_storage()._cdata for m in modules.values() for t in (*m.parameters(), *m.buffers())}

    def __enter__(self) -> 'GateWatch':
        for name, module in self.modules.items():
            self.handles.append(module.register_forward_pre_hook(self._begin))
            self.handles.append(module.register_forward_hook(self._end(name)))
        return super().__enter__()

    def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        for handle in self.handles:
            handle.remove()

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0] if args else None
        self.calls.append({id(x): (x, None, None)} if isinstance(x, torch.Tensor) and x.ndim == 4 else {})

    def _end(self, name: str) -> Callable[..., None]:
        def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            _, scale, shift = self.calls.pop().get(id(output), (None, None, None))
            if scale is not None or shift is not None:
                self.report(name, scale, shift)

        return end

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, '__name__', '')
        if self.calls and self.calls[-1] and len(args) == 2 and name in (*_TIMES, *_PLUS):
            self._follow(name, args, out)
        return out

    def _follow(self, name: str, args: Any, out: torch.Tensor) -> None:
        known = self.calls[-1]
        for x, w in (args, args[::-1]):
            if id(x) not in known:
                continue
            tensor, scale, shift = known[id(x)]
            value = _per_channel(w, tensor)
            if value is None or value.untyped_storage()._cdata in self.constants:
                continue
            if name in _TIMES:
                known[id(out)] = (
                    out, value if scale is None else scale * value, None if shift is None else shift * value)
            elif tensor.shape[2:].numel() > 1:  # on a map of one pixel a residual connection would look like that
                known[id(out)] = (out, scale, value if shift is None else shift + value)
            return


class ChannelStatistics:
    """Mean and deviation over images of values per channel, collected batch by batch in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self._squares = torch.zeros((), dtype=torch.float64)

    def update(self, values: torch.Tensor) -> None:
        """Add a batch (B, C)."""
        values = values.detach().cpu().double()  # some devices have no float64
        count, mean = len(values), values.mean(0)
        delta, total = mean - self.mean, self.count + count
        squares = (values - mean).square().sum(0) + delta.square() * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self._squares = self._squares + squares
        self.count = total

    @property
    def std(self) -> torch.Tensor:
        """Deviation over all images (their own, without Bessel's correction), (C,)."""
        return (self._squares / max(self.count, 1)).sqrt()


class GateStatistics:
    """What one gate did to the images it saw: its factors, its terms (add-type gates), and how often it was called."""

    def __init__(self) -> None:
        self.calls = 0
        self.scale: ChannelStatistics | None = None
        self.shift: ChannelStatistics | None = None

    def update(self, scale: torch.Tensor | None, shift: torch.Tensor | None) -> None:
        """Add a call's factors and terms, (B, C) each or None."""
        self.calls += 1
        if scale is not None:
            self.scale = self.scale or ChannelStatistics()
            self.scale.update(scale)
        if shift is not None:
            self.shift = self.shift or ChannelStatistics()
            self.shift.update(shift)


@torch.no_grad()
def measure_gates(
        model: nn.Module,
        batches: Callable[[], Iterator[Any]],
) -> dict[str, GateStatistics]:
    """Find the channel gates of a model in eval mode and collect their weights over images.

    Args:
        model: The model.
        batches: Gives the images anew at each call.

    Returns:
        Name of each gate -> its statistics, in the order in which they run; gates inside gates are left out. A gate
        that ran more than once an image has more ``calls`` than there are batches.
    """
    watched = candidates(model)
    found: dict[str, GateStatistics] = {}
    first = True
    for images in batches():
        def report(name: str, scale: torch.Tensor | None, shift: torch.Tensor | None) -> None:
            found.setdefault(name, GateStatistics()).update(scale, shift)

        with GateWatch(watched, report):
            model(images)
        if first:
            watched, first = {name: watched[name] for name in found}, False
    return found
