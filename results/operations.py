"""What attention costs a training step on an accelerator: operations and kernels to launch, bytes to keep, and times.

    python results/operations.py                                    # all that this machine can measure
    python results/operations.py counts-resnet164 cpu-resnet164     # some sections; the figures of the others stay
    python results/operations.py --asr FOLDER --dianet FOLDER --ram FOLDER   # the authors' code beside it

Writes operations.csv and operations.md beside this file after each figure. A FOLDER is a checkout of the authors' code
(https://github.com/zhongshsh/ASR, https://github.com/gbup-group/DIANet, https://github.com/zhongshsh/RAM). With a CUDA
device there are six times more: eager, compiled and CUDA graphs, in float32 and bfloat16.
"""

import importlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from counting import count_step
from measuring import SETTINGS_TEXT, machine, number, quartiles, read, restart, section_parser
from quiet import QUIET, interleave_quietly
from torch import nn

import timm_asr
from timm_asr.engine.bench import saved_for_backward
from timm_asr.engine.reports import as_markdown, write_results
from timm_asr.engine.versus import Spread, interleave, ratios

HERE = Path(__file__).parent
SEED = 42
SIZE = {'resnet164': 32, 'resnet50': 224, 'vit_small': 224}
BATCH = {'resnet164': 32, 'resnet50': 8, 'vit_small': 4}
CUDA_BATCH = {'resnet164': 128, 'resnet50': 64, 'vit_small': 64}
PLAIN = {'vit_small': 'vit_small_patch16_224'}
METHODS = ('asr_se', 'asr_ie', 'asr_srm', 'asr_eca', 'asr_spa', 'se', 'eca', 'ie', 'ras', 'spe', 'dia_lstm',
           'dia_lstm_light')
#: The same blocks, two a stage: compiling a deep network takes minutes.
SHALLOW: dict[str, dict[str, Any]] = {
    'resnet164': {'layers': (2, 2, 2)}, 'resnet50': {'layers': (2, 2, 2, 2)}, 'vit_small': {'depth': 2}}
#: Their ResNet-164: the option that names the folder, the module that builds it, its options.
AUTHORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "authors' SE": ('asr', 'models.resnet.resnet', {'module': 'senet'}),
    "authors' ASR(SE)": ('asr', 'models.resnet.resnet', {'module': 'senet', 'use_asr': True}),
    "authors' RAM (RAS)": ('ram', 'model.ram.ram', {}),
    "authors' DIA-LSTM": ('dianet', 'models.cifar.dia_resnet.dia_resnet', {}),
}
#: Most operations and CPU time over plain's.
GOALS: dict[tuple[str, str], tuple[float, float | None]] = {
    **{('resnet164', f'asr_{gate}'): (1.15, 1.01) for gate in ('se', 'ie', 'srm', 'eca', 'spa')},
    ('resnet50', 'asr_se'): (1.15, 1.01), ('vit_small', 'asr_se'): (1.15, 1.01), ('vit_small', 'asr_eca'): (1.15, 1.01),
    ('resnet164', 'se'): (1.6, 1.23), ('resnet164', 'ras'): (1.6, 1.23), ('resnet164', 'dia_lstm'): (2.0, 1.3),
    ('resnet164', 'spe'): (2.0, 1.35),
}
PRECISIONS = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
MODES: dict[str, Callable[[nn.Module], Any]] = {
    'eager': lambda model: model, 'compiled': torch.compile,
    'graphs': lambda model: torch.compile(model, mode='reduce-overhead')}


def authors(folder: Path, place: str, device: str, shallow: bool, **options: Any) -> nn.Module:
    """A network of the authors. Both of their packages are called `models`, so the last one is forgotten first."""
    # They ask for CUDA, in forward too; here they get what is measured.
    torch.Tensor.cuda = lambda self, *args, **kwargs: self.to(device)  # type: ignore[method-assign,assignment]
    for name in [name for name in sys.modules if name.split('.')[0] in ('model', 'models')]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        module, _, build = place.rpartition('.')
        model = getattr(importlib.import_module(module), build)(
            depth=20 if shallow else 164, num_classes=10, block_name='bottleneck', **options)
    finally:
        sys.path.pop(0)
    return model.to(device)


