"""ONNX files and torch.export programs: of the inference form, and run against the model before they are kept."""

import contextlib
import copy
import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from timm.data.model_config import resolve_input_data_config
from torch import nn

from ..checkpoints.open import as_source
from ..checkpoints.read import first_line
from ..checkpoints.source import Source, class_names, to_float32
from ..errors import BadInput
from ..inference.compare import Comparison, random_images, tolerance
from ..inference.reparameterize import is_foldable, reparameterize

_LARGEST = 2**31 - 2**20  # a protocol buffer ends at 2 GiB
METADATA = 'timm_asr'


class ExportedAsTrained(UserWarning):
    """A model was exported although its inference form would do the same for less."""


def export_onnx(model: nn.Module | str | os.PathLike, file: str | os.PathLike, *, use_ema: bool = False,
                as_trained: bool = False, fold_bn: bool = False, any_size: bool = False, opset: int | None = None,
                images: Iterable[torch.Tensor] = (), overwrite: bool = False) -> Path:
    """Write a model as ONNX, in its inference form, for batches of any size; it is left as it is.

    onnxruntime runs the file on random images and on those given, and its logits are compared with those of the model
    as it was, before the file is kept. Its input is ``images`` (B, C, H, W), float32 and normalized; its output
    ``logits`` (B, N). Under the key ``timm_asr`` its metadata say in JSON what the images go through and the names of
    the classes.

    Args:
        model: As :func:`timm_asr.save_fused` takes it; also one that is in its inference form already.
        file: Where to write.
        use_ema: Take the averaged weights of a checkpoint.
        as_trained: Leave attention and branches as they are, which is slower; a warning says so.
        fold_bn: Fold each BatchNorm into its convolution too.
        any_size: Take images of any height and width, not only of the model's own, where the network can.
        opset: Version of the ONNX operators; PyTorch's choice if None.
        images: Batches (B, C, H, W) to compare on as well, float32, normalized.
        overwrite: Replace a file.

    Raises:
        BadInput: The packages of the extra ``onnx`` are missing, the model cannot be loaded or exported, or the file
            is there already.
        ValueError: The logits differ. Nothing is written.
    """
    return write_onnx(as_source(model, use_ema), file, as_trained, fold_bn, any_size, opset, images, overwrite)


def export_program(model: nn.Module | str | os.PathLike, file: str | os.PathLike, *, use_ema: bool = False,
                   as_trained: bool = False, fold_bn: bool = False, any_size: bool = False,
                   images: Iterable[torch.Tensor] = (), overwrite: bool = False) -> Path:
    """Write a model as a program of ``torch.export`` (``.pt2``), which PyTorch runs without this package or timm.

    Arguments, result and errors are those of :func:`export_onnx`; ``torch.export.load(file).module()`` is the model.
    """
    return write_program(as_source(model, use_ema), file, as_trained, fold_bn, any_size, images, overwrite)


