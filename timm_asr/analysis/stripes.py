"""The stripe observation (ASR paper, Figures 1 and 4): how little a channel's weight depends on the image."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn

from .gates import GateStatistics, measure_gates
from .images import Images
from .tables import text_table


@dataclass
class StripeReport:
    """What :func:`measure_stripes` found in a number of images; ``print`` it."""

    gates: list[GateStatistics]  #: in the order in which they run
    images: int

    @property
    def score(self) -> float:
        """The stripe score of the model: that of its gates on average."""
        return sum(gate.weights.stripe_score for gate in self.gates) / len(self.gates)

    @property
    def score_before(self) -> float:
        """The same of the pooled features that the gates see."""
        return sum(gate.pooled.stripe_score for gate in self.gates) / len(self.gates)

    def rows(self) -> list[dict[str, Any]]:
        """One row a gate; means and deviations are averages over its channels."""
        return [{
            'gate': gate.name, 'kind': gate.kind, 'channels': len(gate.weights.mean),
            'mean': gate.weights.mean.mean().item(), 'std': gate.weights.std.mean().item(),
            'std before': gate.pooled.std.mean().item(), 'score': gate.weights.stripe_score,
            'score before': gate.pooled.stripe_score} for gate in self.gates]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and words, for a JSON file: with mean and deviation of every channel."""
        gates = [{
            **row, 'mean_of_channels': gate.weights.mean.tolist(), 'std_of_channels': gate.weights.std.tolist(),
            'pooled_mean_of_channels': gate.pooled.mean.tolist(), 'pooled_std_of_channels': gate.pooled.std.tolist()}
            for row, gate in zip(self.rows(), self.gates, strict=True)]
        return {'images': self.images, 'score': self.score, 'score_before': self.score_before, 'gates': gates}

    def __str__(self) -> str:
        return (f'{text_table(self.rows())}\n\nStripe score over {self.images:,} images: {self.score:.3f} '
                f'(pooled features before the gates: {self.score_before:.3f}).')


def measure_stripes(
        model: nn.Module, loader: Iterable[Any], *, samples: int | None = None, keep: int = 64, progress: bool = True,
) -> StripeReport:
    """How far the channel weights of a network depend on the image: per gate, per channel, and as one score.

    ::

        report = timm_asr.analysis.measure_stripes(model, loader)
        print(report)              # one row a gate
        report.score               # 1: the weights ignore the image; 0: they differ between images alone

    The score of a gate is the :attr:`~timm_asr.analysis.gates.ChannelStatistics.stripe_score` of its weights.

    Args:
        model: Any network of timm or of this package, a detector, or a wrapper around one, before ``reparameterize``.
            It is left as it is.
        loader: Gives (images, labels) or images, as timm's loaders do.
        samples: Images to use, the first ones that the loader gives; all of them where None.
        keep: Images whose values are kept one by one, for the heat maps. Memory does not grow with the others.

    Raises:
        ValueError: The model weighs no channels, or the images are not finite.
        TypeError: The loader is an iterator, or gives no images.
    """
    model = unwrap_model(model)
    images = Images(loader, model, samples, progress)
    training = {module: module.training for module in model.modules()}
    try:
        found = measure_gates(model.eval(), images.inputs('measuring gates'), keep=keep)
    finally:
        for module, mode in training.items():
            module.training = mode
    if not found:
        raise ValueError(
            f'No module of this {type(model).__name__} weighs channels by what it sees in an image (SE, ECA, CBAM, '
            'DIA, ...), so there are no weights to look at.')
    return StripeReport(list(found.values()), images.seen)


def stripe_differences(models: Iterable[nn.Module], images: Any) -> dict[str, torch.Tensor]:
    """How the weights of a few fixed images change from epoch to epoch: |v(t+1) - v(t)|, the paper's Figure 1c.

    ``models`` is one network at two times of its training or more, in order; an iterator that loads them will do.
    Returns name of each gate -> absolute first differences (times - 1, B, C) for images (B, C, H, W).
    """
    last: dict[str, torch.Tensor] = {}
    steps: dict[str, list[torch.Tensor]] = {}
    for model in models:
        now = {gate.name: gate.kept[1] for gate in measure_stripes(model, [images], keep=len(images)).gates}
        for name in [name for name in now if name in last]:
            steps.setdefault(name, []).append((now[name] - last[name]).abs())
        last = now
    if not steps:
        raise ValueError('A difference takes the same network at two times of its training at least.')
    return {name: torch.stack(parts) for name, parts in steps.items()}
