"""Fused weights as a folder that timm loads."""

import copy
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from timm.data.model_config import resolve_input_data_config
from timm.models import get_model_args
from timm.models._hub import save_config_for_hf
from torch import nn

from ..asr.vector import has_asr
from ..checkpoints.source import Source, as_source, class_names, name_of, to_float32, trainable_of
from ..inference.compare import random_images, relative_difference, same_function, tolerance
from ..models.registry import plain_architecture
from .check import FreshProcess, needs_of
from .folded import (
    check_fit,
    data_slug,
    fold,
    plain_arguments,
    refuse_inference_form,
    state_of,
    tag_of,
)
from .place import (
    CONFIG,
    METRICS,
    TRAINABLE,
    WEIGHTS,
    check_place,
    put_in_place,
    refuse_other,
    write_whole,
    written_aside,
)
from .provenance import KEY, file_sha256, provenance

# They describe the training set-up or the publication of the stock model, not these weights.
_FOREIGN = ('tag', 'license', 'paper_ids', 'paper_name', 'origin_url', 'description', 'notes', 'custom_load',
            'test_input_size', 'test_crop_pct', 'test_pool_size', 'label_names', 'label_descriptions')
DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}


@dataclass
class Options:
    """How a folder is written; :func:`save_fused` says what each means."""

    model_args: Mapping[str, Any] | None = None
    keep_trainable: bool = False
    data_config: Mapping[str, Any] | None = None
    label_names: Sequence[str] | None = None
    metrics: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    tag: str | None = None
    dtype: str = 'float32'
    overwrite: bool = False
    check: bool = True
    report: Callable[[str, str], None] = lambda step, text: None


def save_fused(
        model: nn.Module | str | os.PathLike,
        folder: str | os.PathLike,
        model_args: Mapping[str, Any] | None = None,
        *,
        use_ema: bool = False,
        keep_trainable: bool = False,
        data_config: Mapping[str, Any] | None = None,
        label_names: Sequence[str] | None = None,
        metrics: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        tag: str | None = None,
        dtype: str = 'float32',
        overwrite: bool = False,
        check: bool = True,
) -> Path:
    """Fold a model's ASR and write it as a folder that timm loads, by ``create_model('local-dir:FOLDER', True)``.

    The weights are those of the plain architecture: stock timm alone loads them where timm has it (``resnet50``,
    ``vit_small_patch16_224``, ``repvgg_a0`` with its branches); a CIFAR ResNet, or one with gates in its blocks, needs
    ``import timm_asr`` first. The model itself is left as it is. The folder is written aside, loaded in a fresh process
    and compared there, and only then put in its place.

    Args:
        model: A model made by ``timm.create_model``, in whatever precision, layout and wrapper (averaged, DDP,
            compiled); or the path of a training checkpoint, of this package or of timm's ``train.py``; or of a folder
            that was written before.
        folder: Where ``model.safetensors`` and ``config.json`` go; made if absent.
        model_args: Constructor arguments of the plain architecture beyond those that timm remembers.
        use_ema: Take the averaged weights of a checkpoint.
        keep_trainable: Also write the unfused model, into the folder ``trainable`` inside, under its own name.
        data_config: What the images went through (``input_size``, ``mean``, ``std``, ``crop_pct``, ``crop_mode``,
            ``interpolation``), where neither the checkpoint nor the model's cfg says it.
        label_names: A name for each class, in the order of the outputs.
        metrics: Figures to put into ``metrics.json``: ``top1``, ``top1_fused``, ... in percent.
        provenance: More entries of the section ``timm_asr`` in ``config.json``.
        tag: What the weights were trained on, for the pretrained tag; by default the data set, where it is known.
        dtype: ``float32``; ``float16`` and ``bfloat16`` halve the file, and load as float32 of these values.
        overwrite: Replace other weights in the folder.
        check: Load what was written in a fresh process before it is put in its place, which takes some seconds.

    Returns:
        The folder.

    Raises:
        ValueError: The model was not made by ``timm.create_model``, is a feature extractor or an inference form, does
            not fit the plain architecture, or does not load back to the same function. Nothing is written.
        BadInput: The checkpoint or folder cannot be read, or the folder holds other weights or cannot be written.
    """
    source = as_source(model, use_ema)
    return write_fused(source, folder, Options(
        model_args, keep_trainable, data_config, label_names, metrics, provenance or {}, tag, dtype, overwrite, check))


