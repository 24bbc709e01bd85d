"""What attention in the blocks costs, before and after `reparameterize()`, on this machine's CPU.

    python results/attention_speed.py [--dianet FOLDER] [SECTION ...]

Writes attention_speed.csv and attention_speed.md beside this file; with sections named, the rows of the others stay.
FOLDER is a checkout of the authors' code (https://github.com/gbup-group/DIANet), measured beside; without it that row
is left out. Measured as `results/speed.py` does: one process, in turns, pinned threads, memory kept.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from measuring import SETTINGS_TEXT, columns, machine, quartiles, restart, section_parser, update
from operations import authors
from torch import nn

import timm_asr
from timm_asr.engine.bench import saved_for_backward
from timm_asr.engine.versus import Spread, interleave, ratios
from timm_asr.inference.compare import relative_difference

TABLE = Path(__file__).with_suffix('.csv')
SEED = 42
BUDGET = 90.0  # seconds that the rounds of a section may take
GATES: tuple[str, ...] = ('se', 'ie', 'eca', 'ras', 'spe', 'dia_se', 'dia_lstm', 'dia_lstm_light')
COMPILED = ('se', 'ras', 'dia_lstm')  # compiling one takes a minute
TRAINED = ('se', 'ras', 'spe', 'dia_lstm', 'dia_lstm_light')  # kept memory is not shared between models
AUTHORS = "authors' DIANet"
SAME = 'plain, BN folded, channels_last'


@torch.no_grad()
def stir(model: nn.Module) -> nn.Module:
    """Move statistics and parameters away from their initial values, at which some gates do nothing."""
    torch.manual_seed(SEED)
    for name, p in model.named_parameters():
        if p.ndim == 1:
            p.add_(torch.empty_like(p).uniform_(-0.2, 0.2)).mul_(0.5 if name.endswith('bn3.weight') else 1)
    for name, b in model.named_buffers():
        if b.is_floating_point():
            b.add_(torch.empty_like(b).uniform_(-0.1, 0.1) if name.endswith('mean') else torch.rand_like(b) * 0.2)
    return model


def torch_step(model: nn.Module, images: torch.Tensor) -> Callable[[], torch.Tensor]:
    return torch.inference_mode()(lambda: model(images))


def dianet(folder: Path) -> nn.Module:
    """The authors' ResNet-164 with DIA-LSTM."""
    return authors(folder, 'models.cifar.dia_resnet.dia_resnet', 'cpu', shallow=False)


def infer_section(
        args: Any, backbone: str, batch: int, iters: int, gates: Sequence[str] = GATES, compiled: bool = False,
) -> list[dict[str, Any]]:
    size = timm.get_pretrained_cfg(backbone).input_size[-1]
    x = torch.randn(batch, 3, size, size)
    last = x.to(memory_format=torch.channels_last)
    steps: dict[str, Callable[[], torch.Tensor]] = {}
    errors: dict[str, float] = {}

    def add(name: str, model: nn.Module, images: torch.Tensor, expected: torch.Tensor | None = None) -> torch.Tensor:
        steps[name] = torch_step(model, images)
        y = steps[name]()
        if expected is not None:
            errors[name] = relative_difference(expected, y)
        return y

    channels_last = {'memory_format': torch.channels_last}
    plain = stir(timm.create_model(backbone)).eval()
    y = add('plain', plain, x)
    folded = timm_asr.reparameterize(copy.deepcopy(plain), fold_bn=True).to(**channels_last)
    add(SAME, folded, last, y)
    if compiled:
        add('plain, compiled', torch.compile(plain), x, y)
        add(f'{SAME}, compiled', torch.compile(folded), last, y)
    for gate in gates:
        model = stir(timm.create_model(f'{backbone}_{gate}')).eval()
        y = add(gate, model, x)
        if not compiled:
            add(f'{gate}, reparameterized', copy.deepcopy(model).reparameterize(), x, y)
        final = copy.deepcopy(model).reparameterize(fold_bn=True).to(**channels_last)
        add(f'{gate}, BN folded, channels_last', final, last, y)
        if compiled:
            add(f'{gate}, compiled', torch.compile(model), x, y)
            add(f'{gate}, BN folded, channels_last, compiled', torch.compile(final), last, y)
    if args.dianet and backbone == 'resnet164' and not compiled:
        add(AUTHORS, stir(dianet(args.dianet)).eval(), x)
    rows = timed(steps, iters, 'plain', SAME, backbone=backbone, what='inference', batch_size=batch)
    for row in rows:
        row['error'] = f'{errors[row["variant"]]:.0e}' if row['variant'] in errors else ''
    return rows


