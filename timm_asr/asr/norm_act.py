"""ASR on a BatchNorm that applies the activation itself, for TorchScript."""

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from .blocks import register_block
from .wrapper import ASR


class NormActASR(ASR):
    """:class:`ASR` around timm's ``BatchNormAct2d``; only TorchScript sees a difference.

    The scale comes before the activation, so there the norm's steps are taken one by one.
    """

    def scripted(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        bn = self.layer
        if self.training and bn.num_batches_tracked is not None:
            bn.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x, bn.running_mean, bn.running_var, bn.weight * v, bn.bias * v, self.training, bn.momentum, bn.eps)
        return bn.act(bn.drop(x))

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuses what was made of the norm since (a synchronised or a frozen one), and unusual statistics."""
        bn = self.layer
        if type(bn) is BatchNormAct2d and (bn.momentum is None or bn.running_mean is None):
            raise TypeError(
                'ASR on a BatchNormAct2d without running statistics or momentum cannot be scripted; call '
                'timm_asr.fold_asr(model) first, or use torch.compile or torch.export.')
        if type(bn) is not BatchNormAct2d:
            self._refuse_scripting()
        return self


register_block(BatchNormAct2d, scripted=NormActASR)