def write_fused(source: Source, folder: str | os.PathLike, options: Options) -> Path:
    """:func:`save_fused` for a source that is open already."""
    folder, name = Path(folder), name_of(source.model)
    if not name:
        raise ValueError(
            f'This {type(source.model).__name__} cannot be saved by name: save_fused takes whole models made by '
            'timm.create_model (without features_only).')
    if options.dtype not in DTYPES:
        raise ValueError(f'dtype={options.dtype!r} is not known; it takes {", ".join(DTYPES)}.')
    refuse_inference_form(source.model, name)
    refuse_other(folder, source.facts, options.overwrite)
    plain = plain_architecture(name)
    trainable = _trainable(source, name) if options.keep_trainable else None
    needs = needs_of(plain)
    with ExitStack() as stack:
        process = stack.enter_context(FreshProcess()) if options.check else None
        reference = to_float32(copy.deepcopy(source.model))
        reference.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        fused = fold(reference)
        args = {**plain_arguments(fused), **(options.model_args or {})}
        state = state_of(fused)
        check_fit(plain, args, state)
        writer = _Writer(source, options, process)
        aside = stack.enter_context(written_aside(folder))
        for file, content in source.files.items():
            write_whole(aside / file, content)
        writer.write(aside, reference, fused, plain, args, needs, state)
        if writer.metrics:
            write_whole(aside / METRICS, json.dumps(writer.metrics, indent=2).encode() + b'\n')
        check_place(aside, folder, options.overwrite)
        writer.check()
        if trainable is not None:
            unfused = to_float32(copy.deepcopy(trainable))
            unfused.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            (aside / TRAINABLE).mkdir()
            writer.write(aside / TRAINABLE, unfused, unfused, name_of(trainable), get_model_args(unfused), ['timm_asr'])
            writer.check(trainable=True)
        put_in_place(aside, folder)
    return folder


def _trainable(source: Source, name: str) -> nn.Module:
    model = trainable_of(source)
    if model is None:
        raise ValueError(f"This '{name}' has no ASR vectors to keep: its exported form is trainable as it is.")
    if plain_architecture(name_of(model)) == name_of(model) and not getattr(model, 'asr_options', None):
        raise ValueError(f"The trainable form of this '{name}' could not be made again, since its ASR was attached by "
                         "hand; make it by timm_asr.create_model(name, asr=...), or save its state dict yourself.")
    return model


