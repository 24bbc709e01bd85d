"""The folded network as a folder that timm and transformers load."""

import copy
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from timm.data.model_config import resolve_input_data_config
from timm.models import get_model_args
from timm.models._hub import save_config_for_hf
from torch import nn

from ..asr.fold import fold_asr, has_asr
from ..checkpoints.names import CODE, CONFIG, KEY, METRICS, TRAINABLE, WEIGHTS
from ..checkpoints.open import as_source
from ..checkpoints.provenance import file_sha256, provenance_of
from ..checkpoints.source import Source, class_names, models_inside, name_of, to_float32
from ..checkpoints.trainable import CFG_KEYS
from ..inference.compare import random_images, same_function
from ..models.counts import count_parameters
from ..models.registry import plain_architecture
from .folded import check_written, needs_of, plain_arguments, refuse_inference_form, state_of, tag_of
from .place import files_in, put_in_place, refuse_taken, write_whole, written_aside

_CODE = Path(__file__).with_name(f'{CODE}.txt')
#: What transformers runs, if its user trusts it, for architectures that timm lacks.
_AUTO_MAP = {auto: f'{CODE.removesuffix(".py")}.{name}' for auto, name in (
    ('AutoModel', 'TimmAsrModel'), ('AutoModelForImageClassification', 'TimmAsrForImageClassification'))}


def save_fused(model: nn.Module | str | os.PathLike | Source, folder: str | os.PathLike,
               model_args: Mapping[str, Any] | None = None, *, use_ema: bool = False, keep_trainable: bool = False,
               data_config: Mapping[str, Any] | None = None, label_names: Sequence[str] | None = None,
               metrics: Mapping[str, Any] | None = None, provenance: Mapping[str, Any] | None = None,
               overwrite: bool = False, check: bool = True,
               report: Callable[[str, str], None] = lambda step, text: None) -> Path:
    """Fold a model's ASR and write what is left as a folder that timm loads.

    ::

        save_fused(model, 'folder')
        timm.create_model('local-dir:folder', pretrained=True)

    The weights are those of the plain architecture. Where timm has it (``resnet50``, ``vit_small_patch16_224``,
    ``repvgg_a0`` with its branches), timm and transformers alone load them. A CIFAR ResNet, or a network with gates in
    its blocks, needs ``import timm_asr`` first. The model itself is left as it is. The folder is written beside its
    place, loaded and compared there, and only then put in its place.

    Args:
        model: A model made by ``timm.create_model``, in whatever precision, layout and wrapper (averaged, DDP,
            compiled, a LightningModule); or the path of a checkpoint (also of timm's ``train.py``) or written folder.
        folder: Where ``model.safetensors`` and ``config.json`` go; made if absent.
        model_args: Constructor arguments of the plain architecture beyond those that timm remembers.
        use_ema: Take the averaged weights of a checkpoint.
        keep_trainable: Also write the model before folding, into the folder ``trainable`` inside, under its own name.
        data_config: What the images went through, in timm's words, where neither checkpoint nor model's cfg says it.
        label_names: A name for each class, in the order of the outputs.
        metrics: Figures to put into ``metrics.json``: ``top1``, ``top1_folded``, ... in percent.
        provenance: More entries of the section ``timm_asr`` in ``config.json``.
        overwrite: Replace an export in the folder.
        check: Load what was written before it is put in its place.
        report: Called with the name and the text of each step.

    Raises:
        ValueError: The model was not made by ``timm.create_model``, is a feature extractor or an inference form, does
            not fit the plain architecture, or does not load back to the same function. Nothing is written.
        BadInput: The checkpoint or folder cannot be read, or the folder holds an export or cannot be written.
    """
    source, folder = as_source(model, use_ema), Path(folder)
    name = name_of(source.model)
    if not name or getattr(source.model, 'frozen_from', None):
        raise ValueError(_why_unnamed(source.model))
    refuse_inference_form(source.model, name)
    refuse_taken(folder, overwrite, source.files)
    plain = plain_architecture(name)
    by_name = plain != name or getattr(source.model, 'asr_options', None)
    if keep_trainable and not (by_name and has_asr(source.model)):
        raise ValueError(f"This '{name}' has no ASR that could be made again: a trainable form is kept of models that "
                         'have ASR in their name, and of those by timm_asr.create_model(name, asr=...).')
    needs = needs_of(plain)
    reference = to_float32(copy.deepcopy(source.model)).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    folded = fold_asr(copy.deepcopy(reference))
    writer = _Writer(source.facts | dict(provenance or {}), dict(metrics or source.metrics or {}),
                     class_names(source, label_names), dict(data_config or source.data_config or {}), check, report)
    with torch.no_grad():
        relative = same_function(reference, folded, random_images(tuple(writer.data(reference)['input_size'])))
    parameters = f'{count_parameters(reference):,} parameters' + (
        f' become {count_parameters(folded):,}' if has_asr(reference) else ' without ASR')
    report('fold', f'{parameters}; logits on random images differ by {relative:.1g} of the largest')
    with written_aside(folder) as aside:
        for file, content in source.files.items():
            write_whole(aside / file, content)
        if keep_trainable:
            (aside / TRAINABLE).mkdir()
            writer.write(aside / TRAINABLE, reference, name, get_model_args(reference), ['timm_asr'])
        if writer.metrics:
            write_whole(aside / METRICS, json.dumps(writer.metrics, indent=2).encode() + b'\n')
        if needs:
            write_whole(aside / CODE, _CODE.read_bytes())
        writer.write(aside, folded, plain, {**plain_arguments(folded), **(model_args or {})}, needs)
        put_in_place(aside, folder)
    return folder


