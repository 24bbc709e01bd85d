"""Channel attention for timm: importing this package registers its models with ``timm.create_model``."""

from . import _requirements  # noqa: F401 - first: an older timm would fail further on without saying why
from .freeze import freeze_attention
from .hub import save_fused
from .layers import ChannelGate, fold_asr, get_gate, has_asr, list_gates
from .models import attach_asr, plain_architecture, reparameterize
from .models.auxiliary import auxiliary_loss
from .version import __version__

__all__ = [
    'ChannelGate',
    '__version__',
    'attach_asr',
    'auxiliary_loss',
    'fold_asr',
    'freeze_attention',
    'get_gate',
    'has_asr',
    'list_gates',
    'plain_architecture',
    'reparameterize',
    'save_fused',
]
