"""The model card: what a person reads who finds the weights on the Hub. It claims nothing that was not measured.

The text is in ``card.md.j2``; what is in here are the facts that it is filled with. The template escapes every string
from a configuration by ``text`` or ``code``.
"""

import html
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..checkpoints.names import ARGS, ATTENTION, CONFIG, CURVE, KEY, TRAINABLE
from ..checkpoints.open import read_metrics
from ..checkpoints.provenance import as_yaml, public_arguments
from ..checkpoints.read import read_config
from ..gates.table import get_gate, list_gates
from ..models.registry import variant_of

#: By which :func:`timm_asr.list_published` finds what this package published.
TAG = 'timm_asr'
_TEMPLATE = Path(__file__).with_name('card.md.j2')


def plain_text(value: Any) -> str:
    """A value as Markdown that shows it and does nothing else: on one line, nothing in it a link, a tag or a rule."""
    text = html.escape(' '.join(str(value).split())[:200])
    return re.sub(r'([\\`*{}\[\]()+!|~$]|(?<!&)#|(?<!\w)_|_(?!\w))', r'\\\1', text)


def code_text(value: Any) -> str:
    """A value between backticks, without any of its own."""
    return f'`{re.sub(r"[`|<>]", "", " ".join(str(value).split()))[:200]}`'


def model_card(folder: Path, repo_id: str, license: str | None = None, dataset_name: str | None = None) -> str:
    """The ``README.md`` for a folder of weights; arguments are those of :func:`timm_asr.push_to_hub`."""
    config = read_config(folder)
    facts: dict[str, Any] = config[KEY]
    architecture, classes = config['architecture'], config.get('num_classes') or 0
    model = facts.get('model') or architecture
    folded = model != architecture or bool(facts.get('asr') or facts.get('frozen_gates'))
    variant = variant_of(model)
    asr, gate, dia = (getattr(variant, part, '') for part in ('asr', 'gate', 'dia'))
    asr = str((facts.get('asr') or {}).get('asr') or '') or asr
    metrics = read_metrics(folder) or {}
    listed = facts.get('files') or {}
    if 0 < classes <= 5:  # five of five are always right
        metrics = {key: value for key, value in metrics.items() if not key.startswith('top5')}
    trained_on, measured_on = facts.get('dataset'), metrics.get('dataset') or facts.get('dataset')
    same = measured_on == trained_on or not trained_on
    trained = code_text(model) + ' with ASR attached' * bool(facts.get('asr') and model == architecture)
    weights, form = f'{code_text(architecture)}, these weights', 'its inference form (`timm_asr.reparameterize`)'
    rows = [(f'{trained}, as trained', ''), (weights, '_folded')] if folded else [(weights, '')]
    rows += [(form, '_inference')] * ('top1_inference' in metrics)
    figures = [(title, *(_number(metrics.get(key + end), form) for key, form in (
        ('top1', '.2f'), ('top5', '.2f'), ('parameters', ',')))) for title, end in rows]
    speeds = [(title, _number(metrics.get(f'images_per_second_{key}'), ',.0f')) for title, key in (
        (f'{trained if folded else code_text(architecture)}, as trained', 'model'), (weights, 'folded'),
        (form, 'inference'), (f'{code_text(metrics.get("plain"))}, plain', 'plain'))]
    speeds = [row for row in speeds if row[1]]
    arguments = public_arguments(facts.get('arguments') or {})
    filled = ModelCard.from_template(
        _head(repo_id, license, dataset_name or _on_hub(trained_on), classes, facts, metrics,
              (dataset_name if same else None) or _on_hub(measured_on)), str(_TEMPLATE),
        text=plain_text, code=code_text, table=_table, number=_number, title=repo_id.partition('/')[2],
        repo_id=repo_id, facts=facts, cfg=config.get('pretrained_cfg') or {}, metrics=metrics, model=model,
        architecture=architecture, classes=classes, folded=folded, trained=trained, asr=asr.upper(),
        gate=gate.upper(), dia=dia.upper(), papers=papers_of(asr, gate, dia),
        dataset=dataset_name or trained_on, measured_on=(dataset_name if same else None) or measured_on,
        label_names=config.get('label_names'),
        trainable=(folder / TRAINABLE / CONFIG).is_file(),
        results=figures if {'top1', 'top1_folded'} & {key for key, value in metrics.items() if value is not None}
        else None, speeds=speeds if len(speeds) > 1 else None,
        # Of a live model nothing is known of its training.
        trained_here=arguments or facts.get('recipe') is not None or facts.get('epoch') is not None,
        arguments=as_yaml(arguments), args=ARGS if ARGS in listed else None,
        plots=[(title, file) for title, file in (('The attention', ATTENTION), ('Training curve', CURVE))
               if file in listed])
    return re.sub(r'\n{3,}', '\n\n', filled.content).rstrip() + '\n'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown without the columns that have nothing in them; figures are to the right."""
    used = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows)]
    rule = ['---', *['---:'] * (len(head) - 1)]
    return '\n'.join(f'| {" | ".join(row[i] for i in used)} |' for row in (head, rule, *rows))


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ''


def _on_hub(dataset: str | None) -> str | None:
    known, _, name = (dataset or '').partition('/')
    return name if known in ('torch', 'tfds', 'hfds', 'hfids') else None  # a folder's name says nothing elsewhere


def _head(repo_id: str, license: str | None, dataset: str | None, classes: int, facts: Mapping[str, Any],
          metrics: Mapping[str, Any], measured_on: str | None) -> ModelCardData:
    """What the Hub reads: tags, data set, licence, the model it started from, and the accuracy of these weights."""
    results = [
        EvalResult(task_type='image-classification', dataset_type=measured_on,
                   dataset_name=measured_on.rpartition('/')[2],
                   metric_type='accuracy', metric_name=f'{key[:3]}-{key[3]} accuracy',
                   metric_value=round(value / 100, 5), dataset_split=metrics.get('split'))
        for key in ('top1', 'top5') if measured_on
        and isinstance(value := metrics.get(f'{key}_folded', metrics.get(key)), int | float)]
    kind = 'image-classification' if classes else 'image-feature-extraction'
    return ModelCardData(
        library_name='timm', pipeline_tag=kind, license=license, datasets=[dataset] if dataset else None,
        tags=[kind, 'timm', *(['transformers'] if facts.get('files') else []), TAG],
        base_model=facts.get('base_model'), metrics=['accuracy'] if results else None,
        **({'model_name': repo_id.partition('/')[2], 'eval_results': results} if results else {}))


@lru_cache(maxsize=1)
def bibliography() -> dict[str, str]:
    """The entries of ``papers.bib`` by their keys; a gate's class names its paper by one, or brings an entry."""
    entries = split_entries(Path(__file__).with_name('papers.bib').read_text(encoding='utf-8'))
    return {re.findall(r'{(\w+),', entry)[0]: entry for entry in entries}


def split_entries(text: str) -> list[str]:
    """The BibTeX entries in a text."""
    return [entry for entry in text.strip().split('\n\n') if entry]


def papers_of(asr: str, gate: str, dia: str) -> list[str]:
    """BibTeX entries, the method before its gates: of ASR's gate, that in the blocks and the unit of a stage, or ''."""
    keys = ['huang2024stripe'] * bool(asr) + ['huang2022layerwise'] * bool(dia)
    for name in [name for name in (asr, gate, dia) if name in list_gates()]:
        keys += split_entries(get_gate(name).paper)
    return list(dict.fromkeys(bibliography().get(key, key) for key in keys))
