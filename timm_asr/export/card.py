"""The model card: what a person reads who finds the weights on the Hub. It claims nothing that was not measured.

The text is in ``card.md.j2``; what is in here are the facts that it is filled with. The template escapes every string
from a configuration by ``text`` or ``code``.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..checkpoints.names import ARGS, ATTENTION, CONFIG, CURVE, KEY, METRICS, TRAINABLE
from ..checkpoints.open import read_metrics
from ..checkpoints.provenance import as_yaml, public_arguments
from ..checkpoints.read import is_regular, read_config
from ..errors import BadInput
from .citations import attention_of, papers_of

#: By which :func:`timm_asr.list_published` finds what this package published.
TAG = 'timm_asr'
_TEMPLATE = Path(__file__).with_name('card.md.j2')


def plain_text(value: Any) -> str:
    """A value as Markdown that shows it and does nothing else: on one line, nothing in it a link, a tag or a rule."""
    text = ' '.join(str(value).split())[:200]
    for letter in '&<>"\'':
        text = text.replace(letter, f'&#{ord(letter)};' if letter != '&' else '&amp;')
    return re.sub(r'([\\`*{}\[\]()+!|~$]|(?<!&)#|(?<!\w)_|_(?!\w))', r'\\\1', text)


def code_text(value: Any) -> str:
    """A value between backticks, without any of its own."""
    return f'`{re.sub(r"[`|<>]", "", " ".join(str(value).split()))[:200]}`'


def model_card(folder: Path, repo_id: str, license: str | None = None, dataset_name: str | None = None,
               plain: Path | None = None) -> str:
    """The ``README.md`` for a folder of weights; arguments are those of :func:`timm_asr.push_to_hub`.

    ``BadInput``: the run in the folder ``plain`` was not measured on the same images, or is not the plain backbone's.
    """
    config = read_config(folder)
    facts: dict[str, Any] = config.get(KEY) or {}
    architecture, classes = config['architecture'], config.get('num_classes') or 0
    model = facts.get('model') or architecture
    folded = model != architecture or bool(facts.get('asr'))
    attention = attention_of(model, facts.get('asr'))
    metrics = read_metrics(folder) or _flat(facts.get('metrics') or {})
    dataset = dataset_name or metrics.get('dataset') or facts.get('dataset')
    beside = _plain(folder, metrics, plain, (metrics.get('plain') or architecture, attention.backbone.name))
    trained = code_text(model) + ' with ASR attached' * (model == architecture)
    weights, form = f'{code_text(architecture)}, these weights', 'its inference form (`timm_asr.reparameterize`)'
    rows = [(f'{trained}, as trained', ''), (weights, '_folded')] if folded else [(weights, '')]
    rows += [(form, '_inference')] * ('top1_inference' in metrics)
    figures = [_figures(title, metrics, end) for title, end in rows]
    if beside:
        without = 'ASR' if beside.get('model') == metrics.get('plain') and attention.asr else 'attention'
        figures.append(_figures(f'{code_text(beside.get("model"))}, trained without {without}', beside))
    speeds = [(title, _number(metrics.get(f'images_per_second_{key}'), ',.0f')) for title, key in (
        (f'{trained if folded else code_text(architecture)}, as trained', 'model'), (weights, 'folded'),
        (form, 'inference'), (f'{code_text(metrics.get("plain"))}, plain', 'plain'))]
    speeds = [row for row in speeds if row[1]]
    arguments = public_arguments(facts.get('arguments') or {})
    filled = ModelCard.from_template(
        _head(repo_id, license, dataset_name or _public_dataset(dataset), classes, facts, metrics), str(_TEMPLATE),
        text=plain_text, code=code_text, table=_table, number=_number, title=repo_id.partition('/')[2],
        repo_id=repo_id, facts=facts, cfg=config.get('pretrained_cfg') or {}, metrics=metrics, model=model,
        architecture=architecture, classes=classes, folded=folded, trained=trained, attention=attention,
        papers=papers_of(attention), dataset=dataset, beside=beside, label_names=config.get('label_names'),
        trainable=(folder / TRAINABLE / CONFIG).is_file(),
        results=figures if {'top1', 'top1_folded'} & {key for key, value in metrics.items() if value is not None}
        else None, speeds=speeds if len(speeds) > 1 else None,
        # Of a live model nothing is known of its training.
        trained_here=arguments or facts.get('recipe') is not None or facts.get('epoch') is not None,
        arguments=as_yaml(arguments), args=ARGS if is_regular(folder / ARGS) else None,
        plots=[(title, file) for title, file in (('The attention', ATTENTION), ('Training curve', CURVE))
               if is_regular(folder / file)])
    return re.sub(r'\n{3,}', '\n\n', filled.content).rstrip() + '\n'


def _flat(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What ``metrics.json`` would hold, from the summary of it in ``config.json``."""
    after = {f'{key}_folded': value for key, value in (summary.get('after') or {}).items()}
    rest = {key: summary[key] for key in ('images', 'logit_difference_relative') if key in summary}
    return {**(summary.get('before') or {}), **after, **rest}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str = '---:') -> str:
    """A table in Markdown without the columns that have nothing in them; figures are to the right."""
    used = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows)]
    rule = ['---', *[align] * (len(head) - 1)]
    return '\n'.join(f'| {" | ".join(row[i] for i in used)} |' for row in (head, rule, *rows))


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ''


