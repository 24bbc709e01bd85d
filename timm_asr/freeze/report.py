"""What freezing did: each gate, and the predictions before and after."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..inference.compare import Comparison


@dataclass
class GateReport:
    """One gate.

    Attributes:
        name: Of the module, as in ``model.named_modules()`` before it was replaced.
        kind: Its class.
        mean: Mean weight of each channel over the images, (C,), in float64; of an add-type gate, the mean term.
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
            'gate': self.name,
            'kind': self.kind,
            'channels': len(self.mean),
            'mean': self.mean.mean().item(),
            'std': self.mean_std,
            'largest_std': self.std.max().item(),
            'frozen': self.frozen,
            'what': self.what,
        }


@dataclass
class FreezeReport:
    """What :func:`timm_asr.freeze_attention` measured and did; ``print`` it.

    Attributes:
        gates: The channel gates, in the order in which they run.
        left: Names of attention that is no gate per channel, each with the reason why it was left.
        images: Number of images that the gates were measured on.
        parameters: Number of parameters before and after.
        change: Of the logits; None for a model that puts out no logits (B, K).
        recalibrated: Number of BatchNorms whose statistics were estimated anew.
        architecture: Registered name of the network without gates that the model is now; '' if it is none.
    """

    gates: list[GateReport]
    left: dict[str, str]
    images: int
    parameters: tuple[int, int]
    change: Comparison | None
    recalibrated: int = 0
    architecture: str = ''

    @property
    def frozen(self) -> list[GateReport]:
        """The gates that are constants now."""
        return [gate for gate in self.gates if gate.frozen]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and words, for a JSON file."""
        change = self.change
        return {
            'images': self.images,
            'gates': [gate.as_dict() for gate in self.gates],
            'left': self.left,
            'parameters_before': self.parameters[0],
            'parameters_after': self.parameters[1],
            'recalibrated': self.recalibrated,
            'architecture': self.architecture,
            'largest_logit': change and change.largest_logit,
            'logit_change_mean': change and change.mean,
            'logit_change_largest': change and change.largest,
            'same_top1': change and change.same_top1,
            'top1_before': change.top1[0] if change and change.top1 else None,
            'top1_after': change.top1[1] if change and change.top1 else None,
        }

    def plot(self, path: str | Path, title: str = '') -> None:
        """Write the distribution of each gate's deviations and means over channels as an image.

        Args:
            path: Of the image; its ending names the format.
            title: Above the panels.

        Raises:
            ImportError: matplotlib is missing.
        """
        from ..figures.freeze import plot_gates

        plot_gates(self.gates, path, title)

    def __str__(self) -> str:
        return '\n'.join([*self._table(), '', *self._sentences()])

    def _table(self) -> list[str]:
        head = ['gate', 'kind', 'channels', 'mean', 'std', 'largest std', 'now']
        rows = [[*map(_cell, list(gate.as_dict().values())[:6]), gate.what] for gate in self.gates]
        rows += [[name, '', '', '', '', '', f'left: {reason}'] for name, reason in self.left.items()]
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        lines = [
            '  '.join(cell.rjust(w) if 2 <= i <= 5 else cell.ljust(w) for i, (cell, w) in enumerate(
                zip(row, widths, strict=True))).rstrip()
            for row in (head, *rows)]
        return [lines[0], '-' * max(map(len, lines)), *lines[1:]]

    def _sentences(self) -> list[str]:
        before, after = self.parameters
        lines = [
            f'{len(self.frozen)} of {len(self.gates)} gates replaced by their mean weights over {self.images:,} '
            f'images; {before:,} parameters before, {after:,} after.']
        if self.recalibrated:
            lines.append(f'The statistics of {self.recalibrated} BatchNorms were estimated anew on these images.')
        if self.architecture:
            lines.append(f"The model is a '{self.architecture}' now.")
        change = self.change
        if change is None:
            return [*lines, 'The model puts out no logits to compare.']
        lines.append(
            f'Logits moved by {change.mean:.3g} on average and by {change.largest:.3g} at most '
            f'(largest logit {change.largest_logit:.3g}); {change.same_top1:.2f} % of the predictions are the same.')
        if change.top1:
            lines.append('Top-1 {:.2f} % before, {:.2f} % after.'.format(*change.top1))
        return lines


def _cell(value: Any) -> str:
    return f'{value:.4f}' if isinstance(value, float) else str(value)
