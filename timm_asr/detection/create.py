"""Detectors by name."""

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from ..asr.scaled import nearest
from .backbone import TimmPyramid, make_body
from .pooling import region_pool


@dataclass(frozen=True)
class _Kind:
    """One detector: its class, its finest stride, the maps beyond the backbone's, and what depends on the strides."""

    cls: type[nn.Module]
    finest: int
    extra: Callable[[int], ExtraFPNBlock]
    extra_levels: int
    parts: Callable[[tuple[int, ...], int], dict[str, Any]]
    accepts: tuple[type[nn.Module], ...]


def _rcnn_parts(strides: tuple[int, ...], levels: int) -> dict[str, Any]:
    # torchvision's own choice, 32 to 512 pixels at the strides 4 to 64, carried over to any strides.
    return {
        'rpn_anchor_generator': AnchorGenerator(
            tuple((8 * stride,) for stride in strides), ((0.5, 1.0, 2.0),) * len(strides)),
        'box_roi_pool': region_pool(strides[:levels], 7),
    }


def _mask_rcnn_parts(strides: tuple[int, ...], levels: int) -> dict[str, Any]:
    return {**_rcnn_parts(strides, levels), 'mask_roi_pool': region_pool(strides[:levels], 14)}


def _retinanet_parts(strides: tuple[int, ...], levels: int) -> dict[str, Any]:
    sizes = tuple(tuple(int(4 * stride * 2 ** (third / 3)) for third in range(3)) for stride in strides)
    return {'anchor_generator': AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(strides))}


_KINDS: dict[str, _Kind] = {
    'fasterrcnn': _Kind(FasterRCNN, 4, lambda channels: LastLevelMaxPool(), 1, _rcnn_parts, (FasterRCNN,)),
    'maskrcnn': _Kind(MaskRCNN, 4, lambda channels: LastLevelMaxPool(), 1, _mask_rcnn_parts, (MaskRCNN, FasterRCNN)),
    'retinanet': _Kind(
        RetinaNet, 8, lambda channels: LastLevelP6P7(channels, channels), 2, _retinanet_parts, (RetinaNet,)),
}


def list_detectors() -> list[str]:
    """Names that :func:`create_detector` knows."""
    return list(_KINDS)


def create_detector(
        name: str,
        backbone: str,
        num_classes: int = 91,
        *,
        pretrained: bool = False,
        checkpoint: str | os.PathLike = '',
        asr: str | None = None,
        frozen_bn: bool = False,
        strides: Sequence[int] | None = None,
        fpn_channels: int = 256,
        backbone_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
) -> nn.Module:
    """One of torchvision's detectors over a timm network with a feature pyramid.

    It is torchvision's class, with its interface: a list of images (3, H, W) with values from 0 to 1 and, in training,
    a list of targets. ``timm_asr.reparameterize(detector)`` makes it ready to run, ``timm_asr.fold_asr(detector)``
    leaves the state dict of the detector over the plain backbone.

    Args:
        name: 'fasterrcnn', 'maskrcnn' or 'retinanet'.
        backbone: Any network that timm knows by name and that gives features, such as 'resnet50_asr_se'.
        num_classes: Classes, the background (label 0) included.
        pretrained: Load the backbone's pretrained weights.
        checkpoint: Load the backbone's weights from this file, a checkpoint of ``train.py`` (its averaged weights, if
            it has them) or a state dict, without the classifier.
        asr: Gate of ASR for a backbone whose name has none, at the known sites; with weights loaded it starts as the
            function they are, and with those of a checkpoint trained with the same ASR it is what was trained.
        frozen_bn: Keep the backbone's BatchNorms as they are in training, as is usual with trained weights (without,
            the residual branches of a ResNet, whose last norms start at zero, would stay at zero); their attention is
            trained all the same.
        strides: Strides of the backbone's features to use, in any order; by default all it has from 4 on (RetinaNet:
            from 8 on).
        fpn_channels: Channels of the pyramid.
        backbone_kwargs: Further keywords of :func:`timm_asr.create_model`, such as ``asr_depth``.
        kwargs: Of torchvision's class, e.g. ``min_size``, ``box_detections_per_img``, ``size_divisible``. Anchors and
            region pooling follow from the strides (8 pixels of anchor a stride; RetinaNet 4) unless given.

    Returns:
        The detector, in training mode.

    Raises:
        ValueError: The detector is unknown, the backbone has no feature at a stride, or the checkpoint is not one of
            it.
        TypeError: torchvision's class has no such keyword.
        RuntimeError: timm does not know the backbone or has no features of it.
    """
    if name not in _KINDS:
        raise ValueError(f"Unknown detector '{name}'{nearest(name, list(_KINDS))}; there are {', '.join(_KINDS)}.")
    kind = _KINDS[name]
    accepting = (*kind.accepts, GeneralizedRCNNTransform)  # torchvision hands on to it what is left
    known = {key for cls in accepting for key in inspect.signature(cls).parameters} - {'backbone', 'kwargs'}
    unknown = sorted(set(kwargs) - known)
    if unknown:  # torchvision's constructors accept anything in silence
        raise TypeError(
            f"torchvision's {kind.cls.__name__} has no keyword '{unknown[0]}'{nearest(unknown[0], sorted(known))}.")

    body = make_body(backbone, pretrained, checkpoint, asr, frozen_bn, **(backbone_kwargs or {}))
    if strides is None:
        found = sorted(set(body.feature_info.reduction()))
        strides = [stride for stride in found if stride >= kind.finest]
        if not strides:
            raise ValueError(
                f"The features of '{backbone}' have the strides {', '.join(map(str, found))}, and a {name} reads those "
                f'from {kind.finest} on; name the ones to use with strides=(...).')
    pyramid = TimmPyramid(body, strides, fpn_channels, kind.extra(fpn_channels))
    every = (*pyramid.strides, *(pyramid.strides[-1] * 2 ** n for n in range(1, kind.extra_levels + 1)))
    config: dict[str, Any] = getattr(body, 'pretrained_cfg', {})
    norms = {key: list(config[source]) for key, source in (('image_mean', 'mean'), ('image_std', 'std'))
             if len(config.get(source) or ()) == 3}
    return kind.cls(pyramid, num_classes, **{**norms, **kind.parts(every, len(pyramid.strides)), **kwargs})
