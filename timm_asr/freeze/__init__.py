"""Gates of a trained network, replaced by constants that fold into it."""

from .attention import freeze_attention
from .report import FreezeReport, GateReport

__all__ = ['FreezeReport', 'GateReport', 'freeze_attention']
