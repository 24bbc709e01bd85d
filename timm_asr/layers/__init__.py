"""Gates and the ASR wrapper; imports torch and timm.layers only."""

from .asr import ASR, ASRVector, fold_asr, has_asr
from .cbam import CBAM
from .dia_lstm import SharedLSTM
from .eca import ECA
from .gate import ChannelGate
from .gates import GATES, asr_gate, get_gate, list_gates
from .ie import IE
from .norm_act import NormActASR
from .recurrent import RAS, Recurrent, RecurrentECA, RecurrentSE, RecurrentSPA, RecurrentSRM
from .scaled import scaled_forward
from .se import SE
from .sge import SGE
from .shared import SharedGate, SharedUnit, shared_gate
from .spa import SPA
from .spe import SPE
from .srm import SRM

__all__ = [
    'ASR',
    'CBAM',
    'ECA',
    'GATES',
    'IE',
    'RAS',
    'SE',
    'SGE',
    'SPA',
    'SPE',
    'SRM',
    'ASRVector',
    'ChannelGate',
    'NormActASR',
    'Recurrent',
    'RecurrentECA',
    'RecurrentSE',
    'RecurrentSPA',
    'RecurrentSRM',
    'SharedGate',
    'SharedLSTM',
    'SharedUnit',
    'asr_gate',
    'fold_asr',
    'get_gate',
    'has_asr',
    'list_gates',
    'scaled_forward',
    'shared_gate',
]
