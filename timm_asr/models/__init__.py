"""Backbones and their entrypoints; importing this registers them with timm."""

from .asr_acnet import ASRACResNet
from .asr_cifar import ASRCifarResNet
from .asr_mobilenet import ASRCifarMobileNet, ASRMobileNet
from .asr_repvgg import ASRCifarRepVGG, ASRRepVGG
from .asr_resnet import ASRResNet
from .asr_shufflenet import ASRShuffleNetV2
from .asr_vgg import ASRCifarVGG
from .asr_vit import ASRVisionTransformer
from .create import create_model
from .registry import plain_architecture

__all__ = [
    'ASRACResNet', 'ASRCifarMobileNet', 'ASRCifarRepVGG', 'ASRCifarResNet', 'ASRCifarVGG', 'ASRMobileNet', 'ASRRepVGG',
    'ASRResNet', 'ASRShuffleNetV2', 'ASRVisionTransformer', 'create_model', 'plain_architecture']
