"""timm's interface for networks that are a chain of named parts: head, features, pruning."""

from typing import Any

import torch
from timm.layers import create_classifier
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from timm.models.resnet import ResNet
from torch import nn


class StagedNet(nn.Module):
    """A network that is its parts in ``CHAIN`` one after another, then a pooling ``global_pool`` and a linear ``fc``.

    ``(B, in_chans, H, W)`` to ``(B, num_classes)``. Subclasses build the parts, name those that end in a feature in
    ``feature_info``, call :meth:`make_head`, and write ``forward_features``, since TorchScript knows no attributes by
    name.

    Args:
        num_classes: Classes, 0 for none.
        in_chans: Channels of the images.
        global_pool: Pooling before the classifier, '' for none.
        drop_rate: Dropout before the classifier.
    """

    #: Names of the parts in order.
    CHAIN: tuple[str, ...]
    #: Patterns of the stem's parameters, and of the beginning of a stage's, before its number.
    STEM, STAGE = r'^conv1|bn1', 'layer'
    #: Names of the final norm and activation, where the features of the last part come without them.
    TAIL: tuple[str, ...] = ()

    def __init__(
            self, num_classes: int = 10, in_chans: int = 3, global_pool: str = 'avg', drop_rate: float = 0.0) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.pool_type, self.drop_rate = num_classes, in_chans, global_pool, drop_rate
        self.grad_checkpointing = False
        self.feature_info: list[dict[str, Any]] = []

    def make_head(self, num_features: int, **dd: Any) -> None:
        """Build the head on so many channels."""
        self.num_features = num_features
        self.global_pool, self.fc = create_classifier(num_features, self.num_classes, pool_type=self.pool_type, **dd)
        self.head_hidden_size = num_features * self.global_pool.feat_mult()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters by stage (coarse) or block, for layer-wise learning rates."""
        stage = rf'^{self.STAGE}(\d+)'
        return {'stem': self.STEM, 'blocks': stage if coarse else rf'{stage}\.(\d+)'}

    # Head and checkpointing are those of timm's ResNet.
    forward, forward_head, reset_classifier = ResNet.forward, ResNet.forward_head, ResNet.reset_classifier
    get_classifier, set_grad_checkpointing = ResNet.get_classifier, ResNet.set_grad_checkpointing

    def forward_intermediates(
            self, x: torch.Tensor, indices: int | list[int] | None = None, norm: bool = False, stop_early: bool = False,
            output_fmt: str = 'NCHW', intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The last feature map and those after the parts that ``feature_info`` names, or the list of the latter alone.

        Arguments as in timm: the last n if ``indices`` is an int, these if a list, all if None; ``norm`` applies the
        final norm and activation, where there are any. Raises a ``ValueError`` for another format than 'NCHW'.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt={output_fmt!r} is not supported; the features are 'NCHW'.")
        taps = [info['module'] for info in self.feature_info]
        wanted, last = feature_take_indices(len(taps), indices)
        intermediates = []
        for name in self.CHAIN:
            part = self.get_submodule(name)
            checkpointed = (self.grad_checkpointing and name.startswith(('layer', 'stage'))
                            and isinstance(part, nn.Sequential))
            x = feature = checkpoint_seq(part, x) if checkpointed else part(x)
            for end in self.TAIL if name == self.CHAIN[-1] else ():
                x = self.get_submodule(end)(x)
            if name in taps and taps.index(name) in wanted:
                intermediates.append(x if norm else feature)
            if stop_early and name == taps[last]:
                break
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
            self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True) -> list[int]:
        """Remove the parts after the last of the given intermediates, and the classifier; returns their indices."""
        wanted, last = feature_take_indices(len(self.feature_info), indices)
        final = self.feature_info[last]
        pruned = self.CHAIN[self.CHAIN.index(final['module']) + 1:]
        for name in pruned:
            self.set_submodule(name, nn.Sequential())
        for name in self.TAIL if prune_norm or pruned else ():
            self.set_submodule(name, nn.Identity())
        if pruned:
            self.num_features = self.head_hidden_size = final['num_chs']
        if prune_head or pruned:
            self.reset_classifier(0, '')  # type: ignore[misc]
        return wanted
