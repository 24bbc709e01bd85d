"""Gates and the ASR wrapper; imports torch and timm.layers only."""

from .asr import ASR, ASRVector, fold_asr, has_asr
from .cbam import CBAM
from .eca import ECA
from .gate import ChannelGate
from .gates import GATES, asr_gate, get_gate, list_gates
from .ie import IE
from .scaled import scaled_forward
from .se import SE
from .sge import SGE
from .spa import SPA
from .srm import SRM

__all__ = [
    'ASR',
    'CBAM',
    'ECA',
    'GATES',
    'IE',
    'SE',
    'SGE',
    'SPA',
    'SRM',
    'ASRVector',
    'ChannelGate',
    'asr_gate',
    'fold_asr',
    'get_gate',
    'has_asr',
    'list_gates',
    'scaled_forward',
]
