"""What freezing did: each gate, and the predictions before and after."""

from dataclasses import dataclass
from typing import Any

import torch

from ..analysis.tables import text_table
from ..inference.compare import Comparison


@dataclass
class GateReport:
    """One gate.

    Attributes:
        name: Of the module, as in ``model.named_modules()`` before it was replaced.
        kind: Its class.
        mean: Mean weight of each channel over the images, (C,), in float64.
        std: Standard deviation of each channel's weight over the images, (C,); the paper's Figure 1b.
        frozen: Whether a constant stands for the gate now.
        what: What became of it, or why it was left.
    """

    name: str
    kind: str
    mean: torch.Tensor
    std: torch.Tensor
    frozen: bool
    what: str

    @property
    def mean_std(self) -> float:
        """The deviation, averaged over channels: how far the gate is from constant."""
        return self.std.mean().item()

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and words, one row of a table."""
        return {
            'gate': self.name, 'kind': self.kind, 'channels': len(self.mean), 'mean': self.mean.mean().item(),
            'std': self.mean_std, 'largest_std': self.std.max().item(), 'frozen': self.frozen, 'what': self.what}


def _figures(change: Comparison) -> dict[str, Any]:
    """Plain numbers of a comparison."""
    before, after = change.top1 or (None, None)
    return {
        'largest_logit': change.largest_logit, 'logit_change_mean': change.mean, 'logit_change_largest': change.largest,
        'same_top1': change.same_top1, 'top1_before': before, 'top1_after': after}


@dataclass
class Cost:
    """What one threshold would freeze, and what that would change."""

    threshold: float
    frozen: int
    change: Comparison


@dataclass
class FreezeReport:
    """What :func:`timm_asr.freeze_attention` measured and did; ``print`` it.

    Attributes:
        gates: The channel gates, in the order in which they run.
        left: Names of attention that is no gate per channel, each with the reason why it was left.
        images: Number of images that the gates were measured on.
        parameters: Number of parameters before and after.
        changes: Of the logits: by freezing alone (``frozen``), and with ``recalibrate_bn`` also by new BatchNorm
            statistics alone and by both. Empty for a model that puts out no logits (B, K).
        costs: What other thresholds would cost, smallest first.
        same_images: Whether the logits were compared on the images that the gates were measured on.
        recalibrated: Number of BatchNorms whose statistics were estimated anew.
        architecture: Registered name of the network without gates that the model is now; '' if it is none.
    """

    gates: list[GateReport]
    left: dict[str, str]
    images: int
    parameters: tuple[int, int]
    changes: dict[str, Comparison]
    costs: list[Cost]
    same_images: bool
    recalibrated: int
    architecture: str

    @property
    def frozen(self) -> list[GateReport]:
        """The gates that are constants now."""
        return [gate for gate in self.gates if gate.frozen]

    @property
    def change(self) -> Comparison | None:
        """From the model as it was to the model as it is now; None for a model without logits (B, K)."""
        return list(self.changes.values())[-1] if self.changes else None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and words, for a JSON file."""
        return {
            **{key: getattr(self, key) for key in ('images', 'same_images', 'left', 'recalibrated', 'architecture')},
            'compared_images': self.change and self.change.images,
            'gates': [gate.as_dict() for gate in self.gates],
            'parameters_before': self.parameters[0], 'parameters_after': self.parameters[1],
            **_figures(self.change or Comparison()),
            'changes': {key: _figures(change) for key, change in self.changes.items()},
            'thresholds': [{'threshold': cost.threshold, 'frozen': cost.frozen, **_figures(cost.change)}
                           for cost in self.costs]}

    def __str__(self) -> str:
        rows = [gate.as_dict() for gate in self.gates]
        rows += [{**dict.fromkeys(rows[0]), 'gate': name, 'kind': '', 'what': f'left: {reason}'}
                 for name, reason in self.left.items()]
        names = {'largest_std': 'largest std', 'what': 'now'}
        before, after = self.parameters
        lines = [
            text_table([{names.get(k, k): v for k, v in row.items() if k != 'frozen'} for row in rows]), '',
            f'{len(self.frozen)} of {len(self.gates)} gates replaced by their mean weights over {self.images:,} '
            f'images; {before:,} parameters before, {after:,} after.']
        if self.recalibrated:
            lines.append(f'The statistics of {self.recalibrated} BatchNorms were estimated anew on these images.')
        if self.architecture:
            lines.append(f"The model is a '{self.architecture}' now.")
        if self.change is None:
            return '\n'.join([*lines, 'The model puts out no logits to compare.'])
        lines += [
            f'Compared on {self.change.images:,} images, {"the same" if self.same_images else "other ones"} '
            f'(largest logit {self.change.largest_logit:.3g}):', '',
            text_table([self._row(key, len(self.frozen) if 'frozen' in key else 0, change)
                        for key, change in self.changes.items()])]
        if self.costs:
            rows = [self._row(f'threshold {cost.threshold:g}', cost.frozen, cost.change) for cost in self.costs]
            lines += ['', 'What thresholds would cost on these images:', '', text_table(rows)]
        return '\n'.join(lines)

    def _row(self, what: str, frozen: int, change: Comparison) -> dict[str, Any]:
        before, after = (f'{top1:.2f} %' for top1 in change.top1) if change.top1 else (None, None)
        return {
            'what': what, 'frozen': f'{frozen} of {len(self.gates)}', 'top-1 before': before, 'top-1 after': after,
            'same top-1': f'{change.same_top1:.2f} %', 'logits moved': f'{change.mean:.3g}',
            'at most': f'{change.largest:.3g}'}
