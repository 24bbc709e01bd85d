"""Which earlier layers a layer's attention depends on: the DIA paper's Algorithm 1 and Figure 7.

A random forest predicts the attention weights h_t of one block of a stage from those of all blocks before it. The Gini
importances of a source block's channels, summed and divided by the largest sum of the row, say how much h_t depends on
that block. Needs the extra ``analysis`` (scikit-learn).
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .stripes import measure_stripes


def collect_attention(
        model: nn.Module, loader: Iterable[Any], samples: int = 1000, progress: bool = True) -> dict[str, torch.Tensor]:
    """Attention weights of every block over the first ``samples`` images of a loader.

    The model has a channel gate in its blocks, or shared units, and is not reparameterized. It is left as it is, and
    runs in eval mode where its parameters are.

    Returns:
        Name of each stage (``layer1`` of ``layer1.0.se``) -> weights (samples, blocks, channels) of its blocks, on the
        CPU in float32. Blocks with another number of channels than the last of their stage are left out, and the name
        says so: ``blocks.5 without its first 1`` (EfficientNet).

    Raises:
        ValueError: No block has weights per channel, several share them, or the loader gives no image.
    """
    report = measure_stripes(model, loader, samples=samples, keep=samples, progress=progress)
    stages: dict[str, list[torch.Tensor]] = {}
    for gate in report.gates:
        if gate.weights.count > report.images:
            raise ValueError(f"'{gate.name}' is called by several blocks; feature integration is about one weight per "
                             'block and channel.')
        stage = re.match(r'(?:(.*)\.)?b?\d+(\.|$)', gate.name)  # what stands before the number of the block
        stages.setdefault(stage[1] or '' if stage else gate.name, []).append(gate.kept[1])
    found = {}
    for stage, blocks in stages.items():
        alike = [block for block in blocks if block.shape == blocks[-1].shape]
        left_out = len(blocks) - len(alike)
        found[f'{stage} without its first {left_out}' if left_out else stage] = torch.stack(alike, dim=1)
    return found


def feature_integration(
        attention: torch.Tensor, trees: int = 100, channels: int | None = None, seed: int = 0, jobs: int | None = None,
) -> torch.Tensor:
    """Importance of every source block for every target block of a stage: Algorithm 1.

    The paper's loop closes a group of channels one early (``cnt == c_z - 1``); here a group is a block's channels.

    Args:
        attention: Weights (samples, blocks, channels).
        trees: Of each random forest; ``jobs`` is scikit-learn's ``n_jobs``.
        channels: Use this many channels, drawn at random by ``seed``, instead of all: time grows with their square.

    Returns:
        (blocks, blocks) in float64; row t, column n < t: importance of block n for block t, 1 for the most important
        one of the row; NaN elsewhere.

    Raises:
        ValueError: Fewer than two samples or blocks.
        ImportError: scikit-learn is missing.
    """
    samples, blocks, width = attention.shape
    if samples < 2 or blocks < 2:
        raise ValueError(f'{samples} samples of {blocks} blocks tell nothing; both must be two at least.')
    try:
        from sklearn.ensemble import RandomForestRegressor
    except ImportError:
        raise ImportError('Feature integration needs scikit-learn: pip install scikit-learn.') from None
    if channels is not None and channels < width:
        draw = torch.randperm(width, generator=torch.Generator().manual_seed(seed))[:channels].sort().values
        attention, width = attention[:, :, draw], channels
    importance = torch.full((blocks, blocks), torch.nan, dtype=torch.float64)
    for target in range(1, blocks):
        x = attention[:, :target].flatten(1).numpy()
        y = attention[:, target].numpy()
        forest = RandomForestRegressor(n_estimators=trees, random_state=seed, n_jobs=jobs)
        forest.fit(x, y[:, 0] if width == 1 else y)
        row = torch.from_numpy(forest.feature_importances_).view(target, width).sum(1)
        importance[target, :target] = row / row.max().clamp_min(1e-30)
    return importance
