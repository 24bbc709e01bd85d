"""The model card: what a person reads who finds the weights on the Hub. It claims nothing that nobody measured."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import BadInput
from .citations import CITATIONS, Attention, attention_of
from .contents import as_yaml, public_metrics, read_config
from .place import METRICS, TRAINABLE
from .provenance import KEY

#: By which :func:`timm_asr.list_published` finds what this package published.
TAG = 'timm_asr'
_PLOTS = (
    ('attention.png', 'The attention', "The weights that each block's attention gives to its channels. They are "
     'constants, and are part of the published weights.'),
    ('curve.png', 'Training curve', ''),
)


def model_card(folder: Path, repo_id: str, license: str | None = None, plain: Path | None = None) -> str:
    """The ``README.md`` for a folder of weights.

    Args:
        folder: With ``config.json``, and what else there is: ``metrics.json``, plots, ``trainable``.
        repo_id: Under which it is published.
        license: As the Hub names it; nothing is said of a licence without.
        plain: Folder of the plain backbone's own run, for the accuracy beside the model's.

    Raises:
        BadInput: ``plain`` was not measured on the same images, or is not the plain backbone.
    """
    config = read_config(folder)
    card = _Card(folder, repo_id, config, _read_metrics(folder))
    card.add_plain(plain)
    head = {
        'library_name': 'timm',
        **({'pipeline_tag': 'image-classification'} if card.classes else {}),
        'tags': [*(['image-classification'] if card.classes else ['image-feature-extraction']), 'timm', TAG],
        **({'license': license} if license else {}),
    }
    parts = [
        f'---\n{yaml.safe_dump(head, sort_keys=False)}---',
        f'# {repo_id.partition("/")[2]}',
        card.what(), card.details(), card.usage(), card.results(), card.speed(), card.training(), card.plots(),
        card.citation()]
    return '\n\n'.join(part for part in parts if part) + '\n'


def _read_metrics(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / METRICS).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return public_metrics(content) if isinstance(content, dict) else {}


def _flat(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a provenance, with the keys of ``metrics.json``."""
    after = {f'{key}_fused': value for key, value in (summary.get('after') or {}).items()}
    more = {key: summary[key] for key in ('images', 'logit_difference_relative') if key in summary}
    return {**(summary.get('before') or {}), **after, **more}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str = '---:') -> str:
    """A table in Markdown without the columns that have nothing in them; figures are to the right."""
    used = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows)]
    rule = ['---', *[align] * (len(head) - 1)]
    lines = [[row[i] for i in used] for row in (head, rule, *rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _number(value: Any, form: str) -> str:
    return '' if value is None else format(value, form)


class _Card:
    def __init__(self, folder: Path, repo_id: str, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        self.folder, self.repo_id, self.config = folder, repo_id, config
        self.facts: dict[str, Any] = config.get(KEY) or {}
        self.metrics = metrics or _flat(self.facts.get('metrics') or {})
        self.plain: dict[str, Any] = {}
        self.cfg: dict[str, Any] = config.get('pretrained_cfg') or {}
        self.architecture: str = config['architecture']
        self.model: str = self.facts.get('model') or self.architecture
        self.classes: int = config.get('num_classes') or 0
        self.needs: list[str] = self.facts.get('needs') or []
        self.trainable = (folder / TRAINABLE / 'config.json').is_file()
        self.attention: Attention = attention_of(self.model, self.facts.get('asr'))

    def add_plain(self, folder: Path | None) -> None:
        """Put the accuracy of the plain backbone beside the model's: from its own run, or from ``metrics.json``."""
        own = self.metrics
        if folder is None:
            if own.get('top1_plain') is not None:
                self.plain = {'model': own.get('plain'), 'top1': own['top1_plain'], 'top5': own.get('top5_plain'),
                              'parameters': own.get('parameters_plain')}
            return
        self.plain = _read_metrics(folder)
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
        if not self.facts:
            text = f'Weights of `{self.architecture}` for [timm](https://github.com/huggingface/pytorch-image-models).'
        elif self.attention.asr:
            rest = f'the {self.attention.gate.upper()} of its blocks' if self.attention.gate else 'no attention'
            text = (
                f'A `{self.architecture}` that was trained as {self._trained_as()}: with ASR '
                f'({self.attention.asr.upper()}), attention that is fed by a learned vector instead of the feature '
                'map. The weights that it gives to channels are therefore constants, and have been folded into the '
                f'layers before them. What is published is the `{self.architecture}` itself, its layers and its '
                f'parameters, with {rest} left to compute.')
        elif self.folded:
            text = (f'A `{self.architecture}` that was trained as `{self.model}`; the attention has been folded into '
                    'its weights.')
        elif self.attention.dia:
            text = (f'A `{self.architecture}`: the blocks of each stage share one attention unit '
                    f'({self.attention.dia.replace("_", " ").upper()}).')
        elif self.attention.gate:
            text = (f'A `{self.architecture}`: attention ({self.attention.gate.replace("_", "-").upper()}) weighs the '
                    'channels of every block.')
        else:
            text = f'A plain `{self.architecture}`.'
        if self.needs:
            text += ('\n\nThe architecture comes from the package `timm_asr`: import it before the model is made, as '
                     'below.')
        elif self.facts:
            text += '\n\nIt needs [timm](https://github.com/huggingface/pytorch-image-models) and nothing else.'
        return text

    def _trained_as(self) -> str:
        return f'`{self.model}`' if self.model != self.architecture else f'`{self.model}` with ASR attached'

    def details(self) -> str:
        size = self.cfg.get('input_size')
        rows = [('architecture', f'`{self.architecture}`')]
        if self.folded:
            rows.append(('trained as', self._trained_as()))
        rows.append(('classes', f'{self.classes}' if self.classes else 'none: it returns features'))
        if size:
            rows.append(('images', f'{size[1]} x {size[2]} pixels, {size[0]} channel{"s" * (size[0] > 1)}'))
        for key, name in (('mean', 'mean'), ('std', 'standard deviation')):
            if self.cfg.get(key):
                rows.append((name, ', '.join(f'{value:g}' for value in self.cfg[key])))
        if self.facts.get('dataset'):
            rows.append(('trained on', str(self.facts['dataset'])))
        if self.facts.get('weights_sha256'):
            rows.append(('SHA-256 of `model.safetensors`', f'`{self.facts["weights_sha256"]}`'))
        return _table(('', ''), rows, align='---')

    def usage(self) -> str:
        """Snippets that run as they stand, with an image at hand."""
        ours = 'import timm_asr  # has the architecture\n' if self.needs else ''
        mode = 'L' if (self.cfg.get('input_size') or [3])[0] == 1 else 'RGB'
        load = f"timm.create_model('hf-hub:{self.repo_id}', pretrained=True"
        blocks = ['## Use it']
        if self.classes:
            names = ("model.pretrained_cfg['label_names'][i]" if self.config.get('label_names') else "f'class {i}'")
            blocks.append(
                f'```python\nimport timm\n{ours}import torch\nfrom PIL import Image\n\nmodel = {load}).eval()\n'
                'data = timm.data.resolve_model_data_config(model)\n'
                'transform = timm.data.create_transform(**data, is_training=False)\n\n'
                f"image = transform(Image.open('image.jpg').convert('{mode}'))\nwith torch.inference_mode():\n"
                '    probabilities = model(image.unsqueeze(0)).softmax(dim=1)[0]\n'
                f'for p, i in zip(*probabilities.topk({min(5, self.classes)})):\n'
                f"    print({names}, f'{{100 * p:.1f}} %')\n```")
        blocks.append(
            f'As a feature extractor (one vector an image):\n\n```python\nimport timm\n{ours}import torch\n\n'
            f'model = {load}, num_classes=0).eval()\n'
            "size = timm.data.resolve_model_data_config(model)['input_size']\n"
            'with torch.inference_mode():\n    print(model(torch.randn(2, *size)).shape)\n```')
        if self.trainable:
            blocks.append(
                'Fused weights are the wrong start for further training. The unfused network, its attention trainable, '
                'is here too; `num_classes` gives it a new classifier:\n\n```python\nimport timm_asr\n\n'
                f"model = timm_asr.load_trainable('{self.repo_id}', num_classes=7)\n```")
        return '\n\n'.join(blocks)

    def _rows(self) -> list[tuple[str, str]]:
        """Title and suffix in ``metrics.json`` of each network that was measured."""
        if not self.folded:
            return [(f'`{self.architecture}`, these weights', '')]
        return [(f'{self._trained_as()}, as trained', ''), (f'`{self.architecture}`, fused: these weights', '_fused')]

    def results(self) -> str:
        m = self.metrics
        if m.get('top1') is None and m.get('top1_fused') is None:
            return ''
        rows = [(title, _number(m.get(f'top1{end}'), '.2f'), _number(m.get(f'top5{end}'), '.2f'),
                 _number(m.get(f'parameters{end}'), ',')) for title, end in self._rows()]
        if self.plain:
            without = 'ASR' if self.plain.get('model') == m.get('plain') and self.attention.asr else 'attention'
            rows.append((f'`{self.plain.get("model")}`, trained without {without}',
                         _number(self.plain.get('top1'), '.2f'), _number(self.plain.get('top5'), '.2f'),
                         _number(self.plain.get('parameters'), ',')))
        where = f'on {m["images"]:,} validation images' if m.get('images') else 'on the validation images'
        where += f' of {m["dataset"]}' if m.get('dataset') else ''
        text = f'Measured {where}.'
        relative = m.get('logit_difference_relative')
        if self.folded and relative is not None:
            what = 'Fusing and rounding' if m.get('dtype') else 'Fusing'
            text += (f' {what} changed no logit.' if relative == 0 else
                     f' {what} changed no logit by more than {relative:.0e} of the largest.')
        if m.get('dtype'):
            text += f' The weights are stored in {m["dtype"]}; accuracy was measured before they were rounded to it.'
        if self.plain:
            text += ' Each row is one run; a small difference between runs may be chance.'
        return f'## Results\n\n{_table(("", "top-1, %", "top-5, %", "parameters"), rows)}\n\n{text}'

    def speed(self) -> str:
        m = self.metrics
        rows = [(f'{self._trained_as() if self.folded else f"`{self.architecture}`"}, as trained', 'model'),
                (f'`{self.architecture}`, fused', 'fused'), (f'`{m.get("plain")}`, plain', 'plain')]
        if not self.folded:
            rows[1] = (f'`{self.architecture}`, inference form (`model.reparameterize()`)', 'fused')
        measured = [(title, _number(m.get(f'images_per_second_{key}'), ',.0f')) for title, key in rows]
        measured = [row for row in measured if row[1]]
        if len(measured) < 2:
            return ''
        where = ', '.join(str(value) for value in (
            (self.facts.get('arguments') or {}).get('device'),
            self.facts.get('torch_version') and f'PyTorch {self.facts["torch_version"]}') if value)
        return (
            f'## Speed\n\n{_table(("", "images per second"), measured)}\n\nForward passes in turns, in one process, at '
            f'the end of the training run and on its machine{f" ({where})" if where else ""}: the ratios say more than '
            'the figures.')

    def training(self) -> str:
        facts = self.facts
        rows = [(name, str(facts[key])) for key, name in (
            ('recipe', 'recipe'), ('seed', 'seed'), ('epoch', 'epoch of these weights, counted from 0'),
            ('package_version', 'timm_asr'), ('git_commit', 'commit of timm_asr'), ('timm_version', 'timm'),
            ('torch_version', 'PyTorch')) if facts.get(key) is not None]
        arguments = facts.get('arguments') or {}
        if not arguments and facts.get('recipe') is None and facts.get('epoch') is None:
            return ''  # a live model: nothing is known of its training
        if facts.get('weights'):
            rows.append(('weights', {'ema': 'averaged (EMA)'}.get(facts['weights'], 'as trained, not averaged')))
        text = f'## Training\n\n{_table(("", ""), rows, align="---")}'
        if arguments:
            text += ('\n\nOptions that differ from the defaults of `python -m timm_asr train`:\n\n```yaml\n'
                     f'{as_yaml(arguments)}```')
        if (self.folder / 'args.yaml').is_file():
            text += ('\n\n[args.yaml](args.yaml) has all of them: `python -m timm_asr train --config args.yaml '
                     '--data-dir DIR` repeats the run.')
        return text

    def plots(self) -> str:
        return '\n\n'.join(
            f'## {title}\n\n{text + chr(10) * 2 if text else ""}![{title}]({name})'
            for name, title, text in _PLOTS if (self.folder / name).is_file())

    def citation(self) -> str:
        papers = self.attention.papers
        if not papers:
            return ''
        return '## Citation\n\n' + '\n\n'.join(f'```bibtex\n{CITATIONS[key]}\n```' for key in papers)
