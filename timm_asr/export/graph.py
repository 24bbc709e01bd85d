"""ONNX files and torch.export programs: run against the model before they are kept."""

import contextlib
import copy
import importlib.util
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_input_data_config
from torch import nn

from ..checkpoints.open import as_source
from ..checkpoints.read import first_line
from ..checkpoints.source import Source, class_names, to_float32
from ..errors import BadInput
from ..gates.gate import ChannelGate
from ..gates.shared import SharedUnit
from ..inference.compare import Comparison, random_images, tolerance
from ..inference.reparameterize import reparameterize
from ..models.counts import count_parameters

METADATA = 'timm_asr'
Run = Callable[[torch.Tensor], torch.Tensor]


def export_onnx(model: nn.Module | str | os.PathLike | Source, file: str | os.PathLike, *, use_ema: bool = False,
                fold_bn: bool = False, any_size: bool = False, images: Iterable[torch.Tensor] = (),
                overwrite: bool = False,
                report: Callable[[str, str], None] = lambda step, text: None) -> Path:
    """Write a model as ONNX, folded and merged, for batches of any size; it is left as it is.

    Gates that stay are written as trained, which ONNX Runtime runs no slower, or in their inference form where their
    class says ``form_in_onnx``. onnxruntime runs the file on random images and on those given, and its logits are
    compared with those of the model as it was, before the file is kept. Its input is ``images`` (B, C, H, W), float32
    and normalized; its output ``logits`` (B, N). Under the key ``timm_asr`` its metadata say in JSON what the images go
    through and the names of the classes.

    Args:
        model: As :func:`timm_asr.save_fused` takes it; also one that is in its inference form, and stays in it.
        file: Where to write.
        use_ema: Take the averaged weights of a checkpoint.
        fold_bn: Fold each BatchNorm into its convolution too.
        any_size: Take images of any height and width, not only of the model's own, where the network can.
        images: Batches (B, C, H, W) to compare on as well, float32, normalized.
        overwrite: Replace a file.
        report: Called with the name and the text of each step.

    Raises:
        BadInput: The packages of the extra ``onnx`` are missing, the model cannot be loaded or exported, or the file
            is there already.
        ValueError: The logits differ. Nothing is written.
    """
    check_packages()
    return _export(_write_onnx, 'onnxruntime', as_source(model, use_ema), Path(file), fold_bn, any_size, images,
                   overwrite, report)


def export_program(model: nn.Module | str | os.PathLike | Source, file: str | os.PathLike, *, use_ema: bool = False,
                   fold_bn: bool = False, any_size: bool = False, images: Iterable[torch.Tensor] = (),
                   overwrite: bool = False,
                   report: Callable[[str, str], None] = lambda step, text: None) -> Path:
    """Write a model's inference form as a program of ``torch.export`` (``.pt2``), which PyTorch alone runs.

    Arguments, result and errors are those of :func:`export_onnx`; ``torch.export.load(file).module()`` is the model.
    """
    return _export(_write_program, 'torch.export', as_source(model, use_ema), Path(file), fold_bn, any_size, images,
                   overwrite, report)


