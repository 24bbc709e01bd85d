"""What ASR costs while training and saves at inference, on this machine's CPU.

    python results/speed.py                   # every section; writes speed.csv and speed.md beside this file
    python results/speed.py infer-resnet50-8  # one section; the rows of the others stay
    python results/speed.py table             # speed.md again, from speed.csv

Each section builds its models in one process and runs them in turns (`timm_asr.engine.versus`, which is also what
`benchmark.py --versus` uses). The script restarts itself with its threads pinned and its memory kept.
"""

import gc
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from measuring import SETTINGS_TEXT, columns, machine, quartiles, read, restart, section_parser, update
from quiet import QUIET, interleave_quietly
from torch import nn

from timm_asr import __version__
from timm_asr.asr.wrapper import ASR
from timm_asr.engine.bench import InferenceStep, Step, TrainStep, saved_for_backward
from timm_asr.engine.commands.benchmark import OPTIONS
from timm_asr.engine.options import parse
from timm_asr.engine.reports import as_markdown
from timm_asr.engine.versus import Spread, ratios

TABLE = Path(__file__).with_suffix('.csv')
SEED = 42
BUDGET = 75.0  # seconds that the rounds of a section may take
DEVICE = torch.device('cpu')
# timm's resnet50 is tested at 288, its variants are not.
SIZES = {'resnet164': ('--img-size', '32'), 'resnet50': ('--img-size', '224')}


class MapASR(nn.Module):
    """ASR as the paper writes it: the layer's output, a feature map, times v."""

    def __init__(self, asr: ASR) -> None:
        super().__init__()
        self.layer, self.vectors = asr.layer, asr.vectors

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        for vector in self.vectors:
            y = y * vector().view(1, -1, 1, 1)
        return y


class LiteralTrainStep(TrainStep):
    """A training step with the feature maps multiplied."""

    def _prepare(self, args: Any) -> None:
        for parent in list(self.eager.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, ASR):
                    setattr(parent, name, MapASR(child))
        super()._prepare(args)


def options(*words: str) -> Any:
    return parse(OPTIONS, {}, [*words, '--device', 'cpu'])


def train_section(backbone: str, batch_size: int, rounds: int, variants: Sequence[str]) -> list[dict[str, Any]]:
    args = options(*SIZES[backbone])
    kinds: dict[str, tuple[type[TrainStep], str]] = {
        'plain': (TrainStep, backbone),
        'SE': (TrainStep, f'{backbone}_se'),
        'ASR(SE), weight space': (TrainStep, f'{backbone}_asr_se'),
        'ASR(SE), feature maps': (LiteralTrainStep, f'{backbone}_asr_se'),
    }
    torch.manual_seed(SEED)
    steps = {name: kinds[name][0](kinds[name][1], args, DEVICE, batch_size) for name in ('plain', *variants)}
    saved = {name: saved_for_backward(step.forward_loss, step.eager) for name, step in steps.items()}
    rows = timed(steps, rounds, iters=1, backbone=backbone, what='training step', batch_size=batch_size)
    for row in rows:
        row['saved_mb'] = round(saved[row['variant']] / 1e6, 2)
        row['saved_ratio'] = round(saved[row['variant']] / saved['plain'], 5)
    return rows


def infer_section(backbone: str, batch_size: int, rounds: int, iters: int) -> list[dict[str, Any]]:
    plain, last = options(*SIZES[backbone]), options(*SIZES[backbone], '--channels-last')
    torch.manual_seed(SEED)
    variants: dict[str, Step] = {
        'plain': InferenceStep(backbone, plain, DEVICE, batch_size),
        'SE': InferenceStep(f'{backbone}_se', plain, DEVICE, batch_size),
        'ASR(SE), folded': InferenceStep(f'{backbone}_asr_se+reparam', plain, DEVICE, batch_size),
        'ASR(SE), folded, BN folded': InferenceStep(f'{backbone}_asr_se+fold-bn', plain, DEVICE, batch_size),
        'plain, channels_last': InferenceStep(backbone, last, DEVICE, batch_size),
        'ASR(SE), folded, BN folded, channels_last': InferenceStep(
            f'{backbone}_asr_se+fold-bn', last, DEVICE, batch_size),
    }
    return timed(variants, rounds, iters, backbone=backbone, what='inference', batch_size=batch_size)


def timed(steps: dict[str, Any], rounds: int, iters: int, **about: Any) -> list[dict[str, Any]]:
    times = interleave_quietly(steps, rounds=rounds, iters=iters, budget=BUDGET, device=DEVICE)
    spread = ratios(times, 'plain')
    return [{
        **about, 'variant': name, 'rounds': len(own), 'steps_a_round': iters,
        'ms': round(1000 * Spread.of(own).median, 2),
        **quartiles(spread[name], 'time_ratio', 4),
        'speed': round(1 / spread[name].median, 3),
    } for name, own in times.items()]


