"""What freezing the gates of a small trained network costs, by threshold, with and without new BatchNorm statistics.

    python results/freeze.py [--model resnet20_se] [--epochs 12] [--seeds 0 1 2]

Trains the model on the digits of this package (real handwritten digits, 1,438 to train on and 359 to test on), measures
its gates on the training images, and writes freeze.md and the plot freeze.png beside this file. A minute a seed.
"""

import argparse
import copy
import statistics
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from measuring import machine
from timm.data import create_loader

import timm_asr
from timm_asr.data import Digits
from timm_asr.figures import plot_frozen

HERE = Path(__file__).parent
THRESHOLDS = (None, 0.1, 0.05, 0.02)


def digits(split: str, **kwargs: Any) -> Any:
    return create_loader(Digits(split), (3, 16, 16), 64, use_prefetcher=False, num_workers=0, **kwargs)


def train(name: str, epochs: int, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model(name)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for images, labels in digits('train', is_training=True, no_aug=True):
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def top1(model: torch.nn.Module) -> float:
    right = [(model.eval()(images).argmax(1) == labels).float() for images, labels in digits('validation')]
    return 100 * torch.cat(right).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='resnet20_se')
    parser.add_argument('--epochs', type=int, default=12)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[tuple[float | None, bool], list[tuple[float, ...]]] = {}
    before = []
    for seed in args.seeds:
        model = train(args.model, args.epochs, seed)
        before.append(top1(model))
        for threshold in THRESHOLDS:
            for recalibrate in (False, True):
                frozen = copy.deepcopy(model)
                report = timm_asr.freeze_attention(
                    frozen, digits('train'), threshold=threshold, recalibrate_bn=recalibrate)
                row = (len(report.frozen), report.change.mean, report.change.same_top1, top1(frozen))
                figures.setdefault((threshold, recalibrate), []).append(row)
                if threshold is None and not recalibrate and seed == args.seeds[0]:
                    plot_frozen(report.gates, HERE / 'freeze.png',
                                f'{args.model} on digits, seed {seed}: weights of each gate')
                print(seed, threshold, recalibrate, row, flush=True)
    rows = ['| threshold | BatchNorm anew | gates frozen | logits moved by | same prediction, % | top-1, % |',
            '|---|---|---:|---:|---:|---:|']
    for (threshold, recalibrate), values in figures.items():
        count, moved, same, accuracy = (statistics.mean(column) for column in zip(*values, strict=True))
        rows.append(f'| {threshold or "none"} | {"yes" if recalibrate else "no"} | {count:.1f} of {len(report.gates)} '
                    f'| {moved:.3f} | {same:.2f} | {accuracy:.2f} |')
    text = f'''# Freezing the gates of a small trained network

`python results/freeze.py --model {args.model} --epochs {args.epochs} --seeds {" ".join(map(str, args.seeds))}`, PyTorch
{torch.__version__.partition("+")[0]}, {machine()}. Means over the seeds. Gates are measured, and logits compared, on
the 1,438 training images; top-1 is that of the 359 others, of which one is 0.28 %. With its gates the network
has {statistics.mean(before):.2f} % ({", ".join(f"{value:.2f}" for value in before)}).

''' + '\n'.join(rows) + '''

![deviations and means of the channel weights](freeze.png)
'''
    (HERE / 'freeze.md').write_text(text)


if __name__ == '__main__':
    main()