def builders(args: Any, backbone: str) -> dict[str, Callable[..., nn.Module]]:
    """Variant -> a function of the device, and of whether it shall be shallow, that builds it."""
    def ours(name: str) -> Callable[..., nn.Module]:
        return lambda device, shallow=False: timm.create_model(
            name, num_classes=10, **SHALLOW[backbone] if shallow else {}).to(device)

    def theirs(folder: Path, place: str, options: dict[str, Any]) -> Callable[..., nn.Module]:
        return lambda device, shallow=False: authors(folder, place, device, shallow, **options)

    found = {'plain': ours(PLAIN.get(backbone, backbone))}
    found |= {method: ours(f'{backbone}_{method}') for method in METHODS if timm.is_model(f'{backbone}_{method}')}
    if backbone == 'resnet164':
        found |= {name: theirs(getattr(args, option), place, options)
                  for name, (option, place, options) in AUTHORS.items() if getattr(args, option)}
    return {name: build for name, build in found.items() if name == 'plain' or name in (args.variants or found)}


class Table:
    """A row for each backbone and variant, written whenever it changes."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows = {(row['backbone'], row['variant']): {key: number(text) for key, text in row.items()}
                     for row in read(file)}

    def add(self, backbone: str, variant: str, **figures: Any) -> None:
        row = self.rows.setdefault((backbone, variant), {'backbone': backbone, 'variant': variant})
        row.update(figures)
        variants = ['plain', *METHODS, *AUTHORS]
        ordered = sorted(self.rows.values(), key=lambda r: (list(SIZE).index(r['backbone']),
                                                            variants.index(r['variant'])))
        write_results(self.file, ordered)
        self.file.with_suffix('.md').write_text(markdown(ordered))


def count(args: Any, table: Table, backbone: str) -> None:
    """Operations and kept bytes: on the meta device, which computes nothing."""
    x = torch.empty(BATCH[backbone], 3, SIZE[backbone], SIZE[backbone], device='meta')
    for name, build in builders(args, backbone).items():
        with torch.device('meta'):
            model = build('meta').train()
            # As on an accelerator: many parameters in one operation.
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=True)
            count_step(model, x, optimizer)  # momentum is set up, constants are made
            found = count_step(model, x, optimizer)
            saved = saved_for_backward(lambda model=model: loss_of(model, model, x), model)
        parts = {key: calls.total() for key, calls in found._asdict().items()}
        table.add(backbone, name, **parts, operations=found.total, saved_mb=round(saved / 1e6, 2))


@contextmanager
def generated_code() -> Iterator[list[str]]:
    """The code that inductor generates while this lasts; its C++ kernels are not built, and do nothing."""
    from torch._inductor import async_compile, config, graph

    code: list[str] = []
    pybinding, save = async_compile.AsyncCompile.cpp_pybinding, graph.GraphLowering.save_output_code
    async_compile.AsyncCompile.cpp_pybinding = lambda *_: lambda *_: None  # type: ignore[assignment]
    graph.GraphLowering.save_output_code = staticmethod(code.append)  # type: ignore[assignment]
    try:
        with config.patch(force_disable_caches=True):
            yield code
    finally:
        async_compile.AsyncCompile.cpp_pybinding = pybinding  # type: ignore[method-assign]
        graph.GraphLowering.save_output_code = save  # type: ignore[method-assign]


def kernels(args: Any, table: Table, backbone: str) -> None:
    """Calls of kernels in the code that inductor generates for forward and backward."""
    x = torch.randn(2, 3, SIZE[backbone], SIZE[backbone])
    end = time.perf_counter() + args.budget
    for name, build in builders(args, backbone).items():
        if time.perf_counter() > end:
            break
        torch._dynamo.reset()
        model = build('cpu', shallow=True).train()
        # Kernels that do nothing leave positions of a maximum without meaning, at which a backward pass may break off.
        with generated_code() as code, suppress(RuntimeError):
            loss_of(torch.compile(model), model, x).backward()
        assert len(code) >= 2, f'{name}: no code of both passes'
        text = '\n'.join(code)
        fused = len(re.findall(r'^ +cpp_fused\w*\(', text, re.MULTILINE))
        library = len(re.findall(r'^ +(?:\w+ = )?(?:extern_kernels\.|torch\.ops\.(?!inductor))', text, re.MULTILINE))
        table.add(backbone, name, fused_kernels=fused, library_kernels=library, kernels=fused + library)


def loss_of(run: Any, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    labels = torch.zeros(len(x), dtype=torch.long, device=x.device)
    loss = F.cross_entropy(run(x).float(), labels)
    extra = timm_asr.auxiliary_loss(model)
    return loss + extra if extra.requires_grad else loss


def clock(args: Any, table: Table, backbone: str, device: str, mode: str, precision: str) -> None:
    """Times of a training step, all variants in turns in one process."""
    batch = (CUDA_BATCH if device == 'cuda' else BATCH)[backbone]
    x = torch.randn(batch, 3, SIZE[backbone], SIZE[backbone], device=device).to(memory_format=torch.channels_last)
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64  # the variants share the code of their forward methods

    def make(build: Callable[..., nn.Module]) -> Callable[[], None]:
        model = build(device).to(memory_format=torch.channels_last).train()
        run = MODES[mode](model)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

        def step() -> None:
            if mode == 'graphs':
                torch.compiler.cudagraph_mark_step_begin()
            optimizer.zero_grad()
            with torch.autocast(device, PRECISIONS[precision], enabled=precision != 'float32'):
                loss = loss_of(run, model, x)
            loss.backward()
            optimizer.step()

        return step

    torch.manual_seed(SEED)
    steps = {name: make(build) for name, build in builders(args, backbone).items()}
    turns = interleave_quietly if device == 'cpu' else interleave
    times = turns(steps, rounds=200, iters=1 if device == 'cpu' else 10, warmup=2 if mode == 'eager' else 4,
                  budget=args.budget, device=device)
    prefix = 'cpu' if device == 'cpu' else f'{mode}_{precision}'
    for name, ratio in ratios(times, 'plain').items():
        found = {'machine': machine(), 'rounds': len(times[name]),
                 'ms': round(1000 * Spread.of(times[name]).median, 2), **quartiles(ratio)}
        table.add(backbone, name, **{f'{prefix}_{key}': value for key, value in found.items()})


CUDA = [f'{mode}-{precision}' for precision in PRECISIONS for mode in MODES]
SECTIONS = [f'{what}-{backbone}' for backbone in SIZE for what in ('counts', 'kernels', 'cpu', *CUDA)]


def measure(args: Any, table: Table, section: str) -> None:
    what, backbone = section.rsplit('-', 1)
    if what in CUDA:
        clock(args, table, backbone, 'cuda', *what.split('-'))
    elif what == 'cpu':
        clock(args, table, backbone, 'cpu', 'eager', 'float32')
    else:
        {'counts': count, 'kernels': kernels}[what](args, table, backbone)


def over(row: dict[str, Any], plain: dict[str, Any], key: str) -> Any:
    return round(row[key] / plain[key], 3) if row.get(key) not in (None, '') and plain.get(key) else ''


def markdown(rows: list[dict[str, Any]]) -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'
    parts = [f"""# What attention costs a training step, on an accelerator too

