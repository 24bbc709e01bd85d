"""Which papers a model rests on, and how to cite them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..gates.table import get_gate, list_gates
from ..models.registry import variant_of

#: The papers of methods; a gate has its own paper on its class.
_BIB = Path(__file__).with_name('papers.bib')
_ASR, _DIA = 'huang2024stripe', 'huang2022layerwise'


@lru_cache(maxsize=1)
def bibliography() -> dict[str, str]:
    """The entries of ``papers.bib`` by their keys."""
    return {key_of(entry): entry for entry in split_entries(_BIB.read_text(encoding='utf-8'))}


def split_entries(text: str) -> list[str]:
    """The BibTeX entries in a text."""
    return [entry for entry in re.split(r'\n\n(?=@)', text.strip()) if entry]


def key_of(entry: str) -> str:
    """The key of a BibTeX entry."""
    return entry.partition('{')[2].partition(',')[0]


@dataclass(frozen=True)
class Attention:
    """A model's backbone, gate of its ASR, gate in its blocks, and unit that its stages share; '' for none."""

    backbone: str
    asr: str = ''
    gate: str = ''
    dia: str = ''

    @property
    def papers(self) -> list[str]:
        """BibTeX entries, the method before its gates."""
        entries = [bibliography()[key] for key, part in ((_ASR, self.asr), (_DIA, self.dia)) if part]
        for gate in (self.asr, self.gate, self.dia):
            if gate in list_gates():
                entries += split_entries(get_gate(gate).paper)
        return list(dict.fromkeys(entries))


def attention_of(model: str, asr: Mapping[str, Any] | None = None) -> Attention:
    """What attention a model has, by its registered name before folding, and the options of ASR that was attached."""
    attached, variant = str((asr or {}).get('asr') or ''), variant_of(model)
    if variant is None:
        return Attention(model.partition('.')[0], asr=attached)
    return Attention(variant.backbone.name, attached or variant.asr, variant.gate, variant.dia)
