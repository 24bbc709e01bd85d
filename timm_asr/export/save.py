"""The folded network as a folder that timm and transformers load."""

import copy
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from timm.data import resolve_input_data_config
from timm.models import get_model_args, is_model, model_entrypoint
from timm.models._hub import save_config_for_hf
from torch import nn

from ..asr.attach import ASR_KEYWORDS
from ..asr.fold import fold_asr, has_asr
from ..checkpoints.names import CODE, CONFIG, KEY, METRICS, TRAINABLE, WEIGHTS
from ..checkpoints.open import CFG_KEYS, as_source, create_trainable
from ..checkpoints.provenance import file_sha256, provenance_of
from ..checkpoints.source import Source, class_names, models_inside, name_of, to_float32
from ..gates.forms import InferenceForm
from ..gates.gate import ChannelGate
from ..gates.shared import SharedUnit
from ..gates.table import gate_options
from ..inference.compare import random_images, relative_difference, same_function, tolerance
from ..models.counts import count_parameters
from ..models.registry import plain_architecture
from .place import files_in, placed, refuse_own, refuse_taken, write_whole

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
    if isinstance(model, str | os.PathLike):
        refuse_own(os.fspath(model), folder)
    name = name_of(source.model)
    if not name or getattr(source.model, 'frozen_from', None):
        raise ValueError(_why_unnamed(source.model))
    _refuse_inference_form(source.model, name)
    refuse_taken(folder, overwrite, source.files)
    plain = plain_architecture(name)
    by_name = plain != name or getattr(source.model, 'asr_options', None)
    if keep_trainable and not (by_name and has_asr(source.model)):
        raise ValueError(f"This '{name}' has no ASR that could be made again: a trainable form is kept of models that "
                         'have ASR in their name, and of those by timm_asr.create_model(name, asr=...).')
    needs = _needs_of(plain)
    source = replace(
        source, facts=source.facts | dict(provenance or {}), metrics=dict(metrics or source.metrics or {}),
        label_names=class_names(source, label_names), data_config=dict(data_config or source.data_config or {}))
    reference = to_float32(copy.deepcopy(source.model)).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    folded = fold_asr(copy.deepcopy(reference))
    data = resolve_input_data_config(reference, source.data_config, pretrained_cfg=_cfg(reference))
    data = json.loads(json.dumps(data))  # in JSON's types, as that of a loaded model is
    with torch.no_grad():
        relative = same_function(reference, folded, random_images(tuple(data['input_size'])))
    parameters = f'{count_parameters(reference):,} parameters' + (
        f' become {count_parameters(folded):,}' if has_asr(reference) else ' without ASR')
    report('fold', f'{parameters}; logits on random images differ by {relative:.1g} of the largest')
    with placed(folder) as aside:
        if keep_trainable:
            (aside / TRAINABLE).mkdir()
            _write(aside / TRAINABLE, reference, name, get_model_args(reference), ['timm_asr'], source)
            if check:
                relative = _check_written(aside / TRAINABLE, reference, data, source.label_names, True)
                report('check', f'the trainable form loads by timm_asr; logits differ by {relative:.1g} of the largest')
        more = {METRICS: json.dumps(source.metrics, indent=2).encode() + b'\n'} if source.metrics else {}
        more |= {CODE: Path(__file__).with_name(f'{CODE}.txt').read_bytes()} if needs else {}
        for file, content in {**source.files, **more}.items():
            write_whole(aside / file, content)
        arguments = {**plain_keywords(get_model_args(folded), folded), **(model_args or {})}
        _write(aside, folded, plain, arguments, needs, source)
        if check:
            relative = _check_written(aside, folded, data, source.label_names, False)
            report('check', f'loads by {" and ".join(["timm", *needs]) if needs else "timm alone"}; logits differ by '
                            f'{relative:.1g} of the largest')
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


def _write(folder: Path, model: nn.Module, architecture: str, args: Mapping[str, Any], needs: list[str],
           source: Source) -> None:
    """Write weights and configuration, and into that the list of what lies in the folder."""
    write_whole(folder / WEIGHTS, save(state_of(model), metadata={'format': 'pt'}))
    trainable = folder.name == TRAINABLE
    facts = {**source.facts, 'form': 'trainable' if trainable else 'folded', 'needs': needs,
             'weights_sha256': file_sha256(folder / WEIGHTS),
             'files': None if trainable else {n: file_sha256(folder / n) for n in sorted(files_in(folder))}}
    copied = copy.copy(model)  # shallow, with what timm reads set on the copy alone
    copied.__dict__ = {**model.__dict__, '_model_args': dict(args),
                       'pretrained_cfg': {**_cfg(model), 'architecture': architecture}}
    root: dict[str, Any] = {KEY: provenance_of(facts, source.metrics or {})}
    if source.label_names is not None:
        root['label_names'] = source.label_names
    if needs and not trainable:
        root['auto_map'] = _AUTO_MAP
    try:
        save_config_for_hf(copied, str(folder / CONFIG), model_config=root, data_config=source.data_config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The configuration of this '{architecture}' cannot be written ({error}); pass other values "
                         'as model_args.') from None
    # The number of classes is at the root of the configuration: transformers refuses to be told twice.
    config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
    (config.get('model_args') or {}).pop('num_classes', None)
    write_whole(folder / CONFIG, json.dumps(config, indent=2).encode())


