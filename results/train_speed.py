#!/usr/bin/env python3
"""Training speed and start-up of this engine against timm's own ``train.py``, on the same model and images.

    python results/train_speed.py --timm PATH/train.py > results/train_speed.md

timm's script is not in its wheel; it is one file of its repository. Both scripts get the same options and run in turns,
each round in the other order. Speed is taken from the outside: the time between the first and the last log line of an
epoch that is not the first, as this process reads them, and the processor time that the training process used meanwhile
(Linux), which neighbours on the machine change much less. Start-up is the time from starting Python to the first log
line of training.
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CASES = {
    'resnet20_asr_se, 32x32, batch 64': ('resnet20_asr_se', 32, 64, 1280, 3),
    'resnet50_asr_se, 64x64, batch 16': ('resnet50_asr_se', 64, 16, 256, 2),
    'vit_tiny_asr_se, 64x64, batch 32': ('vit_tiny_asr_se --model-kwargs img_size=64', 64, 32, 640, 3),
}
LINE = {'timm': re.compile(r'Train: (\d+) \[ *(\d+)/(\d+)'), 'ours': re.compile(r'epoch (\d+) step +(\d+)/(\d+)')}


def make_images(root: Path, count: int, size: int) -> None:
    """PNGs of noise, in ten classes, and 20 to validate on."""
    random = np.random.default_rng(0)
    for split, number in (('train', count), ('validation', 20)):
        for i in range(number):
            folder = root / split / str(i % 10)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (size, size, 3), np.uint8)).save(folder / f'{i}.png')


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def run(kind: str, script: Path, argv: list[str]) -> tuple[float, float, float]:
    """(seconds to the first log line of training, images per second, images per second of processor time)."""
    extra = ['--device-modules', 'timm_asr'] if kind == 'timm' else ['--no-fuse', '--no-progress']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': '1'}
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(script), *argv, *extra], text=True, env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    start, first, speeds, cpu_speeds, tail = None, {}, [], [], []
    batch = int(argv[argv.index('-b') + 1])
    for line in process.stderr:
        now = time.perf_counter()
        tail.append(line)
        found = LINE[kind].search(line)
        if not found:
            continue
        epoch, step = int(found[1]), int(found[2])
        start = start or now - began
        if epoch not in first:
            first[epoch] = (now, step, cpu_seconds(process.pid))
        elif epoch > 0:
            images = (step - first[epoch][1]) * batch
            speeds.append(images / (now - first[epoch][0]))
            cpu_speeds.append(images / (cpu_seconds(process.pid) - first[epoch][2]))
    if process.wait() or not speeds:
        sys.exit(f'{script} failed:\n{"".join(tail[-15:])}')
    return start, statistics.median(speeds), statistics.median(cpu_speeds)


def median(runs: list[tuple[float, ...]], column: int) -> float:
    return statistics.median(run[column] for run in runs)


def ratio(found: dict[str, list[tuple[float, ...]]], column: int) -> str:
    ratios = [ours[column] / theirs[column] for ours, theirs in zip(found['ours'], found['timm'], strict=True)]
    return f'{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--timm', required=True, type=Path, metavar='PATH/train.py')
    parser.add_argument('--rounds', type=int, default=4)
    parser.add_argument('--cases', nargs='+', default=list(CASES))
    args = parser.parse_args()
    rows = []
    for name in args.cases:
        model, size, batch, count, epochs = CASES[name]
        found = {kind: [] for kind in LINE}
        with tempfile.TemporaryDirectory() as folder:
            make_images(Path(folder) / 'images', count, size)
            argv = ['--data-dir', f'{folder}/images', '--model', *model.split(), '--num-classes', '10',
                    '--img-size', str(size), '-b', str(batch), '--epochs', str(epochs), '-j', '1',
                    '--device', 'cpu', '--seed', '42', '--output', f'{folder}/output',
                    '--val-interval', '1000']
            for number in range(args.rounds):
                scripts = [('timm', args.timm), ('ours', ROOT / 'train.py')]
                for kind, script in scripts[::-1] if number % 2 else scripts:
                    found[kind].append(run(kind, script, argv))
                    print(name, kind, *(f'{value:.2f}' for value in found[kind][-1]), file=sys.stderr)
        rows.append([name, *(f'{median(found[kind], 1):.1f}' for kind in LINE), ratio(found, 1), ratio(found, 2),
                     *(f'{median(found[kind], 0):.2f}' for kind in LINE)])
    print(f'''# Training speed against timm's own train.py

`python results/train_speed.py --timm PATH/train.py --rounds {args.rounds}`: the same model, images, options and seed (42)
in both, run in turns on {os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} thread(s) and one loading
process each; timm {timm.__version__}, PyTorch {torch.__version__}. Medians of {args.rounds} rounds; the ratio is taken round by
round (ours over timm's, above 1 is faster), with its smallest and largest value; by processor time it counts images per
second that the training process computed, whatever its neighbours did. Start-up is from starting Python to the first
step that is logged.

| model | timm, images/s | ours, images/s | ratio | ratio by processor time | timm, start-up s | ours, start-up s |
|---|---|---|---|---|---|---|''')  # noqa: E501
    for row in rows:
        print('| ' + ' | '.join(row) + ' |')


if __name__ == '__main__':
    main()