def write_onnx(source: Source, file: str | os.PathLike, as_trained: bool = False, fold_bn: bool = False,
               any_size: bool = False, opset: int | None = None, images: Iterable[torch.Tensor] = (),
               overwrite: bool = False, report: Callable[[str, str], None] = lambda step, text: None) -> Path:
    """:func:`export_onnx` for a source that is open already."""
    file = Path(file)
    check_packages()
    with _aside(file, overwrite) as part:
        reference, ready, example = _ready(source, as_trained, fold_bn, report)
        if sum(t.numel() * t.element_size() for t in ready.state_dict().values()) > _LARGEST:
            raise BadInput('the weights take more than the 2 GiB that one ONNX file can hold; use --torch-export')
        proto = _to_onnx(ready, example, any_size, opset)
        for graph in (proto.graph, *proto.functions):
            for node in graph.node:
                del node.metadata_props[:]  # they name files of this machine
                node.doc_string = ''
        entry = proto.metadata_props.add()
        entry.key, entry.value = METADATA, json.dumps(_metadata(source))
        part.write_bytes(proto.SerializeToString())
        import onnx
        import onnxruntime
        onnx.checker.check_model(str(part))
        session = onnxruntime.InferenceSession(str(part), providers=['CPUExecutionProvider'])

        def run(batch: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(session.run(None, {'images': batch.numpy()})[0])
        _compare(reference, run, example, any_size, images, 'onnxruntime', report)
    return file


def write_program(source: Source, file: str | os.PathLike, as_trained: bool = False, fold_bn: bool = False,
                  any_size: bool = False, images: Iterable[torch.Tensor] = (), overwrite: bool = False,
                  report: Callable[[str, str], None] = lambda step, text: None) -> Path:
    """:func:`export_program` for a source that is open already."""
    file = Path(file)
    with _aside(file, overwrite) as part:
        reference, ready, example = _ready(source, as_trained, fold_bn, report)
        with _explained(ready, any_size), torch.no_grad():
            program = torch.export.export(ready, (example,), dynamic_shapes=(_free(any_size),))
        for module in program.graph_module.modules():
            for node in getattr(getattr(module, 'graph', None), 'nodes', ()):
                node.meta.pop('stack_trace', None)  # it names files of this machine
        torch.export.save(program, part, extra_files={f'{METADATA}.json': json.dumps(_metadata(source))})
        module = torch.export.load(part).module()
        _compare(reference, module, example, any_size, images, 'torch.export', report)
    return file


def check_packages() -> None:
    """Raise ``BadInput``, which says which packages are missing for ONNX, if any is."""
    missing = [name for name in ('onnx', 'onnxruntime', 'onnxscript') if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(f'ONNX needs the package{"s" * (len(missing) > 1)} {" and ".join(missing)}: pip install '
                       f'{" ".join(missing)}')


@contextlib.contextmanager
def _aside(file: Path, overwrite: bool) -> Iterator[Path]:
    """A file beside ``file``, renamed to it in the end if all went well."""
    if file.is_dir():
        raise BadInput(f'{file} is a folder, and a file is to be written there')
    if file.exists() and not overwrite:
        raise BadInput(f'{file} is there already; choose another name, or replace it (--force, or overwrite=True)')
    try:
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
        # An archive of PyTorch has its file's name inside.
        with tempfile.TemporaryDirectory(prefix=f'.{file.stem}.', suffix='.part', dir=file.absolute().parent) as folder:
            yield Path(folder) / file.name
            os.replace(Path(folder) / file.name, file)
    except OSError as error:
        raise BadInput(f'{file} cannot be written ({error.strerror or error})') from None


def _ready(source: Source, as_trained: bool, fold_bn: bool,
           report: Callable[[str, str], None]) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """(the model as it was, the one to export, images (2, C, H, W)), in eval mode in float32 on the CPU."""
    reference = to_float32(copy.deepcopy(source.model))
    reference.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if as_trained:
        if is_foldable(reference):
            warnings.warn('The model is exported as it was trained: attention and branches that its inference form has '
                          'not stay in the file and cost time.', ExportedAsTrained, stacklevel=4)
        ready = copy.deepcopy(reference)
    else:
        ready = reparameterize(copy.deepcopy(reference), fold_bn=fold_bn)
        before, after = (sum(p.numel() for p in m.parameters()) for m in (reference, ready))
        report('fold', f'{before:,} parameters become {after:,}')
    for parameter in ready.parameters():
        parameter.requires_grad_(False)
    shape = _metadata(source)['input_size']
    return reference, ready, random_images(tuple(shape))


def _metadata(source: Source) -> dict[str, Any]:
    """What the images go through and what the classes are called."""
    data = resolve_input_data_config(source.model, args=dict(source.data_config or {}))
    names = class_names(source)
    return {'model': source.facts.get('model'), **data, **({'label_names': names} if names else {})}


def _free(any_size: bool) -> dict[int, Any]:
    """The dimensions of the images that may have any value."""
    if not any_size:
        return {0: torch.export.Dim('batch')}
    # Sides have bounds that the network sets (no smaller than its kernels), which torch.export finds by itself.
    free = getattr(torch.export.Dim, 'DYNAMIC', torch.export.Dim.AUTO)
    return dict.fromkeys((0, 2, 3), free)


@contextlib.contextmanager
def _explained(model: nn.Module, any_size: bool) -> Iterator[None]:
    """One sentence for what torch.export cannot follow; its errors have no common class."""
    try:
        yield
    except Exception as error:
        name, reason = type(model).__name__, first_line(error)
        raise BadInput(
            f'this {name} cannot be exported for images of any size ({reason}); leave out --any-size (any_size), or '
            'name another size (--img-size)' if any_size else f'torch.export cannot follow this {name} ({reason})',
        ) from None


def _to_onnx(model: nn.Module, example: torch.Tensor, any_size: bool, opset: int | None) -> Any:
    """The ONNX model."""
    with _explained(model, any_size), warnings.catch_warnings(), _quiet('torch.onnx', 'onnxscript', 'onnx_ir'):
        warnings.simplefilter('ignore')
        program = torch.onnx.export(
            model, (example,), dynamo=True, verbose=False, dynamic_shapes=(_free(any_size),), opset_version=opset,
            input_names=['images'], output_names=['logits'])
    assert program is not None
    proto = program.model_proto
    written = next(one.version for one in proto.opset_import if one.domain in ('', 'ai.onnx'))
    if opset not in (None, written):
        raise BadInput(f'PyTorch writes this {type(model).__name__} with version {written} of the ONNX operators, not '
                       f'{opset}; leave out --opset')
    return proto


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


@torch.inference_mode()
def _compare(reference: nn.Module, run: Callable[[torch.Tensor], torch.Tensor], example: torch.Tensor, any_size: bool,
             images: Iterable[torch.Tensor], by: str, report: Callable[[str, str], None]) -> None:
    """Compare logits on random batches of one and three, of another size if any is free, and on real ones.

    ``ValueError``: they differ by more than rounding and another order of summation explain, or a prediction changes.
    """
    allowed = 10 * tolerance(reference)
    found = {kind: Comparison(allowed) for kind in ('random', 'real')}
    random = random_images(tuple(example.shape[1:]), 3)
    batches = [('random', random[:1]), ('random', random)]
    if any_size:  # not square, and larger
        height, width = (side + 32 for side in example.shape[2:])
        batches.append(('random', random_images((example.shape[1], height, width + 32), 2)))
    for kind, batch in [*batches, *(('real', batch) for batch in images)]:
        found[kind].update(reference(batch), run(batch.contiguous()))
        if not found[kind].same:
            raise ValueError(f'What {by} computes differs by {found[kind].relative:.1e} of the largest logit on {kind} '
                             f'images (allowed {allowed:.0e}), and {found[kind].flipped} predictions change; it is not '
                             'kept.')
    text = f'logits by {by} differ by {found["random"].relative:.1g} of the largest on random images, in batches of ' \
           '1 and 3'
    real = found['real']
    report('check', text + (f', and by {real.relative:.1g} on {real.images} real ones' if real.images else ''))
