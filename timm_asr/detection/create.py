"""Detectors by name, with regions pooled from levels of any strides."""

import inspect
import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, box_area
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from ..errors import did_you_mean
from .backbone import TimmPyramid, make_body

_CLASSES: dict[str, type[nn.Module]] = {'fasterrcnn': FasterRCNN, 'maskrcnn': MaskRCNN, 'retinanet': RetinaNet}


def _nearest_level(strides: Sequence[int], boxes: list[torch.Tensor]) -> torch.Tensor:
    """Index of the level that each box is pooled from: the one nearest to that of the FPN paper's equation 1.

    torchvision's own counts levels as if strides always doubled: a box that falls between two is pooled to zeros.
    """
    side = torch.cat([box_area(b) for b in boxes]).sqrt()
    wanted = torch.floor(4 + torch.log2(side / 224) + 1e-6)
    levels = [math.floor(math.log2(stride) + 0.5) for stride in strides]
    return (wanted[:, None] - torch.tensor(levels, dtype=side.dtype, device=side.device)).abs().argmin(1)


def region_pool(strides: Sequence[int], output_size: int) -> MultiScaleRoIAlign:
    """torchvision's pooling of regions from the maps '0', '1', ... at these strides, ascending.

    Its scales are set here, since torchvision rounds those that it infers to powers of two.
    """
    pool = MultiScaleRoIAlign([str(level) for level in range(len(strides))], output_size, sampling_ratio=2)
    pool.scales, pool.map_levels = [1 / stride for stride in strides], partial(_nearest_level, tuple(strides))
    return pool


def create_detector(name: str, backbone: str, num_classes: int = 91, *, pretrained: bool = False,
                    checkpoint: str | os.PathLike = '', asr: str | None = None, frozen_bn: bool = False,
                    strides: Sequence[int] | None = None, fpn_channels: int = 256,
                    backbone_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> nn.Module:
    """One of torchvision's detectors over a timm network with a feature pyramid, in training mode.

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
            the residual branches of a ResNet would stay at zero); their attention is trained all the same.
        strides: Strides of the backbone's features to use, in any order; by default all from 4 on (RetinaNet: 8).
        fpn_channels: Channels of the pyramid.
        backbone_kwargs: Further keywords of :func:`timm_asr.create_model`, such as ``asr_depth``.
        kwargs: Of torchvision's class, e.g. ``min_size``, ``box_detections_per_img``, ``size_divisible``. Anchors and
            region pooling follow from the strides (8 pixels of anchor a stride; RetinaNet 4) unless given.

    Raises:
        ValueError: The detector is unknown, the backbone has no feature at a stride, or the checkpoint is another's.
        TypeError: torchvision's class has no such keyword.
        RuntimeError: timm does not know the backbone or has no features of it.
    """
    if name not in _CLASSES:
        hint = did_you_mean(name, list(_CLASSES))
        raise ValueError(f"Unknown detector '{name}'{hint}; there are {', '.join(_CLASSES)}.")
    cls = _CLASSES[name]
    known = {key for one in (cls, GeneralizedRCNNTransform) for key in inspect.signature(one).parameters}
    for key in kwargs.keys() - (known - {'backbone', 'kwargs'}):  # torchvision accepts anything
        raise TypeError(f"torchvision's {cls.__name__} has no keyword '{key}'{did_you_mean(key, sorted(known))}.")
    body = make_body(backbone, pretrained, checkpoint, asr, frozen_bn, **(backbone_kwargs or {}))
    retina = name == 'retinanet'
    if strides is None:
        strides = [stride for stride in body.feature_info.reduction() if stride >= (8 if retina else 4)]
    extra = LastLevelP6P7(fpn_channels, fpn_channels) if retina else LastLevelMaxPool()
    pyramid = TimmPyramid(body, strides, fpn_channels, extra)
    levels = (*pyramid.strides, *(pyramid.strides[-1] * 2 ** n for n in range(1, 3 if retina else 2)))
    ratios = ((0.5, 1.0, 2.0),) * len(levels)
    config: dict[str, Any] = getattr(body, 'pretrained_cfg', {})
    parts: dict[str, Any] = {
        f'image_{key}': list(config[key]) for key in ('mean', 'std') if len(config.get(key) or ()) == 3}
    if retina:
        sizes = tuple(tuple(int(4 * stride * 2 ** (third / 3)) for third in range(3)) for stride in levels)
        parts['anchor_generator'] = AnchorGenerator(sizes, ratios)
    else:  # torchvision's own choice, 32 to 512 pixels at the strides 4 to 64, carried over to any strides
        parts['rpn_anchor_generator'] = AnchorGenerator(tuple((8 * stride,) for stride in levels), ratios)
        parts['box_roi_pool'] = region_pool(pyramid.strides, 7)
    if name == 'maskrcnn':
        parts['mask_roi_pool'] = region_pool(pyramid.strides, 14)
    return cls(pyramid, num_classes, **{**parts, **kwargs})
