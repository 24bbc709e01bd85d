"""Backbones and their entrypoints; importing this registers them with timm."""

from . import (  # noqa: F401
    asr_acnet,
    asr_cifar,
    asr_mobilenet,
    asr_repvgg,
    asr_resnet,
    asr_shufflenet,
    asr_vgg,
    asr_vit,
)