class _Writer:
    """Writes one model, fused or trainable, and has it loaded back."""

    def __init__(self, source: Source, options: Options, process: FreshProcess | None) -> None:
        self.source, self.options, self.process = source, options, process
        self.metrics = dict(options.metrics or source.metrics or {})

    def write(
            self,
            folder: Path,
            reference: nn.Module,
            model: nn.Module,
            architecture: str,
            args: dict[str, Any],
            needs: list[str],
            state: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Write weights and configuration, after the model was compared with what it came from."""
        options, fused = self.options, model is not reference
        state = state_of(model) if state is None else state
        low = DTYPES[options.dtype]
        if fused:
            self._compare(reference, model)
        if fused and low != torch.float32:
            state = {key: t.to(low) if t.is_floating_point() else t for key, t in state.items()}
            model.load_state_dict(state, strict=False)  # its own counters and augmented statistics stay
            self._note_rounding(reference, model)
        self.folder, self.model, self.needs = folder, model, needs
        write_whole(folder / WEIGHTS, save(state, metadata={'format': 'pt'}))
        self._write_config(folder, model, architecture, args, fused)

    def _compare(self, reference: nn.Module, model: nn.Module) -> None:
        relative = same_function(reference, model, self._images(model))
        before, after = (sum(p.numel() for p in m.parameters()) for m in (reference, model))
        text = f'{before:,} parameters become {after:,}' if has_asr(reference) else f'{after:,} parameters without ASR'
        self.options.report('fold', f'{text}; logits on random images differ by {relative:.1g} of the largest')

    @torch.no_grad()
    def _note_rounding(self, reference: nn.Module, model: nn.Module) -> None:
        images = self._images(model)
        relative = relative_difference(reference(images), model(images))
        self.options.report('round', f'in {self.options.dtype}, logits on random images differ by {relative:.1g} of '
                                     'the largest')
        if self.metrics:
            self.metrics |= {'dtype': self.options.dtype, 'logit_difference_relative': relative}

    def _images(self, model: nn.Module) -> torch.Tensor:
        return random_images(tuple(self._data(model)['input_size']))

    def _cfg(self, model: nn.Module) -> dict[str, Any]:
        return {key: value for key, value in model.pretrained_cfg.items() if key not in _FOREIGN}  # type: ignore[union-attr]

    def _data(self, model: nn.Module) -> dict[str, Any]:
        """What the loaded model's data configuration must be, in JSON's types."""
        data = resolve_input_data_config(
            model, args=dict(self._data_config() or {}), pretrained_cfg=self._cfg(model))
        return json.loads(json.dumps(data))

    def _data_config(self) -> Mapping[str, Any] | None:
        return self.options.data_config or self.source.data_config

    def _write_config(self, folder: Path, model: nn.Module, architecture: str, args: dict[str, Any],
                      fused: bool) -> None:
        facts = {**self.source.facts, **self.options.provenance}
        facts |= {'form': 'fused' if fused else 'trainable', 'needs': self.needs,
                  'weights_sha256': file_sha256(folder / WEIGHTS),
                  'dtype': self.options.dtype if fused else None}
        data = self.options.tag or facts.get('dataset')
        tag = tag_of(facts.get('model') or '', facts.get('asr'), data) if fused else data_slug(data) or 'trainable'
        cfg = {**self._cfg(model), 'architecture': architecture, **({'tag': tag} if tag else {})}
        copied = copy.copy(model)  # shallow, with what timm reads set on the copy alone
        copied.__dict__ = {**model.__dict__, '_model_args': args, 'pretrained_cfg': cfg}
        root: dict[str, Any] = {KEY: provenance(facts, self.metrics)}
        labels = class_names(self.source, self.options.label_names)
        if labels is not None:
            root['label_names'] = labels
        config = dict(self._data_config() or {})
        try:
            save_config_for_hf(copied, str(folder / CONFIG), model_config=root, data_config=config)
        except ValueError as error:
            raise ValueError(f"The configuration of this '{architecture}' cannot be written ({error}).") from None

    def check(self, trainable: bool = False) -> None:
        """Have the fresh process load what was written, and compare."""
        if self.process is None:
            return
        model, labels = self.model, class_names(self.source, self.options.label_names)
        images = self._images(model)
        with torch.inference_mode():
            logits = model(images)
        relative = self.process.check(
            self.folder, self.needs, images, logits, tolerance(model),
            {'num_classes': model.num_classes, **({'in_chans': model.in_chans} if hasattr(model, 'in_chans') else {})},
            self._data(model), labels, trainable)
        by = ' and '.join(['timm', *self.needs]) if self.needs else 'timm alone'
        what = 'the trainable form loads' if trainable else 'loads'
        self.options.report(
            'check', f'{what} by {by} in a fresh process; logits differ by {relative:.1g} of the largest')