ASR_STEP, FOLDED = 'ASR(SE), weight space', 'ASR(SE), folded, BN folded, channels_last'
ASR_ALONE = (ASR_STEP,)  # up against plain alone, since their difference is small
OTHERS = ('SE', 'ASR(SE), feature maps')
SECTIONS = {
    'train-resnet164-asr': lambda: train_section('resnet164', 64, 100, ASR_ALONE),
    'train-resnet164-others': lambda: train_section('resnet164', 64, 100, OTHERS),
    'train-resnet50-asr': lambda: train_section('resnet50', 8, 100, ASR_ALONE),
    'train-resnet50-others': lambda: train_section('resnet50', 8, 100, OTHERS),
    'infer-resnet164-128': lambda: infer_section('resnet164', 128, rounds=100, iters=1),
    'infer-resnet164-1': lambda: infer_section('resnet164', 1, rounds=100, iters=10),
    'infer-resnet50-8': lambda: infer_section('resnet50', 8, rounds=100, iters=1),
}
GOALS = [
    ('time of an ASR training step, resnet164', 'train-resnet164-asr', ASR_STEP, 'time_ratio', 1.02),
    ('time of an ASR training step, resnet50', 'train-resnet50-asr', ASR_STEP, 'time_ratio', 1.02),
    ('bytes saved for backward, resnet164', 'train-resnet164-asr', ASR_STEP, 'saved_ratio', 1.001),
    ('bytes saved for backward, resnet50', 'train-resnet50-asr', ASR_STEP, 'saved_ratio', 1.001),
    ('speed, BN folded and channels_last, resnet164, batch 128', 'infer-resnet164-128', FOLDED, 'speed', 1.6),
    ('speed, BN folded and channels_last, resnet164, batch 1', 'infer-resnet164-1', FOLDED, 'speed', 2.0),
    ('speed, BN folded and channels_last, resnet50, batch 8', 'infer-resnet50-8', FOLDED, 'speed', 1.25),
]
TRAIN_COLUMNS = ('variant', 'rounds', 'ms', 'time_ratio', 'q1', 'q3', 'saved_mb', 'saved_ratio')
INFER_COLUMNS = ('variant', 'rounds', 'ms', 'time_ratio', 'q1', 'q3', 'speed')


def markdown(rows: list[dict[str, Any]]) -> str:
    parts = [f"""# What ASR costs while training, and saves at inference

Command: `python results/speed.py` (seed {SEED}; it sets `{SETTINGS_TEXT}` itself).
Machine: {machine()}; PyTorch {torch.__version__}, timm {timm.__version__}, timm_asr {__version__}; float32, random
images, 32x32 for resnet164 and 224x224 for resnet50.

All variants of a table ran in turns in one process. `ms` is the median over rounds of one step; `time_ratio` is the
median over rounds of the time divided by that of the plain backbone in the same round, `q1` and `q3` are its quartiles.
Absolute times on a shared machine mean little; the ratios are what to read. Rounds in which other processes took more
than {QUIET:.0%} of the processors ran again, within the time that a section may take. A training step is forward, loss,
backward and an SGD update. `saved_mb` counts the bytes that autograd keeps for the backward pass, parameters and
buffers left out. "Feature maps" multiplies the output of each site, as the paper writes it; "weight space" is what the
package does. In training, weight space met plain in a contest of two, since their difference is small; SE and feature
maps met plain in another, so their ratios belong to that contest's plain step and not to the `ms` printed above them.
""", '## Goals\n\n' + as_markdown(goals(rows))]
    for section in SECTIONS:
        own = [row for row in rows if row['section'] == section]
        if section.endswith('-others') or not own:
            continue
        # The slower variants stand in the same table; they had a contest with plain of their own.
        others = section.replace('-asr', '-others')
        own += [row for row in rows if row['section'] == others != section and row['variant'] != 'plain']
        first = own[0]
        each = first['steps_a_round']
        note = f'{each} steps in each round.\n\n' if int(each) > 1 else ''
        parts.append(f'## {first["backbone"]}, {first["what"]}, batch {first["batch_size"]}\n\n'
                     + note + columns(own, TRAIN_COLUMNS if section.startswith('train') else INFER_COLUMNS))
    return '\n'.join(parts)


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was wanted, what was measured, and whether that is enough."""
    table = []
    for what, section, variant, column, limit in GOALS:
        found = [row for row in rows if (row['section'], row['variant']) == (section, variant)]
        if found:
            value = float(found[0][column])
            met = value >= limit if column == 'speed' else value <= limit
            wanted = f'{"at least" if column == "speed" else "at most"} {limit}'
            table.append({'what': what, 'times plain': wanted, 'measured': value, 'met': 'yes' if met else 'no'})
    return table


def main() -> None:
    chosen = section_parser(__doc__, [*SECTIONS, 'table']).parse_args().sections
    if not chosen:
        for section in SECTIONS:  # a process each, so that memory kept by one is not another's
            subprocess.run([sys.executable, __file__, section], check=True)
        return
    for section in chosen:
        if section == 'table':
            TABLE.with_suffix('.md').write_text(markdown(read(TABLE)))
            continue
        rows = SECTIONS[section]()
        update(TABLE, section, rows, SECTIONS, markdown)
        print(as_markdown(rows))
        gc.collect()
    print(f'peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB')


if __name__ == '__main__':
    restart()
    main()
