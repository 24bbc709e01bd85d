"""Channel attention for timm: importing this package registers its models with ``timm.create_model``."""

from . import _requirements  # noqa: F401 - first: an older timm would fail further on without saying why
from .asr.attach import attach_asr
from .asr.fold import fold_asr, has_asr
from .export.graph import export_onnx, export_program
from .export.int8 import quantize_onnx
from .export.push import push_to_hub
from .export.remote import list_published, load_trainable
from .export.save import save_fused
from .freeze import freeze_attention
from .gates.gate import ChannelGate
from .gates.table import get_gate, list_gates
from .inference.reparameterize import reparameterize
from .models.auxiliary import auxiliary_loss
from .models.create import create_model
from .models.registry import plain_architecture
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
    'quantize_onnx',
    'reparameterize',
    'save_fused',
]
