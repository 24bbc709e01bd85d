"""Channel attention for timm: importing this package registers its models with ``timm.create_model``."""

from . import _requirements  # noqa: F401 - first: an older timm would fail further on without saying why
from .freeze import freeze_attention
from .hub import (
    export_onnx,
    export_program,
    list_published,
    load_trainable,
    push_to_hub,
    save_fused,
    verify_weights,
)
from .layers import ChannelGate, fold_asr, get_gate, has_asr, list_gates
from .models import attach_asr, create_model, plain_architecture, reparameterize
from .models.auxiliary import auxiliary_loss
from .version import __version__

__all__ = [
    'ChannelGate',
    '__version__',
    'attach_asr',
    'auxiliary_loss',
    'create_model',
    'export_onnx',
    'export_program',
    'fold_asr',
    'freeze_attention',
    'get_gate',
    'has_asr',
    'list_gates',
    'list_published',
    'load_trainable',
    'plain_architecture',
    'push_to_hub',
    'reparameterize',
    'save_fused',
    'verify_weights',
]
