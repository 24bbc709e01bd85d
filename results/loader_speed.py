"""Images per second of training with images in memory over timm's loader, alone and two runs at a time.

    OMP_NUM_THREADS=1 python results/loader_speed.py --data cifar10.npz

writes loader_speed.csv and loader_speed.md beside this file. Both loaders read the same archive: timm's decodes and
augments image by image, in this process or in a worker. So the ratio leaves out what reading PNG files would cost.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import machine

from timm_asr.engine import memory
from timm_asr.engine.commands.train import parse_args
from timm_asr.engine.reports import as_markdown, write_results
from timm_asr.engine.training import Run
from timm_asr.errors import BadInput, run_main

HERE = Path(__file__).parent
LOADERS = {'in memory': ['--workers', '0'], "timm's": ['--workers', '0'], "timm's, a worker": ['--workers', '1']}
TURNS, STEPS, BATCH = 5, 8, 128


def _measure(data: str, model: str, loader: str, barrier: Any, results: Any) -> None:
    """Images per second of each turn, in a process of its own; its turns start with those of the other."""
    torch.set_num_threads(1)
    if loader != 'in memory':
        memory.LARGEST = 0
    with tempfile.TemporaryDirectory() as folder:
        argv = ['--config', 'cifar10_resnet20', '--dataset', f'npz:{data}', '--model', model, '--train-images', '10000',
                '-b', str(BATCH), '--device', 'cpu', '--output', folder, *LOADERS[loader]]
        training = Run(parse_args(argv), argv).training
        training.task.get_trainable_module().train()
        batches = iter(training.loaders.train)
        for turn in range(-1, TURNS):  # the first warms up
            barrier.wait()
            start = time.perf_counter()
            for _ in range(STEPS):
                images, target = next(batches)
                with training.amp_autocast():
                    loss = training.task(images.contiguous(memory_format=torch.channels_last), target)['loss']
                loss.backward()
                training.optimizer.step()
                training.optimizer.zero_grad()
            if turn >= 0:
                results.put(STEPS * BATCH / (time.perf_counter() - start))


def speed(data: str, model: str, loader: str, runs: int) -> float:
    """Median over turns of the images per second of all runs together."""
    context = multiprocessing.get_context('spawn')
    barrier, results = context.Barrier(runs), context.Queue()
    processes = [context.Process(target=_measure, args=(data, model, loader, barrier, results)) for _ in range(runs)]
    for process in processes:
        process.start()
    found = [results.get(timeout=600) for _ in range(runs * TURNS)]
    for process in processes:
        process.join()
    return runs * statistics.median(found)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    return f"""# Images in memory

Command: `python results/loader_speed.py --data cifar10.npz`; it draws its images with the seed 42, as train.py does.
{machine()}; PyTorch {torch.__version__}, one thread a run, batch {BATCH}, bf16 autocast, channels_last.
Images per second of training steps on CIFAR-10 from one archive, median of {TURNS} turns of {STEPS} steps; over timm's
is the ratio to timm's loader without a worker. A worker needs a core of its own, which two runs on two cores have not.

{as_markdown(rows)}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script with this command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--data', required=True, help='archive with x_train, y_train, x_test and y_test')
    args = parser.parse_args(argv)
    if not Path(args.data).is_file():
        raise BadInput(f'--data {args.data}: no such file')
    rows = []
    for model in ('resnet20', 'resnet83'):
        for runs in (1, 2):
            found = {loader: speed(str(Path(args.data).absolute()), model, loader, runs) for loader in LOADERS}
            for loader, value in found.items():
                rows.append({'model': model, 'runs at a time': runs, 'loader': loader, 'images/s': round(value),
                             "over timm's": round(value / found["timm's"], 2)})
                print(rows[-1], flush=True)
    write_results(HERE / 'loader_speed.csv', rows)
    (HERE / 'loader_speed.md').write_text(markdown(rows), encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(run_main(main, 'loader_speed.py'))