def check_packages() -> None:
    """Raise ``BadInput``, which says which packages are missing for ONNX, if any is."""
    missing = [name for name in ('onnx', 'onnxruntime', 'onnxscript') if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(f'ONNX needs what is not installed: pip install {" ".join(missing)}')


def _export(write: Callable[..., Run], by: str, source: Source, file: Path, fold_bn: bool, any_size: bool,
            images: Iterable[torch.Tensor], overwrite: bool, report: Callable[[str, str], None]) -> Path:
    """What both formats have in common; ``write`` writes a file and gives what runs it."""
    if file.is_dir():
        raise BadInput(f'{file} is a folder, and a file is to be written there')
    if file.exists() and not overwrite:
        raise BadInput(f'{file} is there already; choose another name, or replace it (--force, or overwrite=True)')
    reference = to_float32(copy.deepcopy(source.model))
    # torch.export.save warns of channels_last weights and takes them for parts of others.
    reference.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    ready = copy.deepcopy(reference)
    for module in ready.modules() if by == 'onnxruntime' else ():
        if isinstance(module, ChannelGate | SharedUnit) and not module.form_in_onnx:
            module.inference_form = lambda *_, **__: None  # type: ignore[assignment,method-assign]
    ready = reparameterize(ready, fold_bn=fold_bn)
    report('fold', f'{count_parameters(reference):,} parameters become {count_parameters(ready):,}')
    ready.requires_grad_(False)
    data, names = resolve_input_data_config(source.model, args=dict(source.data_config or {})), class_names(source)
    about = {'model': source.facts.get('model'), **data, **({'label_names': names} if names else {})}
    example = random_images(tuple(data['input_size']))
    # Sides have bounds that the network sets (no smaller than its kernels), which torch.export finds by itself.
    free = getattr(torch.export.Dim, 'DYNAMIC', torch.export.Dim.AUTO)
    sizes = (dict.fromkeys((0, 2, 3), free) if any_size else {0: torch.export.Dim('batch')},)
    try:
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
        # An archive of PyTorch has its file's name inside.
        with tempfile.TemporaryDirectory(prefix=f'.{file.stem}.', suffix='.part', dir=file.absolute().parent) as folder:
            part = Path(folder) / file.name
            try:
                run = write(ready, example, sizes, part, json.dumps(about))
            except OSError:
                raise
            except Exception as error:  # what torch.export cannot follow; its errors have no common class
                hint = '; leave out --any-size (any_size), or name another size (--img-size)' if any_size else ''
                raise BadInput(f'this {type(ready).__name__} cannot be exported{" for images of any size" * any_size} '
                               f'({first_line(error)}){hint}') from None
            _compare(reference, run, example, any_size, images, by, report)
            os.replace(part, file)
    except OSError as error:
        raise BadInput(f'{file} cannot be written ({error.strerror or error})') from None
    return file


def _write_onnx(model: nn.Module, example: torch.Tensor, sizes: Any, file: Path, about: str) -> Run:
    import onnx
    import onnxruntime
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter('ignore')
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.WARNING)
        program = torch.onnx.export(
            model, (example,), dynamo=True, verbose=False, dynamic_shapes=sizes, input_names=['images'],
            output_names=['logits'])
    proto = program.model_proto  # type: ignore[union-attr]
    for graph in (proto.graph, *proto.functions):
        for node in graph.node:
            del node.metadata_props[:]  # they name files of this machine
            node.doc_string = ''
    shapes = [value.type.tensor_type.shape.dim for value in (
        *proto.graph.input, *proto.graph.output, *proto.graph.value_info)]
    # torch.export calls free sizes s77 and the like, and refuses names for those whose bounds it finds.
    names = {size.dim_param: name for size, name in zip(shapes[0], ('batch', '', 'height', 'width'), strict=True)}
    for size in (size for shape in shapes for size in shape if size.dim_param):
        size.dim_param = re.sub(r'\w+', lambda found: names.get(found[0], found[0]), size.dim_param)
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA, about
    file.write_bytes(proto.SerializeToString())
    onnx.checker.check_model(str(file))
    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    return lambda batch: torch.from_numpy(session.run(None, {'images': batch.numpy()})[0])


def _write_program(model: nn.Module, example: torch.Tensor, sizes: Any, file: Path, about: str) -> Run:
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=sizes)
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, 'graph', None), 'nodes', ()):
            node.meta.pop('stack_trace', None)  # it names files of this machine
    torch.export.save(program, file, extra_files={f'{METADATA}.json': about})
    return torch.export.load(file).module()


@torch.inference_mode()
def _compare(reference: nn.Module, run: Run, example: torch.Tensor, any_size: bool, images: Iterable[torch.Tensor],
             by: str, report: Callable[[str, str], None]) -> None:
    """Compare logits on random batches of one and three, of another size if any is free, and on real ones.

    ``ValueError``: they differ by more than rounding and another order of summation explain, or a prediction changes.
    """
    allowed = 10 * tolerance(reference)
    found = {kind: Comparison(allowed) for kind in ('random', 'real')}
    channels, height, width = example.shape[1:]
    random = random_images((channels, height, width), 3)
    batches = [random[:1], random, *([random_images((channels, height + 32, width + 64))] if any_size else ())]
    for kind, batch in [*(('random', batch) for batch in batches), *(('real', batch) for batch in images)]:
        found[kind].update(reference(batch), run(batch.contiguous()))
        if not found[kind].same:
            raise ValueError(f'What {by} computes differs by {found[kind].relative:.1e} of the largest logit on {kind} '
                             f'images (allowed {allowed:.0e}), and {found[kind].flipped} predictions change; it is not '
                             'kept.')
    real = found['real']
    on_real = f', and by {real.relative:.1g} on {real.images} real ones' if real.images else ''
    report('check', f'logits by {by} differ by {found["random"].relative:.1g} of the largest on random images, in '
                    f'batches of 1 and 3{on_real}')
