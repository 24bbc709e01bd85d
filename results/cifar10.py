"""Accuracy of small models on CIFAR-10, over seeds, before and after fusing.

    python train.py --config recipes/cifar10_resnet20.yaml --model resnet20_asr_se --seed 42   # and so on
    python results/cifar10.py --data-dir FOLDER RUN [RUN ...]
    python results/cifar10.py table

writes cifar10.csv and cifar10.md beside this file, from the last checkpoint of each run: of the last epoch, since the
best one would have been chosen on the images that it is then tested on. FOLDER is CIFAR-10 as a folder of images, with
the test images in FOLDER/validation.
"""

import argparse
import copy
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from measuring import machine, number, read
from scipy import stats
from timm.data import create_dataset, create_loader

import timm_asr
from timm_asr.checkpoints.open import open_source
from timm_asr.engine.forms import compare
from timm_asr.engine.reports import as_markdown, write_results
from timm_asr.engine.summary import read_summary
from timm_asr.errors import BadInput, run_main
from timm_asr.models.counts import count_parameters

HERE = Path(__file__).parent
BASELINE = 'resnet20'
CONFIDENCE = 0.95


def measure(run: Path, images: Path) -> dict[str, Any]:
    """The row of one run: its last model on all test images in float32, unfused and fused.

    Raises:
        BadInput: The folder is not that of a run.
    """
    checkpoint = run / 'last.pth.tar'
    if not checkpoint.is_file():
        raise BadInput(f'{run} is not the folder of a run: it has no last.pth.tar')
    source = open_source(checkpoint)
    config = source.data_config or {}
    loader = create_loader(
        create_dataset('', root=str(images), split='validation'), batch_size=500, is_training=False,
        use_prefetcher=False, num_workers=0, **config)
    model = source.model.eval()
    fused = timm_asr.fold_asr(copy.deepcopy(model))
    found, = compare(model, [fused], loader, torch.device('cpu'))
    rows = read_summary(run / 'summary.csv')
    return {
        'model': source.facts['model'], 'seed': source.facts.get('seed'), 'epochs': len(rows),
        'images': found.images, 'top1': round(found.top1[0], 2), 'top1_fused': round(found.top1[1], 2),
        'logit_difference': f'{found.largest:.1e}', 'flipped': found.flipped,
        'best_epoch_top1': max(round(float(row['eval_top1']), 2) for row in rows),
        'train_loss': round(float(rows[-1]['train_loss']), 4),
        'parameters': count_parameters(model), 'parameters_fused': count_parameters(fused),
        'checkpoint_sha256': source.facts['source']['sha256'],
    }


def significance(rows: Sequence[dict[str, Any]]) -> tuple[float, int, float]:
    """Spread over seeds, pooled over the models: (standard deviation, degrees of freedom, half-width).

    The half-width is that of the confidence interval of a difference of two models' means, by the t distribution, for
    as many seeds as the model with the fewest has.
    """
    groups = [[row['top1'] for row in rows if row['model'] == name] for name in names_of(rows)]
    degrees = sum(len(group) - 1 for group in groups)
    if degrees < 1:
        return math.nan, 0, math.nan
    squares = sum(statistics.variance(group) * (len(group) - 1) for group in groups if len(group) > 1)
    pooled = math.sqrt(squares / degrees)
    fewest = min(map(len, groups))
    return pooled, degrees, float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees)) * pooled * math.sqrt(2 / fewest)


def names_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row['model'] for row in rows))


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each model: mean and spread, and the difference to the plain backbone."""
    half = significance(rows)[2]
    plain = [row['top1'] for row in rows if row['model'] == BASELINE]
    table = []
    for name in names_of(rows):
        own = [row for row in rows if row['model'] == name]
        top1 = [row['top1'] for row in own]
        difference = statistics.mean(top1) - statistics.mean(plain) if plain and name != BASELINE else None
        table.append({
            'model': name, 'seeds': len(own), 'top-1, %': f'{statistics.mean(top1):.2f}',
            'lowest to highest': f'{min(top1):.2f} to {max(top1):.2f}',
            'folded, %': f'{statistics.mean(row["top1_fused"] for row in own):.2f}',
            'over plain': '' if difference is None else f'{difference:+.2f}',
            'significant': '' if difference is None else 'yes' if abs(difference) > half else 'no',
            'parameters': own[0]['parameters'], 'folded parameters': own[0]['parameters_fused'],
        })
    return table


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    pooled, degrees, half = significance(rows)
    images = rows[0]['images']
    right = statistics.mean(row['top1'] for row in rows) / 100
    sampling = 100 * math.sqrt(right * (1 - right) / images)
    shown = [{key: value for key, value in row.items() if key != 'checkpoint_sha256'} for row in rows]
    return f"""# Small models on CIFAR-10

Commands, for each MODEL and SEED of the second table, at commit 78e82b2:

```
python train.py --config recipes/cifar10_resnet20.yaml --dataset '' --data-dir cifar10 --model MODEL --seed SEED \\
    --workers 0 --experiment MODEL-seedSEED
python results/cifar10.py --data-dir cifar10 output/train/*
```

where `cifar10` holds all of CIFAR-10 as a folder of images, 50,000 for training and {images:,} to test on.
Machine: {machine()}; PyTorch {torch.__version__}, timm {timm.__version__}, timm_asr {timm_asr.__version__};
bf16 autocast and channels_last in training, one thread a run, two runs at a time; float32 in the test.

Every figure is of the last epoch, since the best would have been chosen on the test images. "Folded" (`_fused`) is the
same network after `fold_asr`. The best run of each model ships in `timm_asr/weights`, with its log.

{as_markdown(summary(rows))}
Over the seeds of one model the standard deviation of top-1 is {pooled:.2f} points (pooled over the models,
{degrees} degrees of freedom). So two means differ significantly ({CONFIDENCE:.0%}, t distribution) beyond {half:.2f}
points; "significant" says which differences to the plain backbone do. That {images:,} images are a sample
alone gives each figure a standard error of {sampling:.2f} points. More seeds would tell smaller differences apart.

What the papers report for the full recipe (164 epochs, ResNet-164, CIFAR-10; theirs, not measured here): plain 92.97 %,
ASR(SE) 94.47 %. `recipes/cifar10_resnet164.yaml` is that recipe.

## Every run

`best_epoch_top1` is what choosing on the test images would have given, in the precision of training.

{as_markdown(shown)}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script with this command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('runs', nargs='+', metavar='RUN', help='folder of a run of train.py, or "table"')
    parser.add_argument('--data-dir', type=Path, help='CIFAR-10 as a folder of images')
    args = parser.parse_args(argv)
    table = HERE / 'cifar10.csv'
    if args.runs != ['table']:
        if args.data_dir is None or not (args.data_dir / 'validation').is_dir():
            raise BadInput('--data-dir must name a folder whose sub-folder validation holds the test images')
        rows = []
        for run in map(Path, args.runs):
            rows.append(measure(run, args.data_dir))
            print({key: rows[-1][key] for key in ('model', 'seed', 'top1', 'top1_fused')}, flush=True)
        rows.sort(key=lambda row: (row['model'].count('_'), row['model'], row['seed']))
        write_results(table, rows)
    rows = [{key: value if key in ('logit_difference', 'checkpoint_sha256') else number(value)
             for key, value in row.items()} for row in read(table)]
    (HERE / 'cifar10.md').write_text(markdown(rows), encoding='utf-8')
    print((HERE / 'cifar10.md').read_text(encoding='utf-8'))
    return 0


if __name__ == '__main__':
    sys.exit(run_main(main, 'cifar10.py'))
