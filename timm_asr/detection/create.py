"""Detectors by name."""

import inspect
import os
from collections.abc import Sequence
from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from ..errors import did_you_mean
from .backbone import TimmPyramid, make_body
from .pooling import region_pool

_CLASSES: dict[str, type[nn.Module]] = {'fasterrcnn': FasterRCNN, 'maskrcnn': MaskRCNN, 'retinanet': RetinaNet}


def _parts(name: str, strides: tuple[int, ...], levels: int) -> dict[str, Any]:
    """What depends on the strides: anchors, and the pooling of regions from the first ``levels`` of the maps."""
    ratios = ((0.5, 1.0, 2.0),) * len(strides)
    if name == 'retinanet':
        sizes = tuple(tuple(int(4 * stride * 2 ** (third / 3)) for third in range(3)) for stride in strides)
        return {'anchor_generator': AnchorGenerator(sizes, ratios)}
    # torchvision's own choice, 32 to 512 pixels at the strides 4 to 64, carried over to any strides.
    parts = {'rpn_anchor_generator': AnchorGenerator(tuple((8 * stride,) for stride in strides), ratios),
             'box_roi_pool': region_pool(strides[:levels], 7)}
    return parts | ({'mask_roi_pool': region_pool(strides[:levels], 14)} if name == 'maskrcnn' else {})


def list_detectors() -> list[str]:
    """Names that :func:`create_detector` knows."""
    return list(_CLASSES)


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
    accepting = (cls, GeneralizedRCNNTransform)  # torchvision hands on to it what is left
    known = {key for one in accepting for key in inspect.signature(one).parameters} - {'backbone', 'kwargs'}
    unknown = sorted(set(kwargs) - known)
    if unknown:  # torchvision's constructors accept anything in silence
        raise TypeError(
            f"torchvision's {cls.__name__} has no keyword '{unknown[0]}'{did_you_mean(unknown[0], sorted(known))}.")

    finest, beyond = (8, 2) if name == 'retinanet' else (4, 1)
    body = make_body(backbone, pretrained, checkpoint, asr, frozen_bn, **(backbone_kwargs or {}))
    if strides is None:
        found = sorted(set(body.feature_info.reduction()))
        strides = [stride for stride in found if stride >= finest]
        if not strides:
            raise ValueError(
                f"The features of '{backbone}' have the strides {', '.join(map(str, found))}, and a {name} reads those "
                f'from {finest} on; name the ones to use with strides=(...).')
    extra = LastLevelP6P7(fpn_channels, fpn_channels) if name == 'retinanet' else LastLevelMaxPool()
    pyramid = TimmPyramid(body, strides, fpn_channels, extra)
    every = (*pyramid.strides, *(pyramid.strides[-1] * 2 ** n for n in range(1, beyond + 1)))
    config: dict[str, Any] = getattr(body, 'pretrained_cfg', {})
    norms = {key: list(config[source]) for key, source in (('image_mean', 'mean'), ('image_std', 'std'))
             if len(config.get(source) or ()) == 3}
    return cls(pyramid, num_classes, **{**norms, **_parts(name, every, len(pyramid.strides)), **kwargs})