Command: `python results/operations.py --asr FOLDER --dianet FOLDER --ram FOLDER` (seed {SEED}; it sets
`{SETTINGS_TEXT}` itself).
GPU: {gpu}; PyTorch {torch.__version__}, timm {timm.__version__}, timm_asr
{timm_asr.__version__}; ten classes, 32x32 for resnet164, 224x224 for the others.

An *operation* is a call of ATen below autograd, views left out: what an accelerator has to launch. `operations` is
forward and backward; the optimizer's step (SGD, all parameters in one operation, as PyTorch does on accelerators) is
beside it. `saved` compares the bytes that autograd keeps for the backward pass; what ASR's vectors, computed together,
keep under hooks of their own is not among them (0.2 % in resnet50_asr_spa). Both are counted on the meta device,
where SPE pools as on an accelerator (on a CPU it takes other operations, fewer), and do not depend on the machine.
`kernels` is what `torch.compile` launches in forward and backward: calls of generated kernels and of library functions
in the code that inductor writes for a CPU. It is counted in a network of the same blocks, two a stage (ViT: two), since
compiling a deep one takes minutes; an empty field was not counted yet. "over" is over the plain
backbone's. "authors'" is their published code.

A training step for the CPU's time is forward, loss, backward and an SGD update, float32, `channels_last`; all variants
of a table ran in turns in one process, and `over plain` is the median over rounds, with its quartiles. Rounds in which
other processes took more than {QUIET:.0%} of the processors ran again while there was time.
"""]
    by_name = {(row['backbone'], row['variant']): row for row in rows}
    wanted = []
    for (backbone, variant), limits in GOALS.items():
        row, plain = by_name.get((backbone, variant), {}), by_name.get((backbone, 'plain'), {})
        values = (over(row, plain, 'operations'), row.get('cpu_over_plain', ''))
        for what, value, limit in zip(('operations', 'CPU time'), values, limits, strict=True):
            if value != '' and limit:
                wanted.append({'model': f'{backbone}_{variant}', 'what': what, 'times plain, at most': limit,
                               'measured': value, 'met': 'yes' if value <= limit else 'no'})
    parts.append('## Goals\n\n' + as_markdown(wanted))
    for backbone in SIZE:
        own = [row for row in rows if row['backbone'] == backbone]
        if not own:
            continue
        plain = by_name[backbone, 'plain']
        parts.append(f'## {backbone}: counts\n\n' + as_markdown([{
            'variant': row['variant'], **{key: row.get(key, '') for key in ('forward', 'backward', 'optimizer')},
            'operations over': over(row, plain, 'operations'),
            **{key: row.get(key, '') for key in ('fused_kernels', 'library_kernels')},
            'kernels over': over(row, plain, 'kernels'), 'saved MB': row.get('saved_mb', ''),
            'saved over': over(row, plain, 'saved_mb')} for row in own]))
        for prefix, title in [('cpu', f'CPU, batch {BATCH[backbone]}'),
                              *((c.replace('-', '_'), f'GPU, {c}, batch {CUDA_BATCH[backbone]}') for c in CUDA)]:
            timed = [row for row in own if row.get(f'{prefix}_ms') not in (None, '')]
            if timed:
                title += f', {timed[0][f"{prefix}_machine"]}'
                parts.append(f'## {backbone}: {title}\n\n' + as_markdown([{
                    'variant': row['variant'], **{key.replace('_', ' '): row[f'{prefix}_{key}'] for key in (
                        'rounds', 'ms', 'over_plain', 'q1', 'q3')}} for row in timed]))
    return '\n'.join(parts)


def main() -> None:
    parser = section_parser(__doc__, SECTIONS)
    parser.add_argument('--budget', type=float, default=90, metavar='SECONDS',
                        help='a section of times starts no round, one of kernels no model, after so long (default: 90)')
    parser.add_argument('--variants', nargs='+', metavar='VARIANT', help='these and plain alone, such as asr_se spe')
    for option in ('asr', 'dianet', 'ram'):
        parser.add_argument(f'--{option}', type=Path, metavar='FOLDER', help="checkout of the authors' code")
    args = parser.parse_args()
    for option, place, _ in AUTHORS.values():
        folder = getattr(args, option)
        if folder and not (folder / place.rpartition('.')[0].replace('.', '/')).with_suffix('.py').is_file():
            sys.exit(f'operations.py: --{option} {folder} is not a checkout of the authors\' code')
    table = Table(HERE / 'operations.csv')
    possible = [s for s in SECTIONS if torch.cuda.is_available() or s.rsplit('-', 1)[0] not in CUDA]
    for section in args.sections or possible:
        print(section, flush=True)
        measure(args, table, section)
    print(table.file.with_suffix('.md').read_text())


if __name__ == '__main__':
    restart()
    main()
