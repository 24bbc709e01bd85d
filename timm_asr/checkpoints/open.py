"""What the user names, opened: a checkpoint, a folder that was exported, a name on the Hub, a registered name.

::

    source = open_source('run/model_best.pth.tar')
    source.model, source.data_config, source.label_names

Everything that can be wrong with a name or a file is said in one sentence, before any long work starts.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import load_file
from timm.models import resolve_model_input_args
from torch import nn

from ..asr.attach import ASR_KEYWORDS
from ..errors import BadInput
from ..models.create import create_model
from .find import FOLDER_PREFIX, HUB_PREFIXES, check_model_name, source_of
from .names import ARGS, ATTENTION, BEST, CURVE, KEY, METRICS, SUMMARY, WEIGHT_SUFFIXES, WEIGHTS
from .provenance import base_model_of, checkpoint_facts, file_sha256, git_commit, public_name, public_yaml
from .read import first_line, is_folder_of_weights, is_regular, read_checkpoint, read_config, read_json, read_yaml
from .source import Source, data_config_of, label_names_of, name_of, unwrap, used_data_config
from .weights import averaged_in, classes_in, load_weights, state_dict_of

#: What a configuration may say of the model and its images; addresses, files, devices and code are not among it.
CFG_KEYS = frozenset((
    'architecture', 'tag', 'num_classes', 'input_size', 'fixed_input_size', 'min_input_size', 'interpolation',
    'crop_pct', 'crop_mode', 'mean', 'std', 'pool_size', 'first_conv', 'classifier', 'label_names',
    'label_descriptions'))
#: Arguments of timm's ``create_model`` and builder that a configuration has no say in.
_NOT_ITS_OWN = frozenset((
    'model_name', 'pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'pretrained_strict', 'checkpoint_path',
    'cache_dir', 'device', 'dtype', 'scriptable', 'exportable', 'no_jit', 'features_only', 'num_classes'))

_OTHER_CLASSES = 'the pretrained weights of {} have {} classes, but {} were asked for; leave --num-classes out'


def as_source(what: nn.Module | str | os.PathLike | Source, use_ema: bool = False) -> Source:
    """A model in memory, or what a path or name stands for (:func:`open_source`), as a source."""
    if isinstance(what, Source):
        return what
    if isinstance(what, str | os.PathLike):
        return open_source(what, use_ema)
    model = unwrap(what)
    return Source(model, {'model': name_of(model), 'asr': getattr(model, 'asr_options', None),
                          'git_commit': git_commit()})


def open_source(what: str | os.PathLike, use_ema: bool = False, name: str = '', *, pretrained: bool = True,
                num_classes: int | None = None, in_chans: int | None = None, img_size: int | None = None,
                input_size: Sequence[int] | None = None, model_kwargs: Mapping[str, Any] | None = None,
                **kwargs: Any) -> Source:
    """The model that the user names, with all that is known about it.

    Its model is on the CPU, in train mode, its ASR not folded. ``BadInput`` says in one sentence what is wrong with a
    name, a file, its weights, a class count or the Hub.

    Args:
        what: A training checkpoint (of this package or of timm's ``train.py``), a weight file, a folder that
            ``save_fused`` wrote, or a name: of the registry (``resnet50_asr_se``) or the Hub (``hf-hub:user/model``).
        use_ema: Take a checkpoint's averaged weights.
        name: Of the model, where a checkpoint does not say it.
        pretrained: Load the weights that belong to a registry or Hub name; those of a folder are always loaded.
        num_classes: Of the weights, or the architecture's own, if None; so are the shapes of the input.
        model_kwargs: More keywords of :func:`timm_asr.create_model`, as ``kwargs`` are; None is left out of those.
    """
    path = str(what)
    shape: dict[str, Any] = {'in_chans': in_chans, 'img_size': img_size, 'input_size': input_size}
    kwargs = {'num_classes': num_classes, **kwargs, **(model_kwargs or {})}
    if not name and Path(path).name == WEIGHTS and is_folder_of_weights(Path(path).parent):
        path = str(Path(path).parent)  # a weight file beside its config.json is the folder that holds it
    kind = source_of(path)
    if kind == 'file' or (not kind and path.endswith(WEIGHT_SUFFIXES)):
        return _open_checkpoint(Path(path), use_ema, name, shape, kwargs)
    if kind == 'folder':
        found = _open_folder(Path(path.removeprefix(FOLDER_PREFIX)), use_ema, shape, kwargs)
        held = dict.fromkeys(filter(None, (name_of(found.model), found.facts.get('model'))))
        if name and name.partition('.')[0] not in (one.partition('.')[0] for one in held):
            raise BadInput(f'{path} holds {" or ".join(held)}, not {name}; leave --model out')
        return found
    if not kind and path and Path(path).is_dir():
        best = Path(path) / BEST
        raise BadInput(f'{path} is the folder of a run, not a checkpoint: name {best}' if best.is_file() else
                       f'{path} is a folder without config.json: name a checkpoint file, or a folder that was exported')
    if not kind and '/' in path:
        raise BadInput(f'nothing at {path}: name a folder, a checkpoint file, hf-hub:{path} or a registry name')
    if use_ema:
        raise BadInput(f'{path} is the name of published weights, which have no averaged ones beside them')
    if kind != 'hub':
        check_model_name(path)
        cfg = timm.get_pretrained_cfg(path) if pretrained else None
        if num_classes is not None and cfg is not None and cfg.num_classes != num_classes and cfg.has_weights:
            raise BadInput(_OTHER_CLASSES.format(path, cfg.num_classes, num_classes))
    model = _create(path, pretrained, shape, kwargs)
    own = (model.pretrained_cfg or {}).get('num_classes')  # type: ignore[union-attr]
    if kind == 'hub' and pretrained and num_classes not in (None, own):  # timm would draw a classifier at random
        raise BadInput(_OTHER_CLASSES.format(path, own, num_classes))
    facts = {'model': name_of(model), 'asr': getattr(model, 'asr_options', None),
             'source': {'file': public_name(path), 'sha256': None}, 'base_model': base_model_of(path, pretrained)}
    return Source(model, facts, label_names=label_names_of(model, model.pretrained_cfg))  # type: ignore[arg-type]


def _create(name: str, pretrained: bool, shape: Mapping[str, Any], kwargs: Mapping[str, Any]) -> nn.Module:
    """:func:`timm_asr.create_model` whose errors are one sentence."""
    if name.startswith(FOLDER_PREFIX) and not is_folder_of_weights(name.removeprefix(FOLDER_PREFIX)):
        raise BadInput(f'there is no folder of weights at {name.removeprefix(FOLDER_PREFIX)}; name the architecture '
                       'that it had (--model NAME)')
    try:
        resolved = resolve_model_input_args(name, dict(shape), **kwargs)
        return create_model(**resolved, pretrained=pretrained)
    except Exception as error:  # timm, safetensors and constructors raise whatever they like
        reason = first_line(error)
        if name.startswith(HUB_PREFIXES):
            raise BadInput(f'cannot load {name} from the Hugging Face Hub: {reason}') from None
        if 'No pretrained weights exist' in reason:
            raise BadInput(f'{name} has no pretrained weights; name the weights with --checkpoint FILE, '
                           'or an exported folder as the model') from None
        raise BadInput(f'cannot create {name}: {reason}') from None


def _open_folder(folder: Path, use_ema: bool, shape: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Source:
    if use_ema:
        raise BadInput(f'{folder} is an exported folder, which has no averaged weights beside the others')
    config = read_config(folder)
    check_model_name(config['architecture'])
    asked = kwargs.get('num_classes')
    classes = config.get('num_classes', (config.get('pretrained_cfg') or {}).get('num_classes'))
    if asked is not None and classes is not None and asked != classes:
        raise BadInput(f'{folder} has {classes} classes, but {asked} were asked for; leave --num-classes out')
    section, weights = config.get(KEY) or {}, folder / WEIGHTS
    expected = section.get('weights_sha256')
    # transformers keeps the section where it saves what was trained further: then none of it is about these weights.
    own = not expected or (weights.is_file() and file_sha256(weights) == expected)
    facts = {key: value for key, value in section.items() if own and key not in (
        'weights_sha256', 'created', 'exported_with', 'files', 'format', 'code', 'dtype')}
    model = (create_trainable(folder, shape, **kwargs) if attached_in(config) else
             _create(f'{FOLDER_PREFIX}{folder}', True, shape, kwargs))
    facts = facts or {'model': name_of(model), 'asr': getattr(model, 'asr_options', None)}
    beside, listed = _files_beside(folder, {}, True) if own else {}, section.get('files')
    return Source(model, facts, label_names=label_names_of(model, config),
                  metrics=read_metrics(folder) if own else None,
                  files={name: content for name, content in beside.items() if listed is None or name in listed})


def attached_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of the ASR that stands beside the name of the network in a trainable folder; {} where there is none."""
    section = config.get(KEY) or {}
    return (section.get('asr') or {}) if section.get('form') == 'trainable' else {}


def create_trainable(folder: str | Path, shape: Mapping[str, Any] | None = None, **kwargs: Any) -> nn.Module:
    """The model of a folder that :func:`timm_asr.save_fused` wrote, or of ``trainable`` inside it, in train mode.

    ASR that is registered under a name of its own comes with that name; ASR that was attached to another model's name
    is attached again. Of the configuration, which may come from the Hub, the registered architecture, plain values as
    its arguments and the keywords of ASR are used; the weights are those of this folder, wherever it says others are.
    ``shape`` and ``kwargs`` are those that :func:`open_source` was asked for.
    ``BadInput``: the folder is not one of weights, or they do not fit.
    """
    folder = Path(folder)
    config = read_config(folder)
    name = config['architecture']
    check_model_name(name)
    args = {key: value for key, value in (config.get('model_args') or {}).items()
            if key not in _NOT_ITS_OWN and not isinstance(value, Mapping)}
    args |= {key: value for key, value in attached_in(config).items() if key in ASR_KEYWORDS}
    said = {**(config.get('pretrained_cfg') or {}), **{key: config[key] for key in ('label_names',) if key in config}}
    cfg = {key: value for key, value in said.items() if key in CFG_KEYS}
    try:
        classes = config.get('num_classes', cfg.get('num_classes'))
        asked = {'num_classes': classes, **args, **{key: value for key, value in kwargs.items() if value is not None}}
        model = create_model(**resolve_model_input_args(name, dict(shape or {}), **asked))
        model.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    except Exception as error:  # constructors raise whatever they like
        raise BadInput(f'{folder} cannot be loaded ({first_line(error)})') from None
    # The name's own weights were tested at other sizes.
    own = {key: value for key, value in model.pretrained_cfg.items() if not key.startswith('test_')}  # type: ignore[union-attr, operator]
    model.pretrained_cfg = {**own, **cfg}  # type: ignore[assignment]
    return model


def _files_beside(folder: Path, args: Mapping[str, Any], is_best: bool) -> dict[str, bytes]:
    """Plots, curve and options of a run; the plot of the attention is that of its best checkpoint."""
    files = {name: (folder / name).read_bytes() for name in (SUMMARY, CURVE, *[ATTENTION] * is_best)
             if is_regular(folder / name)}
    if not args and is_regular(folder / ARGS):
        args = read_yaml(folder / ARGS)
    if args:
        files[ARGS] = public_yaml(args)
    return files


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """The figures that lie in a folder, with today's keys (older files say ``_fused``); None where there are none."""
    if not is_regular(folder / METRICS):
        return None
    return {key.replace('_fused', '_folded'): value for key, value in read_json(folder / METRICS).items()}


def _open_checkpoint(path: Path, use_ema: bool, name: str, shape: dict[str, Any], kwargs: dict[str, Any]) -> Source:
    content = read_checkpoint(path)

    def read(own: Iterable[str] = ()) -> dict[str, Any]:
        # Split BN keeps the statistics of the augmented parts beside those that inference uses.
        found = state_dict_of(content, use_ema, path, own)
        return {key: value for key, value in found.items() if '.aux_bn.' not in key}

    weights = read()
    args = dict(content.get('args') or {})
    name = name or content.get('arch') or args.get('model') or ''
    if not name:
        raise BadInput(f'{path} does not say which model it is: name that with --model')
    known = None
    if not name.startswith((*HUB_PREFIXES, FOLDER_PREFIX)):
        check_model_name(name)
        known = timm.get_pretrained_cfg(name)
    if shape['img_size'] is None and shape['input_size'] is None:
        shape = {**shape, 'img_size': args.get('img_size'), 'input_size': args.get('input_size')}
    if shape['in_chans'] is None and shape['input_size'] is None:
        shape['in_chans'] = args.get('in_chans') or (args.get('input_size') or [None])[0]
    kwargs = {'global_pool': args.get('gp') or None, 'bn_eps': args.get('bn_eps'), 'asr': args.get('asr') or None,
              **(args.get('model_kwargs') or {}), **{key: value for key, value in kwargs.items() if value is not None}}
    if kwargs['asr']:
        # The weights know their sites, whatever is found by default.
        kwargs.setdefault('asr_sites', list(dict.fromkeys(
            key.partition('.vectors.')[0] for key in weights if '.vectors.' in key)) or None)
    if 'num_classes' not in kwargs:
        kwargs['num_classes'] = classes_in(weights, getattr(known, 'classifier', None)) or args.get('num_classes')
    model = _create(name, False, shape, kwargs)
    load_weights(model, path, read(model.state_dict()), name)  # a few of timm's networks have a 'backbone' inside
    facts = checkpoint_facts(path, content, use_ema)
    facts |= {'model': name_of(model), 'asr': getattr(model, 'asr_options', None)}
    # A run folder has the figures of one checkpoint, the best. What lies beside bare weights is not theirs.
    metrics = read_metrics(path.parent) if args else None
    fits = metrics is not None and all(metrics.get(key) == facts.get(key) for key in ('model', 'epoch', 'weights'))
    data = used_data_config({**data_config_of(model, args), **(content.get('data_config') or {}),
                             'crop_mode': None}) if args else None
    return Source(model, facts, data, label_names_of(model, content), metrics if fits else None, args,
                  has_ema=averaged_in(content) is not None,
                  files=_files_beside(path.parent, args, fits or path.name == BEST) if args else {})