def _figures(title: str, metrics: Mapping[str, Any], end: str = '') -> tuple[str, ...]:
    return title, *(_number(metrics.get(key + end), form) for key, form in (
        ('top1', '.2f'), ('top5', '.2f'), ('parameters', ',')))


def _public_dataset(name: str | None) -> str | None:
    """The name that a data set has everywhere; None where it is that of a folder."""
    kind, _, rest = (name or '').partition('/')
    return rest if kind in ('torch', 'tfds', 'hfds', 'hfids') else None


def _head(repo_id: str, license: str | None, dataset: str | None, classes: int, facts: Mapping[str, Any],
          metrics: Mapping[str, Any]) -> ModelCardData:
    """What the Hub reads: tags, data set, licence, the model it started from, and the accuracy of these weights."""
    results = [
        EvalResult(task_type='image-classification', dataset_type=dataset, dataset_name=dataset.rpartition('/')[2],
                   metric_type='accuracy', metric_name=f'{key[:3]}-{key[3]} accuracy',
                   metric_value=round(value / 100, 5), dataset_split=metrics.get('split'))
        for key in ('top1', 'top5') if dataset
        and isinstance(value := metrics.get(f'{key}_folded', metrics.get(key)), int | float)]
    kind = 'image-classification' if classes else 'image-feature-extraction'
    return ModelCardData(
        library_name='timm', pipeline_tag=kind, license=license, datasets=[dataset] if dataset else None,
        tags=[kind, 'timm', *(['transformers'] if facts.get('files') else []), TAG],
        base_model=facts.get('base_model'), metrics=['accuracy'] if results else None,
        **({'model_name': repo_id.partition('/')[2], 'eval_results': results} if results else {}))


def _plain(folder: Path, own: Mapping[str, Any], plain: Path | None, expected: Sequence[str]) -> dict[str, Any]:
    """The figures of the plain backbone: from its own run, or from the model's ``metrics.json``; empty if unknown."""
    if plain is None:
        found = {key: own.get(f'{key}_plain') for key in ('top1', 'top5', 'parameters')}
        return {} if found['top1'] is None else {'model': own.get('plain'), **found}
    found = read_metrics(plain) or {}
    for place, metrics in ((folder, own), (plain, found)):
        if metrics.get('top1') is None:
            raise BadInput(f'{place} has no {METRICS} with a top-1, so there is nothing to compare for --plain')
    if found.get('model') not in expected:
        raise BadInput(f'--plain {plain} is a {found.get("model")!r}, and the plain backbone of {folder} is '
                       f'{expected[0]!r}')
    for key in ('dataset', 'images'):
        if found.get(key) != own.get(key):
            raise BadInput(f'--plain {plain} was measured on {key} {found.get(key)!r}, and {folder} on '
                           f'{own.get(key)!r}')
    return found
