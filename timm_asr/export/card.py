"""The model card: what a person reads who finds the weights on the Hub. It claims nothing that was not measured.

The text is in ``card.md.j2``; what is in here are the facts that it is filled with. Every string from a configuration
is escaped on its way.
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
from .citations import Attention, attention_of

#: By which :func:`timm_asr.list_published` finds what this package published.
TAG = 'timm_asr'
_TEMPLATE = Path(__file__).with_name('card.md.j2')
_PLOTS = (
    ('The attention', "The weights that each block's attention gives to its channels. They are constants, and are "
     'part of the published weights.\n\n', ATTENTION),
    ('Training curve', '', CURVE),
)


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
    card = _Card(folder, read_config(folder), read_metrics(folder) or {}, dataset_name)
    card.add_plain(plain)
    channels = (card.cfg.get('input_size') or [3])[0]
    head = card.head(repo_id, license)
    filled = ModelCard.from_template(
        head, str(_TEMPLATE), title=repo_id.partition('/')[2], repo_id=repo_id, known=bool(card.facts),
        what=card.what(), needs=card.needs, classes=card.classes, details=card.details(),
        ours='import timm_asr  # has the architecture\n' if card.needs else '', mode='L' if channels == 1 else 'RGB',
        top=min(5, card.classes),
        name_of_class="model.pretrained_cfg['label_names'][i]" if card.config.get('label_names') else "f'class {i}'",
        trainable=card.trainable, results=card.results(), speed=card.speed(), training=card.training(),
        plots=[plot for plot in _PLOTS if is_regular(folder / plot[2])], citations=card.attention.papers)
    return re.sub(r'\n{3,}', '\n\n', filled.content).rstrip() + '\n'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str = '---:') -> str:
    """A table in Markdown without the columns that have nothing in them; figures are to the right."""
    used = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows)]
    rule = ['---', *[align] * (len(head) - 1)]
    return '\n'.join(f'| {" | ".join(row[i] for i in used)} |' for row in (head, rule, *rows))


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ''


class _Card:
    """The facts of one folder, as pieces of Markdown."""

    def __init__(self, folder: Path, config: Mapping[str, Any], metrics: Mapping[str, Any], dataset: Any) -> None:
        self.folder, self.config = folder, config
        self.facts: dict[str, Any] = config.get(KEY) or {}
        summary = self.facts.get('metrics') or {}
        after = {f'{key}_folded': value for key, value in (summary.get('after') or {}).items()}
        self.metrics = dict(metrics) or {**(summary.get('before') or {}), **after, **{
            key: summary[key] for key in ('images', 'logit_difference_relative') if key in summary}}
        self.dataset = dataset or self.metrics.get('dataset') or self.facts.get('dataset')
        self.plain: dict[str, Any] = {}
        self.cfg: dict[str, Any] = config.get('pretrained_cfg') or {}
        self.architecture: str = config['architecture']
        self.model: str = self.facts.get('model') or self.architecture
        self.classes: int = config.get('num_classes') or 0
        self.needs: list[str] = self.facts.get('needs') or []
        self.trainable = (folder / TRAINABLE / CONFIG).is_file()
        self.attention: Attention = attention_of(self.model, self.facts.get('asr'))

    def head(self, repo_id: str, license: str | None) -> ModelCardData:
        """What the Hub reads: tags, data set, licence, the model it started from, and the accuracy of these weights."""
        top1, top5 = (self.metrics.get(f'{key}_folded', self.metrics.get(key)) for key in ('top1', 'top5'))
        name = str(self.dataset).rpartition('/')[2] if self.dataset else None
        results = [
            EvalResult(task_type='image-classification', dataset_type=str(self.dataset), dataset_name=str(name),
                       metric_type='accuracy', metric_name=title, metric_value=round(value / 100, 5),
                       dataset_split=self.metrics.get('split'))
            for title, value in (('top-1 accuracy', top1), ('top-5 accuracy', top5))
            if name and isinstance(value, int | float)]
        kind = 'image-classification' if self.classes else 'image-feature-extraction'
        return ModelCardData(
            library_name='timm', pipeline_tag=kind, license=license,
            tags=[kind, 'timm', *(['transformers'] if self.facts.get('files') else []), TAG],
            datasets=[str(self.dataset)] if self.dataset else None, base_model=self.facts.get('base_model'),
            metrics=['accuracy'] if results else None,
            **({'model_name': repo_id.partition('/')[2], 'eval_results': results} if results else {}))

    def add_plain(self, folder: Path | None) -> None:
        """Put the accuracy of the plain backbone beside the model's: from its own run, or from ``metrics.json``."""
        own = self.metrics
        if folder is None:
            if own.get('top1_plain') is not None:
                self.plain = {'model': own.get('plain'), 'top1': own['top1_plain'], 'top5': own.get('top5_plain'),
                              'parameters': own.get('parameters_plain')}
            return
        self.plain = read_metrics(folder) or {}
        for place, metrics in ((self.folder, own), (folder, self.plain)):
            if metrics.get('top1') is None:
                raise BadInput(f'{place} has no {METRICS} with a top-1, so there is nothing to compare for --plain')
        expected = (own.get('plain') or self.architecture, self.attention.backbone)
        if self.plain.get('model') not in expected:
            raise BadInput(f'--plain {folder} is a {self.plain.get("model")!r}, and the plain backbone of '
                           f'{self.folder} is {expected[0]!r}')
        for key in ('dataset', 'images'):
            if self.plain.get(key) != own.get(key):
                raise BadInput(f'--plain {folder} was measured on {key} {self.plain.get(key)!r}, and {self.folder} on '
                               f'{own.get(key)!r}')

    @property
    def folded(self) -> bool:
        """Whether something of the trained network was folded away."""
        return self.model != self.architecture or bool(self.facts.get('asr'))

    def what(self) -> str:
        """What the weights are, in a paragraph."""
        name, gate, dia = code_text(self.architecture), self.attention.gate.upper(), self.attention.dia.upper()
        if not self.facts:
            return f'Weights of {name} for [timm](https://github.com/huggingface/pytorch-image-models).'
        if self.attention.asr:
            return (
                f'{name}, trained as {self._trained_as()}, with ASR ({self.attention.asr.upper()}): attention that is '
                'fed by a learned vector instead of the feature map. The weights that it gives to channels are '
                'therefore constants, and have been folded into the layers before them. What is published is '
                f'{name} itself, its layers and its parameters, with '
                f'{f"the {gate} of its blocks" if gate else "no attention"} left to compute.')
        if self.folded:
            return f'{name}, trained as {code_text(self.model)}; the attention has been folded into its weights.'
        if dia:
            return f'{name}: the blocks of each stage share one attention unit ({plain_text(dia.replace("_", " "))}).'
        if gate:
            return f'{name}: attention ({plain_text(gate.replace("_", "-"))}) weighs the channels of every block.'
        return f'A plain {name}.'

    def _trained_as(self) -> str:
        name = code_text(self.model)
        return name if self.model != self.architecture else f'{name} with ASR attached'

    def details(self) -> str:
        size = self.cfg.get('input_size')
        rows = [('architecture', code_text(self.architecture))]
        if self.folded:
            rows.append(('trained as', self._trained_as()))
        rows.append(('classes', f'{self.classes}' if self.classes else 'none: it returns features'))
        if size:
            rows.append(('images', f'{size[1]} x {size[2]} pixels, {size[0]} channel{"s" * (size[0] > 1)}'))
        for key, name in (('mean', 'mean'), ('std', 'standard deviation')):
            if isinstance(self.cfg.get(key), list | tuple):
                rows.append((name, ', '.join(f'{value:g}' for value in self.cfg[key])))
        if self.dataset:
            rows.append(('trained on', plain_text(self.dataset)))
        if self.facts.get('base_model'):
            rows.append(('started from', plain_text(self.facts['base_model'])))
        if self.facts.get('weights_sha256'):
            rows.append(('SHA-256 of `model.safetensors`', code_text(self.facts['weights_sha256'])))
        return _table(('', ''), rows, align='---')

    def _rows(self) -> list[tuple[str, str]]:
        """Title and suffix in ``metrics.json`` of each network that was measured."""
        name = code_text(self.architecture)
        rows = [(f'{self._trained_as()}, as trained', ''), (f'{name}, these weights', '_folded')]
        if not self.folded:
            rows = [(f'{name}, these weights', '')]
        if 'top1_inference' in self.metrics:
            rows.append(('its inference form (`timm_asr.reparameterize`)', '_inference'))
        return rows

    def results(self) -> str:
        m = self.metrics
        if m.get('top1') is None and m.get('top1_folded') is None:
            return ''
        rows = [(title, _number(m.get(f'top1{end}'), '.2f'), _number(m.get(f'top5{end}'), '.2f'),
                 _number(m.get(f'parameters{end}'), ',')) for title, end in self._rows()]
        if self.plain:
            without = 'ASR' if self.plain.get('model') == m.get('plain') and self.attention.asr else 'attention'
            rows.append((f'{code_text(self.plain.get("model"))}, trained without {without}',
                         _number(self.plain.get('top1'), '.2f'), _number(self.plain.get('top5'), '.2f'),
                         _number(self.plain.get('parameters'), ',')))
        where = f'on {_number(m["images"], ",")} images' if m.get('images') else 'on the validation images'
        where += f' (split {plain_text(m["split"])})' if m.get('split') else ''
        where += f' of {plain_text(self.dataset)}' if self.dataset else ''
        text = f'Measured {where}.'
        if m.get('epoch_last') is not None and m.get('epoch') is not None:
            text += f' The weights are those of epoch {m["epoch"]}, which was the best on these images'
            text += (f'; at the last epoch, {m["epoch_last"]}, top-1 was {_number(m["top1_last"], ".2f")} %.'
                     if m.get('top1_last') is not None else '.')
        relative = m.get('logit_difference_relative')
        if self.folded and isinstance(relative, int | float):
            what = 'Folding and rounding' if m.get('dtype') else 'Folding'
            text += (f' {what} changed no logit.' if relative == 0 else
                     f' {what} changed no logit by more than {relative:.0e} of the largest.')
        if m.get('dtype'):
            text += (f' The weights are stored in {plain_text(m["dtype"])}; accuracy was measured before they were '
                     'rounded to it.')
        if self.plain:
            text += ' Each row is one run; a small difference between runs may be chance.'
        return f'{_table(("", "top-1, %", "top-5, %", "parameters"), rows)}\n\n{text}'

    def speed(self) -> str:
        m = self.metrics
        rows = [(f'{self._trained_as() if self.folded else code_text(self.architecture)}, as trained', 'model'),
                (f'{code_text(self.architecture)}, these weights', 'folded'),
                ('its inference form (`timm_asr.reparameterize`)', 'inference'),
                (f'{code_text(m.get("plain"))}, plain', 'plain')]
        measured = [(title, _number(m.get(f'images_per_second_{key}'), ',.0f')) for title, key in rows]
        measured = [row for row in measured if row[1]]
        if len(measured) < 2:
            return ''
        torch = self.facts.get('torch_version')
        return (
            f'{_table(("", "images per second"), measured)}\n\nForward passes in turns, in one process, at the end of '
            f'the training run and on its machine{f" (PyTorch {plain_text(torch)})" if torch else ""}: the ratios say '
            'more than the figures.')

    def training(self) -> str:
        facts = self.facts
        rows = [(name, plain_text(facts[key])) for key, name in (
            ('recipe', 'recipe'), ('seed', 'seed'), ('epoch', 'epoch of these weights, counted from 0'),
            ('package_version', 'timm_asr'), ('git_commit', 'commit of timm_asr'), ('timm_version', 'timm'),
            ('torch_version', 'PyTorch')) if facts.get(key) is not None]
        arguments = public_arguments(facts.get('arguments') or {})
        if not arguments and facts.get('recipe') is None and facts.get('epoch') is None:
            return ''  # a live model: nothing is known of its training
        if facts.get('weights'):
            rows.append(('weights', {'ema': 'averaged (EMA)'}.get(facts['weights'], 'not averaged')))
        text = _table(('', ''), rows, align='---')
        if arguments:
            text += f'\n\nOptions of `timm-asr train`:\n\n```yaml\n{as_yaml(arguments)}```'
        if is_regular(self.folder / ARGS):
            text += '\n\n`timm-asr train --config args.yaml --data-dir DIR` repeats the run ([args.yaml](args.yaml)).'
        return text
