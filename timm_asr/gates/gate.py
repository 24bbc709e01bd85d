"""What every channel attention module has in common: pool, excite, scale; and what a gate says of itself."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .forms import OWN_MATRIX, Excite, GateForm, PointwiseConv2d, swallows
from .fused import average_of, average_pool, weigh
from .shared import SharedGate, SharedUnit


def check_unused(gate: str, unused: dict[str, Any]) -> None:
    """Accept what timm's blocks pass to any ``attn_layer``, though it means nothing to a gate without hidden layer.

    Raises:
        TypeError: Another keyword is among them.
    """
    unknown = set(unused) - {'rd_ratio', 'rd_channels', 'rd_divisor', 'act_layer'}
    if unknown:
        raise TypeError(f"{gate} has no argument '{min(unknown)}'.")


#: Methods that compute a gate's weights, and what says how these are computed at inference.
_WEIGHTS = {'pool', 'hidden', 'second', 'logits', 'squash', 'excite'}
_FORMS = {'affine', 'inference_form', 'pooled_form', 'layer_pairs'}


class ChannelGate(nn.Module):
    """Channel attention in three parts, so that each can be used without the others.

    ========  ==========================  =====================================
    part      shapes                      meaning
    ========  ==========================  =====================================
    pool      (B, C, H, W) -> (B, D)      feature map to descriptor u
    excite    (B, D) -> (B, C)            the gate proper: v = sigmoid(F(u))
    scale     (B, C, H, W), (B, C)        apply: x' = x * v
    ========  ==========================  =====================================

    ``forward`` chains them, x' = x * v with v = sigmoid(F(pool(x))) (ASR paper, Eq. 3 and 4). ASR needs ``excite``
    alone, fed with a learned vector.

    A subclass needs ``logits``, and says by the attributes below what is special about it; ``docs/add_a_gate.md``
    shows how. It serves as timm's ``attn_layer``, since every gate takes these arguments beside its own:

    - ``channels``: channels C of the feature map;
    - ``device``, ``dtype``: where the parameters are, and their type;
    - ``rd_ratio``, ``rd_channels``, ``rd_divisor``, ``act_layer``: width and activation of a hidden layer; gates
      without one take and ignore them.
    """

    #: Keyword of ``timm.create_model`` -> argument of the constructor.
    options: dict[str, str] = {}
    #: Arguments that are fixed where ASR feeds the gate with a constant.
    under_asr: dict[str, Any] = {}
    #: The gate's paper, for model cards: BibTeX, or the key of an entry of ``export/papers.bib``.
    paper = ''
    #: The weights depend on the descriptor alone, so a constant descriptor can be folded into a layer.
    foldable = True
    #: Why not, where ``foldable`` is False.
    unfoldable = "it weighs positions too, which no layer's parameters can express"
    #: The weights are one number per image and channel; False where positions are weighed too.
    per_channel = True
    #: Channels are weighed first and positions afterwards, in one module (of a unit too).
    positions_after = False
    #: The blocks of a stage can share the gate (DIA).
    shareable = True
    #: The gate has a BatchNorm that stays each block's own where the rest is shared.
    norm_stays = False
    #: Values of the descriptor that one pixel of C channels stands for, per channel.
    psi_ratio = 1
    #: Cells of each grid whose averages make the descriptor, grid by grid; (1,) is global average pooling.
    grids: Sequence[int] = (1,)
    #: The logits are an affine function of the descriptor, and the weights their sigmoid.
    affine = False
    #: An ONNX file has the inference form, which runs faster there than the gate as trained, or runs right. A form that
    #: pools the input of the branch's last convolution is not faster: it costs a change of layout in ONNX Runtime.
    form_in_onnx = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A class that computes other weights does not inherit what says how its base's are computed at inference.
        if vars(cls).keys() & _WEIGHTS and not vars(cls).keys() & _FORMS:
            cls.inference_form, cls.pooled_form = ChannelGate.inference_form, ChannelGate.pooled_form  # type: ignore[method-assign]
            cls.affine = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: ``scale`` is the product, whose gradients and inference form are known.
        self.multiplies = type(self).scale is ChannelGate.scale
        #: ``pool`` is global average pooling, or averages over ``grids``, and so commutes with a layer of one pixel.
        self.averages = type(self).pool is ChannelGate.pool

    def pool(self, x: Tensor) -> Tensor:
        """Global average pooling, (B, C, H, W) -> (B, C): Eq. 3."""
        return average_pool(x).flatten(1)

    def logits(self, u: Tensor) -> Tensor:
        """F(u), what ``squash`` makes weights of: descriptor (B, D) -> (B, C)."""
        raise NotImplementedError

    def squash(self, z: Tensor) -> Tensor:
        """Logits to channel weights, by default between 0 and 1: the sigmoid."""
        return z.sigmoid()

    def excite(self, u: Tensor) -> Tensor:
        """Descriptor (B, D) to channel weights (B, C)."""
        return self.squash(self.logits(u))

    def scale(self, x: Tensor, v: Tensor) -> Tensor:
        """Multiply the feature map (B, C, H, W) by its channel weights (B, C): Eq. 4."""
        return weigh(x, v[..., None, None])

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The feature map as ``scale``, and nothing else, may take it, and its descriptor, ``pool(x)``."""
        if self.averages and self.multiplies:
            return average_of(x)
        return x, self.pool(x)

    def forward(self, x: Tensor) -> Tensor:
        x, u = self.read(x)
        return self.scale(x, self.excite(u))

    def describe(self, psi: Tensor) -> Tensor:
        """The descriptor (1, D) of a feature map of one pixel whose values are psi, a vector (psi_ratio * C,)."""
        return psi.unsqueeze(0)

    def hidden(self, u: Tensor) -> Tensor | None:
        """Pre-activations (B, R) of a hidden ReLU, None where there is none."""
        return None

    def flip_hidden(self, rows: Tensor) -> None:
        """Change the sign of the rows (boolean, (R,)) of the layer before the hidden ReLU."""

    @torch.jit.ignore
    def reset_layers(self) -> None:
        """Initialise the layers inside by their own rule, whatever the network around the gate has done to them."""
        for module in self.modules():
            if module is not self and hasattr(module, 'reset_parameters'):
                module.reset_parameters()

    @torch.jit.ignore
    def inference_form(self, conv: nn.Module | None = None) -> GateForm | None:
        """How the gate runs at inference, None where it stays as it is. Call it in eval mode, without gradients.

        Args:
            conv: The convolution before the gate, norm folded, where there is one. A
                :class:`~timm_asr.gates.forms.PointwiseConv2d` can be read through.
        """
        if not (self.per_channel and self.averages and tuple(self.grids) == (1,)):
            return None
        through = conv if isinstance(conv, PointwiseConv2d) else None
        if self.affine and through is not None and through.weight.numel() <= OWN_MATRIX:
            return GateForm('input', None, swallows(self, through))
        return GateForm('output' if through is None else 'projected', None, self.pooled_form())

    @torch.jit.ignore
    def pooled_form(self) -> nn.Module:
        """What ``excite`` becomes at inference where nothing before it is swallowed, (B, D) -> (B, C)."""
        return Excite(self)

    @torch.jit.ignore
    def as_unit(self, shared_norm: bool = False) -> SharedUnit:
        """The gate as the unit of a stage (DIA).

        Args:
            shared_norm: Share also the BatchNorm that otherwise ``norm_stays`` each block's own.
        """
        return SharedGate(self)
