#!/usr/bin/env python3
"""Training speed and start-up of this engine against timm's own ``train.py``, on the same model and images.

    python results/train_speed.py --timm PATH/train.py > results/train_speed.md

timm's script is not in its wheel; it is one file of its repository. Both scripts get the same options and run side by
side, each on a processor core of its own, so that whatever else the machine does reaches both; the cores are swapped
from round to round (Linux). Speed is taken from the outside: the time between the first and the last log line of an
epoch that is neither the first nor the last, as this process reads them: whoever is behind has the machine to itself
when the other has ended. Start-up is the time from starting Python to the first log line of training. The file must
lie in a folder of its own, since beside it Python would find its repository's timm instead of the installed one.
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
# Model, size, batch, images in an epoch, epochs.
CASES = {
    'resnet20_asr_se, 32x32, batch 64': ('resnet20_asr_se', 32, 64, 1280, 5),
    'resnet50_asr_se, 64x64, batch 16': ('resnet50_asr_se', 64, 16, 160, 5),
    'vit_tiny_asr_se, 64x64, batch 32': ('vit_tiny_asr_se --model-kwargs img_size=64', 64, 32, 480, 5),
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


def run(kind: str, script: Path, argv: list[str], core: int, results: dict[str, tuple[float, float]]) -> None:
    """Put (seconds to the first log line of training, images per second) of one run into the results."""
    extra = ['--device-modules', 'timm_asr'] if kind == 'timm' else ['--no-fuse', '--no-progress']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': '1', 'OMP_NUM_THREADS': '1'}
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(script), *argv, *extra], text=True, env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    os.sched_setaffinity(process.pid, {core})
    start, first, tail = 0.0, {}, []
    speeds: dict[int, float] = {}
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
            first[epoch] = (now, step)
        elif epoch > 0:
            speeds[epoch] = (step - first[epoch][1]) * batch / (now - first[epoch][0])
    if process.wait() or len(speeds) < 2:
        print(f'{script} failed:\n{"".join(tail[-15:])}', file=sys.stderr)
        return
    results[kind] = start, statistics.median(speed for epoch, speed in speeds.items() if epoch < max(speeds))


def summarize(rounds: list[dict[str, tuple[float, float]]], column: int) -> list[str]:
    """Median of each, and the ratio of ours to timm's with its smallest and largest value."""
    ratios = [found['ours'][column] / found['timm'][column] for found in rounds]
    return [*(f'{statistics.median(found[kind][column] for found in rounds):.4g}' for kind in ('timm', 'ours')),
            f'{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--timm', required=True, type=Path, metavar='PATH/train.py')
    parser.add_argument('--rounds', type=int, default=6)
    parser.add_argument('--cases', nargs='+', default=list(CASES))
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    rows = []
    for name in args.cases:
        model, size, batch, count, epochs = CASES[name]
        rounds = []
        with tempfile.TemporaryDirectory() as folder:
            make_images(Path(folder) / 'images', count, size)
            for number in range(args.rounds):
                results: dict[str, tuple[float, float]] = {}
                threads = []
                for kind, script, core in zip(('timm', 'ours'), (args.timm, ROOT / 'train.py'),
                                              cores[::-1] if number % 2 else cores, strict=True):
                    argv = ['--data-dir', f'{folder}/images', '--model', *model.split(), '--num-classes', '10',
                            '--img-size', str(size), '-b', str(batch), '--epochs', str(epochs), '-j', '0',
                            '--device', 'cpu', '--seed', '42', '--output', f'{folder}/output',
                            '--experiment', f'{kind}{number}', '--val-interval', '1000']
                    threads.append(threading.Thread(target=run, args=(kind, script, argv, core, results)))
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                if len(results) < 2:
                    sys.exit(1)
                rounds.append(results)
                print(name, {kind: [round(value, 2) for value in found] for kind, found in results.items()},
                      file=sys.stderr)
        rows.append([name, *summarize(rounds, 1), *summarize(rounds, 0)])
    print(f"""# Training speed against timm's own train.py

`python results/train_speed.py --timm PATH/train.py --rounds {args.rounds}`: the same model, images, options and seed (42) in
both, which run side by side, each on one of {os.cpu_count()} CPU cores ({platform.machine()}) with one thread; the cores are swapped every
round. timm {timm.__version__}, PyTorch {torch.__version__}. Medians of {args.rounds} rounds; the ratios, ours over timm's, are taken round by
round, with the smallest and the largest: above 1 is faster for images per second, below 1 for start-up, which is from
starting Python to the first step that is logged.

| model | timm, images/s | ours, images/s | ratio | timm, start-up s | ours, start-up s | ratio |
|---|---|---|---|---|---|---|""")  # noqa: E501
    for row in rows:
        print('| ' + ' | '.join(row) + ' |')


if __name__ == '__main__':
    main()
