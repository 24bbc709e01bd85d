"""What attention costs where networks are deployed: PyTorch, ONNX Runtime in float and int8, OpenVINO.

    python results/deploy.py [--cifar10 FILE] [--budget SECONDS] [--files FOLDER] [SECTION ...]

Writes deploy.csv and deploy.md beside this file; with sections named, the rows of the others stay. FILE holds CIFAR-10
as arrays (x_train, x_test, y_test; uint8), on which the accuracy of the weights that come with the package is measured;
without it that section is left out. FOLDER keeps the exported files for another run. Timed as `results/speed.py` does:
one process, in turns, pinned threads.
"""

import copy
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import timm
import torch
from attention_speed import stir, torch_step
from measuring import SETTINGS_TEXT, columns, machine, quartiles, restart, section_parser, update
from torch import nn

import timm_asr
from timm_asr.engine.reports import as_markdown
from timm_asr.engine.versus import Spread, interleave, ratios
from timm_asr.export.int8 import onnx_top1, quantize_onnx

TABLE = Path(__file__).with_suffix('.csv')
SEED, BACKBONE, REPVGG = 42, 'resnet83', 'repvgg_a0'
BATCHES = {1: 20, 64: 1}  # batch size -> steps a round
GATES = ('se', 'eca', 'ie', 'srm', 'spe', 'ras', 'dia_se', 'dia_lstm')
CLIENTS = ('eager', 'torch.compile', 'ONNX Runtime, literal', 'ONNX Runtime, inference form', 'ONNX Runtime',
           'ONNX Runtime, int8', 'OpenVINO')
#: Compiling takes minutes a network.
COMPILED = ('plain', 'asr_se', 'se', 'se, frozen', REPVGG, f'{REPVGG}, asr_se')
ACCURACY = ('resnet20', 'resnet20_se', 'resnet20_asr_se')
CORES = (0, 1)
Step = Callable[[], object]


def networks(backbone: str) -> Iterator[tuple[str, nn.Module]]:
    """What is compared, in eval mode, by the name of its row. Weights are random, statistics are moved."""
    for gate in ('', 'asr_se', *GATES):
        model = stir(timm.create_model(f'{backbone}_{gate}'.rstrip('_'))).eval()
        yield gate or 'plain', model
        if gate == 'se':
            frozen = copy.deepcopy(model)
            timm_asr.freeze_attention(frozen, torch.randn(32, 3, 32, 32).split(16))
            yield 'se, frozen', frozen
    yield REPVGG, stir(timm.create_model('repvgg_a0_cifar')).eval()
    yield f'{REPVGG}, asr_se', stir(timm.create_model('repvgg_a0_cifar_asr_se')).eval()


def ort_step(file: Path, images: torch.Tensor) -> Step:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its other thread would inherit the core that libgomp pins this one to (cores are counted from 1), and those of
    # sessions that wait would spin on that core.
    options.add_session_config_entry('session.intra_op_thread_affinities', '2')
    options.add_session_config_entry('session.force_spinning_stop', '1')
    session = onnxruntime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
    return lambda: session.run(None, {'images': images.numpy()})


def openvino_step(file: Path, images: torch.Tensor) -> Step:
    os.sched_setaffinity(0, CORES)  # as above; OpenVINO pins threads by itself
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(file), 'CPU', {'INFERENCE_NUM_THREADS': torch.get_num_threads(),
                                                                 'INFERENCE_PRECISION_HINT': 'f32'})
    compiled([images.numpy()])
    os.sched_setaffinity(0, CORES[:1])
    return lambda: compiled([images.numpy()])


def write_graphs(folder: Path, name: str, model: nn.Module) -> tuple[Path, Path, Path, Path]:
    """The ONNX file as it is written, in int8, with the gate as it was trained, and in the inference form."""
    file, quantized, literal, simplified = (
        folder / f'{name}{end}.onnx' for end in ('', '.int8', '.literal', '.form'))
    if not literal.exists():  # the same for every batch size
        timm_asr.export_onnx(model, file, fold_bn=True, overwrite=True)
        quantize_onnx(file, quantized, [torch.randn(16, 3, 32, 32)])
        timm_asr.export_onnx(timm_asr.reparameterize(copy.deepcopy(model), fold_bn=True), simplified,
                             overwrite=True)
        for unit in model.modules():
            unit.form_in_onnx = False
        timm_asr.export_onnx(model, literal)
    return file, quantized, literal, simplified