def _why_unnamed(model: nn.Module) -> str:
    kind, inside = type(model).__name__, models_inside(model)
    if getattr(model, 'frozen_from', None):
        return (f"This network was a '{model.frozen_from}' before its gates were frozen, and no registered name stands "
                'for what it is now: write it by timm_asr.export_onnx(model, FILE) or timm_asr.export_program(model, '
                'FILE), which need no name.')
    if inside:
        return (f'This {kind} cannot be saved by name; the models inside it can: pass '
                f'{" or ".join(f"model.{name}" for name in inside)}.')
    return (f'This {kind} cannot be saved by name: save_fused takes whole models made by timm.create_model (without '
            'features_only). timm_asr.export_onnx and timm_asr.export_program need no name.')


@dataclass
class _Writer:
    """Writes one model, folded or trainable, and has it loaded back."""

    facts: dict[str, Any]
    metrics: dict[str, Any]
    labels: list[str] | None
    data_config: dict[str, Any]
    check: bool
    report: Callable[[str, str], None]

    def write(self, folder: Path, model: nn.Module, architecture: str, args: Mapping[str, Any],
              needs: list[str]) -> None:
        """Write weights and configuration, and into it the list of what lies in the folder; load them, and compare."""
        write_whole(folder / WEIGHTS, save(state_of(model), metadata={'format': 'pt'}))
        trainable = folder.name == TRAINABLE
        tag = tag_of(self.facts, trainable)
        facts = {**self.facts, 'form': 'trainable' if trainable else 'folded', 'needs': needs,
                 'weights_sha256': file_sha256(folder / WEIGHTS),
                 'files': None if trainable else {n: file_sha256(folder / n) for n in sorted(files_in(folder))}}
        copied = copy.copy(model)  # shallow, with what timm reads set on the copy alone
        copied.__dict__ = {
            **model.__dict__, '_model_args': dict(args),
            'pretrained_cfg': {**_cfg(model), 'architecture': architecture, **({'tag': tag} if tag else {})}}
        root: dict[str, Any] = {KEY: provenance_of(facts, self.metrics)}
        if self.labels is not None:
            root['label_names'] = self.labels
        if needs and not trainable:
            root['auto_map'] = _AUTO_MAP
        try:
            save_config_for_hf(copied, str(folder / CONFIG), model_config=root, data_config=self.data_config)
        except (TypeError, ValueError) as error:
            raise ValueError(f"The configuration of this '{architecture}' cannot be written ({error}); pass other "
                             'values as model_args.') from None
        # The number of classes is at the root of the configuration: transformers refuses to be told twice.
        config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
        (config.get('model_args') or {}).pop('num_classes', None)
        write_whole(folder / CONFIG, json.dumps(config, indent=2).encode())
        if self.check:
            relative = check_written(folder, model, self.data(model), self.labels, trainable)
            self.report('check', f'{"the trainable form loads" if trainable else "loads"} by '
                                 f'{" and ".join(["timm", *needs]) if needs else "timm alone"}; logits differ by '
                                 f'{relative:.1g} of the largest')

    def data(self, model: nn.Module) -> dict[str, Any]:
        """What the loaded model's data configuration must be, in JSON's types."""
        return json.loads(json.dumps(resolve_input_data_config(model, self.data_config, pretrained_cfg=_cfg(model))))


def _cfg(model: nn.Module) -> dict[str, Any]:
    """What timm's configuration says of these weights, and not of the stock model's training or publication."""
    keys = CFG_KEYS - {'tag', 'label_names', 'label_descriptions'}
    return {key: value for key, value in model.pretrained_cfg.items() if key in keys}  # type: ignore[union-attr]
