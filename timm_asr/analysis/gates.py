"""Which modules of a network are channel gates, and what they do to real images: the one measurement of all."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..gates.shared import SharedStage


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

    @property
    def stripe_score(self) -> float:
        """The share of the variance that lies between channels rather than between images, 0 to 1.

        With m_c the mean and s_c the deviation of channel c over images: Var_c(m_c) / (Var_c(m_c) + mean_c(s_c^2)).
        Values that do not depend on the image at all are a stripe, whatever their channels do: 1.
        """
        within = self.std.square().mean()
        if within.sqrt() <= 1e-6 * self.mean.square().mean().sqrt():  # rounding
            return 1.0
        between = self.mean.var(correction=0)
        return (between / (between + within)).item()


@dataclass
class GateStatistics:
    """What one gate did to the images that it saw."""

    name: str  #: as in ``model.named_modules()``
    kind: str  #: its class
    pooled: ChannelStatistics = field(default_factory=ChannelStatistics)  #: the map before it, averaged over positions
    weights: ChannelStatistics = field(default_factory=ChannelStatistics)  #: its factors
    #: Of the first images, pooled feature and weights, (images, C) each, in float32.
    kept: tuple[torch.Tensor, torch.Tensor] = (torch.empty(0), torch.empty(0))

    def update(self, x: torch.Tensor, weights: torch.Tensor, keep: int) -> None:
        """Add a call: the map before the gate (B, C, H, W) and its factors (B, C)."""
        pooled = x.mean((2, 3))
        self.pooled.update(pooled)
        self.weights.update(weights)
        wanted = keep - len(self.kept[0])
        if wanted > 0:
            new = [part[:wanted].float().cpu() for part in (pooled, weights)]
            self.kept = tuple(  # type: ignore[assignment]
                torch.cat([old, part]) if len(old) else part for old, part in zip(self.kept, new, strict=True))


@torch.no_grad()
def measure_gates(
        model: nn.Module, batches: Iterator[Any], names: set[str] | None = None, keep: int = 0,
) -> dict[str, GateStatistics]:
    """Find the channel gates of a model in eval mode and collect their weights over images.

    A gate is known by what it does, not by its class: its output is its input, (B, C, H, W), times a number per image
    and channel. A factor that is itself a parameter (LayerScale) is no gate. Nothing is changed in the model, and
    memory grows only with ``keep``, the images whose values are kept one by one.

    Args:
        model: The model.
        batches: Its inputs.
        names: Modules to watch; all with parameters where None. Then gates that weigh positions afterwards (CBAM) and
            the units that a stage shares (DIA), under the names of the blocks' ``own``, are found too: no gates that a
            constant could stand for, but weights per channel.
        keep: How many images.

    Returns:
        Name of each gate -> its statistics, in the order in which they run; of gates inside each other, the inner one.
        A gate that ran more than once an image has a larger ``count`` than there were images.

    Raises:
        ValueError: A gate's weights are not finite.
    """
    watch = _GateWatch(model, names, keep)
    for images in batches:
        with watch:
            model(images)
    for gate in watch.found.values():
        if not gate.weights.mean.isfinite().all():
            raise ValueError(f"The gate '{gate.name}' gives weights that are not finite.")
    return watch.found


def _per_channel(w: Any, x: torch.Tensor) -> torch.Tensor | None:
    """w as (B, C), if it is one number per image and channel of x, (B, C, H, W); otherwise None."""
    if not isinstance(w, torch.Tensor) or w.ndim != 4 or w.shape[:2] != x.shape[:2]:
        return None
    if any(w.shape[dim] != 1 and w.stride(dim) != 0 for dim in (2, 3)):
        return None
    return w[:, :, 0, 0]


class _GateWatch(TorchFunctionMode):
    """While entered, collects the calls of a model's channel gates; arguments as :func:`measure_gates` has them.

    The multiplication that makes a gate's output is seen as it happens, so the weights are the gate's own, to the last
    bit.
    """

    def __init__(self, model: nn.Module, names: set[str] | None, keep: int) -> None:
        super().__init__()
        self.model, self.whole, self.keep = model, names is None, keep
        self.found: dict[str, GateStatistics] = {}
        self.modules = {
            name: module for name, module in model.named_modules()
            if (name and next(module.parameters(), None) is not None if names is None else name in names)}
        self.own = {
            f'{name}.{n}.own': block.own for name, stage in model.named_modules()
            if names is None and isinstance(stage, SharedStage) for n, block in enumerate(stage)}
        # Of each running call, innermost last: by identity, tensors that are the input times weights, and these.
        self.calls: list[dict[int, tuple[torch.Tensor, torch.Tensor | None]]] = []
        self.owned: tuple[str, Any] = ('', None)
        self.constants = {
            t.untyped_storage()._cdata for m in self.modules.values() for t in (*m.parameters(), *m.buffers())}

    def __enter__(self) -> '_GateWatch':
        self.handles = [module.register_forward_pre_hook(self._begin) for module in self.modules.values()]
        for modules, hook in ((self.modules, self._end), (self.own, self._own)):
            self.handles += [m.register_forward_hook(partial(hook, name)) for name, m in modules.items()]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self.handles:
            handle.remove()

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0] if args else None
        self.calls.append({id(x): (x, None)} if isinstance(x, torch.Tensor) and x.ndim == 4 else {})

    def _end(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        known = self.calls.pop()
        if self.whole and getattr(module, 'positions_after', False):
            output = list(known.values())[-1][0]  # the one product that is followed
        weights = known.get(id(output), (None, None))[1]
        if weights is not None:
            self._report(name, args[0], weights)

    def _own(self, name: str, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        self.owned = (name, output)

    def _report(self, name: str, x: torch.Tensor, weights: torch.Tensor) -> None:
        kind = type(self.model.get_submodule(name)).__name__
        self.found.setdefault(name, GateStatistics(name, kind)).update(x, weights, self.keep)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if len(args) == 2 and getattr(func, '__name__', '') in ('mul', '__mul__', '__rmul__', 'multiply'):
            if args[1] is self.owned[1]:
                value = _per_channel(args[1], args[0])
                if value is not None:
                    self._report(self.owned[0], args[0], value)
            elif self.calls and self.calls[-1]:
                self._follow(args, out)
        return out

    def _follow(self, args: Any, out: torch.Tensor) -> None:
        known = self.calls[-1]
        for x, w in (args, args[::-1]):
            if id(x) in known:
                tensor, weights = known[id(x)]
                value = _per_channel(w, tensor)
                if value is not None and value.untyped_storage()._cdata not in self.constants:
                    known[id(out)] = (out, value if weights is None else weights * value)
                    return