def graphs_section(folder: Path, budget: float) -> list[dict[str, Any]]:
    """Each gate's three graphs in ONNX Runtime, in turns with each other."""
    rows = []
    for batch, iters in BATCHES.items():
        images, steps = torch.randn(batch, 3, 32, 32), {}
        for name, model in networks(BACKBONE):
            if name in GATES:
                file, _, literal, simplified = write_graphs(folder, name, model)
                steps |= {(name, 'literal'): ort_step(literal, images), (name, 'form'): ort_step(simplified, images),
                          (name, 'written'): ort_step(file, images)}
        times = interleave(steps, rounds=60, iters=iters, warmup=2, budget=3 * budget)
        for name in GATES:
            over = ratios({kind: taken for (gate, kind), taken in times.items() if gate == name}, 'literal')
            rows += [{'network': name, 'batch_size': batch, 'rounds': len(times[name, 'literal']), 'graph': kind,
                      **quartiles(over[kind], 'median')} for kind in ('form', 'written')]
    return rows


def speed_section(folder: Path, budget: float, batch: int) -> list[dict[str, Any]]:
    torch.manual_seed(SEED)
    images = torch.randn(batch, 3, 32, 32)
    last = images.to(memory_format=torch.channels_last)
    steps: dict[str, dict[str, Step]] = {client: {} for client in CLIENTS}
    for name, model in networks(BACKBONE):
        form = timm_asr.reparameterize(copy.deepcopy(model), fold_bn=True)
        form.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        trained = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        steps['eager'][f'{name}, as trained'] = torch_step(trained, last)
        steps['eager'][name] = torch_step(form, last)
        if name in COMPILED:
            steps['torch.compile'][name] = torch_step(torch.compile(copy.deepcopy(form)), last)
        file, quantized, literal, simplified = write_graphs(folder, name, model)
        steps['ONNX Runtime'][name] = ort_step(file, images)
        steps['OpenVINO'][name] = openvino_step(file, images)
        steps['ONNX Runtime, int8'][name] = ort_step(quantized, images)
        steps['ONNX Runtime, literal'][name] = ort_step(literal, images)
        steps['ONNX Runtime, inference form'][name] = ort_step(simplified, images)
    rows = []
    for client, own in steps.items():
        os.sched_setaffinity(0, CORES if client == 'OpenVINO' else CORES[:1])
        times = interleave(own, rounds=200, iters=BATCHES[batch], warmup=3, budget=budget)
        over = ratios({name: t for name, t in times.items() if REPVGG not in name}, 'plain') | ratios(
            {name: t for name, t in times.items() if REPVGG in name}, REPVGG)
        rows += [{'client': client, 'network': name, 'batch_size': batch, 'rounds': len(taken),
                  'ms': round(1000 * Spread.of(taken).median, 3), **quartiles(over[name])}
                 for name, taken in times.items()]
        print(as_markdown(rows[-len(times):]))
    return rows


def accuracy_section(folder: Path, file: Path) -> list[dict[str, Any]]:
    with np.load(file) as arrays:
        train, test, labels = (torch.from_numpy(arrays[key]) for key in ('x_train', 'x_test', 'y_test'))
    rows = []
    for name in ACCURACY:
        model = timm.create_model(f'{name}.cifar10', pretrained=True).eval()
        mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ('mean', 'std'))

        def prepared(images: torch.Tensor, mean: torch.Tensor = mean, std: torch.Tensor = std) -> torch.Tensor:
            return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std

        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(SEED))[:512]
        calibration = prepared(train[chosen]).split(64)
        pairs = list(zip(prepared(test).split(500), labels.flatten().split(500), strict=True))
        variants = {name: model}
        if name.endswith('_se') and 'asr' not in name:
            frozen = copy.deepcopy(model)
            timm_asr.freeze_attention(frozen, calibration)
            variants[f'{name}, frozen'] = frozen
        for variant, network in variants.items():
            onnx = timm_asr.export_onnx(network, folder / 'float.onnx', fold_bn=True, overwrite=True)
            int8 = quantize_onnx(onnx, folder / 'int8.onnx', calibration)
            rows.append({'network': variant, 'images': len(test), 'top1_float': round(onnx_top1(onnx, pairs), 2),
                         'top1_int8': round(onnx_top1(int8, pairs), 2)})
            print(rows[-1])
    return rows