def train_section(args: Any, backbone: str, batch: int) -> list[dict[str, Any]]:
    size = timm.get_pretrained_cfg(backbone).input_size[-1]
    images, labels = torch.randn(batch, 3, size, size), torch.randint(10, (batch,))
    last = images.to(memory_format=torch.channels_last)
    steps: dict[str, Callable[[], object]] = {}
    saved: dict[str, int] = {}

    def add(name: str, model: nn.Module, x: torch.Tensor) -> None:
        model = model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

        def loss() -> torch.Tensor:
            return F.cross_entropy(model(x), labels) + timm_asr.auxiliary_loss(model)

        def step() -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        steps[name], saved[name] = step, saved_for_backward(loss, model)

    for gate in ('', *TRAINED):
        name = gate or 'plain'
        model = timm.create_model(f'{backbone}_{gate}'.rstrip('_'), num_classes=10)
        add(f'{name}, channels_last', model.to(memory_format=torch.channels_last), last)
    if args.dianet and backbone == 'resnet164':
        add(AUTHORS, dianet(args.dianet), images)
        add(f'{AUTHORS}, channels_last', dianet(args.dianet).to(memory_format=torch.channels_last), last)
    rows = timed(steps, 1, 'plain, channels_last', 'plain, channels_last', backbone=backbone, what='training step',
                 batch_size=batch)
    for row in rows:
        row['saved_ratio'] = round(saved[row['variant']] / saved['plain, channels_last'], 3)
    return rows


def timed(
        steps: dict[str, Any], iters: int, first: str, second: str, **about: Any) -> list[dict[str, Any]]:
    times = interleave(steps, rounds=200, iters=iters, warmup=1, budget=BUDGET)
    over_first, over_second = ratios(times, first), ratios(times, second)
    return [{
        **about, 'variant': name, 'rounds': len(own), 'steps_a_round': iters,
        'ms': round(1000 * Spread.of(own).median, 2),
        **quartiles(over_first[name]),
        'over_treated': round(over_second[name].median, 3),
    } for name, own in times.items()]


SECTIONS: dict[str, Callable[[Any], list[dict[str, Any]]]] = {
    'infer-resnet164-128': lambda args: infer_section(args, 'resnet164', 128, 1),
    'infer-resnet164-1': lambda args: infer_section(args, 'resnet164', 1, 10),
    'infer-resnet50-8': lambda args: infer_section(args, 'resnet50', 8, 1),
    'compiled-resnet164-128': lambda args: infer_section(args, 'resnet164', 128, 1, COMPILED, compiled=True),
    'compiled-resnet164-1': lambda args: infer_section(args, 'resnet164', 1, 10, COMPILED, compiled=True),
    'train-resnet164-32': lambda args: train_section(args, 'resnet164', 32),
    'train-resnet50-8': lambda args: train_section(args, 'resnet50', 8),
}
INFER_COLUMNS = ('variant', 'rounds', 'ms', 'over_plain', 'q1', 'q3', 'over_treated', 'error')
TRAIN_COLUMNS = ('variant', 'rounds', 'ms', 'over_plain', 'q1', 'q3', 'saved_ratio')


def markdown(rows: list[dict[str, Any]]) -> str:
    parts = [f"""# What attention costs, before and after `reparameterize()`

Command: `python results/attention_speed.py --dianet FOLDER` (seed {SEED}; it sets `{SETTINGS_TEXT}` itself).
Machine: {machine()}; PyTorch {torch.__version__}, timm {timm.__version__}, timm_asr {timm_asr.__version__}; float32,
random images, 32x32 for resnet164 and 224x224 for resnet50.

All variants of a table ran in turns in one process. `ms` is the median over rounds of one step; `over_plain` is the
median over rounds of the time divided by that of the plain backbone in the same round, `q1` and `q3` are its quartiles.
`over_treated` divides by the plain backbone with the same treatment, the row "plain, BN folded, channels_last".
`error` is the largest difference of the logits to those of the same model as it was trained, over the largest logit.
Absolute times on a shared machine mean little.

A name alone is the model as it was trained, channels first. "reparameterized" is `model.reparameterize()`; "BN folded,
channels_last" is `model.reparameterize(fold_bn=True).to(memory_format=torch.channels_last)`; "compiled" is
`torch.compile` of these, in its default mode. "{AUTHORS}" is the code
of https://github.com/gbup-group/DIANet as published. A training step is forward, loss, backward and an SGD update;
there `saved_ratio` compares the bytes that autograd keeps for the backward pass.
"""]
    for section in SECTIONS:
        own = [row for row in rows if row['section'] == section]
        if own:
            first = own[0]
            title = f'{first["backbone"]}, {first["what"]}, batch {first["batch_size"]}'
            title += ', with torch.compile' * section.startswith('compiled')
            keys = TRAIN_COLUMNS if section.startswith('train') else INFER_COLUMNS
            parts.append(f'## {title}\n\n{columns(own, keys)}')
    return '\n'.join(parts)


def main() -> None:
    parser = section_parser(__doc__, SECTIONS)
    parser.add_argument('--dianet', type=Path, metavar='FOLDER', help="checkout of the authors' code")
    args = parser.parse_args()
    if args.dianet and not (args.dianet / 'models' / 'cifar' / 'dia_resnet.py').is_file():
        sys.exit(f'attention_speed.py: {args.dianet} is not a checkout of https://github.com/gbup-group/DIANet')
    if not args.dianet:
        print("The authors' code is left out; --dianet FOLDER measures it too.")
    for section in args.sections or SECTIONS:
        update(TABLE, section, SECTIONS[section](args), SECTIONS, markdown)
    print(TABLE.with_suffix('.md').read_text())


if __name__ == '__main__':
    restart()
    main()