def _cfg(model: nn.Module) -> dict[str, Any]:
    """What timm's configuration says of these weights, and not of the stock model's training or publication."""
    keys = CFG_KEYS - {'tag', 'label_names', 'label_descriptions'}
    return {key: value for key, value in model.pretrained_cfg.items() if key in keys}  # type: ignore[union-attr]


def plain_keywords(keywords: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Those keywords of a model that the network which is left of it, its ASR folded, takes as well."""
    drop = {*ASR_KEYWORDS, 'last_norm_init', 'preserve'} - {'rd_ratio'}
    if not any(isinstance(m, ChannelGate | SharedUnit) for m in model.modules()):
        drop |= {*gate_options()}  # they were those of ASR's gates alone
    return {name: value for name, value in keywords.items() if name not in drop}


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as safetensors takes it: contiguous tensors that share no memory, under their plain names.

    Left out are the statistics that split BN keeps of augmented images; added is the counter that a frozen BN has not.
    """
    state = {name.replace('_orig_mod.', ''): t.detach().cpu().contiguous().clone()
             for name, t in model.state_dict().items() if '.aux_bn.' not in name}
    for name in [name for name in state if name.endswith('running_mean')]:
        state.setdefault(f'{name.removesuffix("running_mean")}num_batches_tracked', torch.tensor(0))
    return state


def _refuse_inference_form(model: nn.Module, name: str) -> None:
    """Raise ``ValueError`` for what ``reparameterize`` has merged: it does not load by the architecture's name."""
    merged = next((m for m in model.modules() if isinstance(m, InferenceForm)
                   or isinstance(getattr(m, 'reparam_conv', None), nn.Module)), None)
    if merged is not None:
        raise ValueError(
            f"This '{name}' is in its inference form (reparameterize() made its {type(merged).__name__}), which "
            'nobody could load by that name; export the model as it was before, and let whoever runs it merge.')


def _needs_of(architecture: str) -> list[str]:
    """Packages to import for an architecture, none for timm's; ``ValueError`` if nobody else has what registers it."""
    if not is_model(architecture):
        raise ValueError(f"timm knows no architecture '{architecture}', so nobody could load these weights by name.")
    home = model_entrypoint(architecture).__module__.partition('.')[0]
    if home not in ('timm', 'timm_asr'):
        raise ValueError(
            f"The architecture '{architecture}' is registered by '{home}' and not by timm or timm_asr, so nobody else "
            'could load these weights by name.')
    return [] if home == 'timm' else [home]


@torch.random.fork_rng(devices=[])  # a network is made only to compare with
def _check_written(folder: Path, model: nn.Module, data: Mapping[str, Any], label_names: Sequence[str] | None,
                  trainable: bool) -> float:
    """Load a folder and compare it with the model that was written, in eval mode, on random images.

    ``data`` is timm's data configuration that it must resolve to. Returns the largest difference of a logit over the
    largest logit; ``ValueError``: it does not load, or is not the same.
    """
    try:
        loaded = create_trainable(folder) if trainable else timm.create_model(f'local-dir:{folder}', pretrained=True)
    except Exception as error:  # whatever timm raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()][:2]  # torch says more in the second
        raise ValueError(
            f'What was written does not load back ({" ".join(lines).rstrip(".")[:300]}); it is not kept. If the model '
            'was built with further arguments, pass them as model_args.') from None
    config, names = timm.data.resolve_model_data_config(loaded), loaded.pretrained_cfg.get('label_names')
    pairs = {name: (getattr(model, name, None), getattr(loaded, name, None)) for name in ('num_classes', 'in_chans')}
    pairs |= {f'{name} of the images': (wanted, json.loads(json.dumps(config[name]))) for name, wanted in data.items()}
    pairs['the list of classes'] = (list(label_names or names or ()), list(names or ()))
    images = random_images(tuple(data['input_size']))
    reason = next((f'{name} is {found} where it was {wanted}' for name, (wanted, found) in pairs.items()
                   if wanted != found), '')
    if not reason:
        with torch.inference_mode():
            relative = relative_difference(model(images), loaded.eval()(images))
        if relative <= tolerance(model):
            return relative
        reason = f'its logits differ by {relative:.1e} of the largest (allowed {tolerance(model):.0e})'
    raise ValueError(f'What was written does not load back ({reason}); it is not kept.')