def markdown(rows: list[dict[str, str]]) -> str:
    parts = [f"""# What attention costs where networks are deployed

Command: `python results/deploy.py --cifar10 FILE` (seed {SEED}; it sets `{SETTINGS_TEXT}` itself).
Machine: {machine()}; PyTorch {torch.__version__}, timm {timm.__version__}, ONNX Runtime {onnxruntime.__version__},
OpenVINO {openvino.__version__.partition('-')[0]}, timm_asr {timm_asr.__version__}; {BACKBONE}, 32x32, float32 unless
int8 is named.

The networks of a table ran in turns in one process. `over_plain` is the median over rounds of a network's time divided
by that of the plain backbone, {BACKBONE} or {REPVGG} with merged branches, in the same client and round; `q1` and `q3`
are its quartiles. Absolute times on a shared machine mean little. In PyTorch a network is in its inference form with
norms folded (`reparameterize(fold_bn=True)`). "ONNX Runtime" runs what `export_onnx(fold_bn=True)` writes, whose gates
are in that form only where their class says `form_in_onnx`; "inference form" has it everywhere, "literal" nowhere.
"as trained" is the network as it was trained. Each client has a thread on each core; those of ONNX Runtime's sessions
that wait do not spin.
"""]
    for batch in BATCHES:
        for client in CLIENTS:
            own = [row for row in rows if (row['section'], row['client']) == (f'speed-{batch}', client)]
            if own:
                keys = ('network', 'rounds', 'ms', 'over_plain', 'q1', 'q3')
                parts.append(f'## {client}, batch {batch}\n\n{columns(own, keys)}')
    if own := [row for row in rows if row['section'] == 'graphs']:
        parts.append('## The graphs of each gate in ONNX Runtime, over its literal one\n\n'
                     'Taken in turns with each other. "form" is the inference form, "written" what `export_onnx` '
                     'writes.\n\n'
                     + columns(own, ('network', 'batch_size', 'rounds', 'graph', 'median', 'q1', 'q3')))
    if own := [row for row in rows if row['section'] == 'accuracy']:
        parts.append('## Accuracy on the test images of CIFAR-10, by ONNX Runtime, in percent\n\n'
                     'Calibrated on 512 training images. The weights are those that come with the package.\n\n'
                     + columns(own, ('network', 'images', 'top1_float', 'top1_int8')))
    return '\n'.join(parts)


def main() -> None:
    sections = [*(f'speed-{batch}' for batch in BATCHES), 'graphs', 'accuracy']
    parser = section_parser(__doc__, sections)
    parser.add_argument('--cifar10', type=Path, metavar='FILE')
    parser.add_argument('--files', type=Path, metavar='FOLDER')
    parser.add_argument('--budget', type=float, default=30.0, help='seconds that the rounds of one table may take')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = args.files or Path(name)
        folder.mkdir(exist_ok=True)
        for section in args.sections or sections:
            if section == 'accuracy':
                if args.cifar10 is None:
                    print('Accuracy is left out; --cifar10 FILE measures it.')
                    continue
                fresh = accuracy_section(folder, args.cifar10)
            elif section == 'graphs':
                fresh = graphs_section(folder, args.budget)
            else:
                fresh = speed_section(folder, args.budget, int(section.partition('-')[2]))
            update(TABLE, section, fresh, sections, markdown)


if __name__ == '__main__':
    restart()
    main()
