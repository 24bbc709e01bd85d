"""Write `docs/model_table.md`, every model of the package: ``python results/model_table.py``.

Parameters and multiply-accumulates are counted; speeds come from `operations.csv` (training), `speed.csv` (ASR at
inference) and `attention_speed.csv` (all others).
"""

import csv
from collections import defaultdict
from pathlib import Path

from timm_asr.models.counts import model_rows
from timm_asr.models.registry import list_variants

HERE = Path(__file__).parent
PAGE = HERE.parent / 'docs' / 'model_table.md'
HEAD = """# All models

Every name that this package registers, by backbone. Written by `python results/model_table.py`;
`timm-asr models PATTERN` prints the same for some of them.

- **folded**: parameters once ASR is folded. Where there is none they are those of training.
- **MACs**: multiply-accumulates of the folded network for one image of the given size, in millions.
- **training**, **inference**: time of a training step (`channels_last`), and of inference, divided by that of the plain
  backbone in the same run, where it was measured: on two CPU cores, [training](../results/operations.md), inference of
  [ASR](../results/speed.md), folded, and of [attention that stays](../results/attention_speed.md), as trained.
"""


def speeds() -> dict[tuple[str, str], str]:
    """(name, 'training step' or 'inference') to the ratio; of several batch sizes the largest."""
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for file, what, column in (
            ('operations.csv', 'training step', 'cpu_over_plain'), ('attention_speed.csv', 'inference', 'over_plain'),
            ('speed.csv', 'inference', 'time_ratio')):
        for row in csv.DictReader((HERE / file).read_text().splitlines()):
            variant = {'ASR(SE), folded': 'asr_se'}.get(row['variant'], row['variant'])
            name = row['backbone'] if variant == 'plain' else f'{row["backbone"]}_{variant}'
            key, size = (name, what), int(row.get('batch_size', 1))
            if row.get('what', what) == what and size >= found.get(key, (0, ''))[0]:
                found[key] = (size, f'{float(row[column]):.2f}')
    return {key: ratio for key, (_, ratio) in found.items()}


def main() -> None:
    backbones = {variant.name: variant.backbone for variant in list_variants()}
    measured, lines = speeds(), defaultdict(list)
    for row in model_rows():
        name, backbone = row['name'], backbones[row['name']]
        lines[backbone.name, backbone.title].append(
            f'| `{name}` | {row["input"]} | {row["parameters"]:,} | {row["folded"]:,} | {row["macs"] / 1e6:,.0f} '
            f'| {measured.get((name, "training step"), "")} | {measured.get((name, "inference"), "")} |')
    text = HEAD
    for (name, title), rows in lines.items():
        text += (f'\n## {name}\n\n{title}.\n\n'
                 '| name | input | parameters | folded | MACs, M | training | inference |\n'
                 '|---|---|---:|---:|---:|---:|---:|\n' + '\n'.join(rows) + '\n')
    PAGE.write_text(text)


if __name__ == '__main__':
    main()
