"""How large the gradient is at the end of each stage: the DIA paper's Figure 9."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.utils import unwrap_model
from torch import nn

from .gates import ChannelStatistics
from .gradcam import stage_names
from .images import Images

#: Decades of the histogram: what is smaller than the first or larger than the last is counted there.
DECADES = (-12.0, 3.0)
_BINS = 150


@dataclass
class StageGradients:
    """Absolute values of the gradient at one stage's output, added up batch by batch."""

    stage: str  #: name of the module
    #: Histogram of log10 |g| over :data:`DECADES`, 150 bins; zeros are in the first.
    counts: torch.Tensor = field(default_factory=lambda: torch.zeros(_BINS, dtype=torch.float64))
    values: ChannelStatistics = field(default_factory=ChannelStatistics)  #: of |g|, as one channel

    def update(self, gradient: torch.Tensor) -> None:
        """Add the gradient of a batch, of any shape."""
        size = gradient.detach().abs().flatten().float().cpu()
        self.counts += torch.histc(size.log10().clamp(*DECADES).double(), _BINS, *DECADES)
        self.values.update(size[:, None])

    @property
    def mean(self) -> float:
        """Mean of |g|."""
        return self.values.mean.item()

    @property
    def std(self) -> float:
        """Deviation of |g|."""
        return self.values.std.item()

    def quantile(self, q: float) -> float:
        """A quantile of |g|, to the width of a bin (a tenth of a decade)."""
        index = int((self.counts.cumsum(0) < q * self.counts.sum()).sum())
        return 10 ** (DECADES[0] + (min(index, _BINS - 1) + 0.5) * (DECADES[1] - DECADES[0]) / _BINS)

    def as_dict(self) -> dict[str, Any]:
        """One row of a table."""
        return {'stage': self.stage, 'mean': self.mean, 'std': self.std,
                **{f'quantile {q}': self.quantile(q) for q in (0.05, 0.5, 0.95)}}


def stage_gradients(
        model: nn.Module, loader: Iterable[Any], *, samples: int | None = None, training: bool = True,
        progress: bool = True) -> list[StageGradients]:
    """The distribution of |d loss / d x| at the output x of each stage, over images and all their positions.

    The loss is the cross entropy, summed over a batch: so the size of a batch does not matter. The paper looks at
    networks without skip connections: ``timm.create_model('resnet56_dia_lstm', no_skip=True)``. The classifier is left
    as it is; with ``training`` it runs with the statistics of each batch, as a step of training does.

    Raises:
        ValueError: There are no labels, or the model does not say where its stages end.
    """
    model = copy.deepcopy(unwrap_model(model)).train(training).requires_grad_(True)
    found = {name: StageGradients(name) for name in stage_names(model)}
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, torch.Tensor):
            raise ValueError(f"'{name}' of this {type(model).__name__} puts out several maps, not one.")
        outputs[name] = output

    for name in found:
        model.get_submodule(name).register_forward_hook(partial(keep, name))
    for images, labels in Images(loader, model, samples, progress).batches('gradients'):
        if labels is None:
            raise ValueError('The loader gives no labels, and the gradient is that of a loss.')
        logits = model(images)
        loss = F.cross_entropy(logits, labels.to(logits.device), reduction='sum')
        for name, gradient in zip(outputs, torch.autograd.grad(loss, list(outputs.values())), strict=True):
            found[name].update(gradient)
    return list(found.values())
