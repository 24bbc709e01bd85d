"""Gates of a trained network, replaced by constants that fold into it."""

from .attention import freeze_attention
from .report import Cost, FreezeReport, GateReport

__all__ = ['Cost', 'FreezeReport', 'GateReport', 'freeze_attention']
