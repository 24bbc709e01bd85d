"""Which papers a model rests on, and how to cite them."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from ..gates.table import get_gate, list_gates
from ..models.registry import Backbone, Variant, variant_of

#: A gate's class names its paper by the key here, or brings an entry.
_BIB = Path(__file__).with_name('papers.bib')
_ASR, _DIA = 'huang2024stripe', 'huang2022layerwise'


@lru_cache(maxsize=1)
def bibliography() -> dict[str, str]:
    """The entries of ``papers.bib`` by their keys."""
    return {key_of(entry): entry for entry in split_entries(_BIB.read_text(encoding='utf-8'))}


def split_entries(text: str) -> list[str]:
    """The BibTeX entries in a text."""
    return [entry for entry in text.strip().split('\n\n') if entry]


def key_of(entry: str) -> str:
    """The key of a BibTeX entry."""
    return entry.partition('{')[2].partition(',')[0]


def attention_of(model: str, asr: Mapping[str, Any] | None = None) -> Variant:
    """What a model is, by its registered name before folding, and by the options of ASR that was attached."""
    name = model.partition('.')[0]
    found = variant_of(name) or Variant(Backbone(name, name, nn.Module, {}))
    return replace(found, asr=str((asr or {}).get('asr') or '') or found.asr)


def papers_of(attention: Variant) -> list[str]:
    """BibTeX entries of the papers that a model rests on, the method before its gates."""
    entries = [bibliography()[key] for key, part in ((_ASR, attention.asr), (_DIA, attention.dia)) if part]
    for gate in (attention.asr, attention.gate, attention.dia):
        if gate in list_gates():
            entries += [bibliography().get(paper, paper) for paper in split_entries(get_gate(gate).paper)]
    return list(dict.fromkeys(entries))
