"""A model from what the user names: a fused folder, a training checkpoint, a hub name or a registry name.

Everything that can be wrong with such a name is found before any long work starts, and said in one sentence.
"""

import argparse
import json
import logging
import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from timm.models import clean_state_dict, get_arch_pretrained_cfgs, is_model, list_models, resolve_model_input_args
from torch import nn

from ..errors import BadInput, nearest
from ..models.create import create_model

_logger = logging.getLogger(__name__)

WEIGHT_SUFFIXES = ('.safetensors', '.pth', '.pth.tar', '.pt', '.bin', '.ckpt')
_HUB_PREFIXES = ('hf-hub:', 'hf_hub:')
_FOLDER_PREFIX = 'local-dir:'


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip('.')


def is_folder_of_weights(path: str | Path) -> bool:
    """True for a folder that ``save_fused`` wrote (or any folder that timm's ``local-dir:`` reads)."""
    return (Path(path) / 'config.json').is_file()


def source_of(name: str) -> str:
    """What a name names: ``hub``, ``folder``, ``file``, ``registry``, or ``''`` for nothing that is known."""
    if name.startswith(_HUB_PREFIXES):
        return 'hub'
    if name.startswith(_FOLDER_PREFIX) or is_folder_of_weights(name):
        return 'folder'
    if name and is_model(name):
        return 'registry'
    return 'file' if Path(name).is_file() else ''


def check_model_name(name: str) -> None:
    """Raise ``BadInput``, with the nearest names, unless the registry knows this name and its pretrained tag."""
    if not name or not is_model(name):
        architecture, _, tag = name.partition('.')
        if tag and is_model(architecture):
            return check_model_name(architecture)
        near = nearest(architecture, list_models(), count=3)
        hint = f'; the nearest names are {", ".join(near)}' if name and near else ''
        raise BadInput(f'unknown model {name!r}{hint}')
    architecture, _, tag = name.partition('.')
    known = [full.partition('.')[2] for full in get_arch_pretrained_cfgs(architecture)]
    if tag and tag not in known:
        tags = [t for t in known if t]
        hint = f'its tags are {", ".join(nearest(tag, tags, count=5))}' if tags else 'it has none'
        raise BadInput(f'unknown pretrained tag {tag!r} of {architecture}: {hint}')
    return None


def expand_names(name: str, pretrained: bool = False, exclude: Sequence[str] = ()) -> list[str] | None:
    """The models that a wildcard, ``all`` or a text file (one name a line) stands for; None for a single model.

    Args:
        name: What ``--model`` was given.
        pretrained: Names with a pretrained tag only, as far as wildcards and ``all`` go.
        exclude: Wildcards left out of ``all``.

    Raises:
        BadInput: If a wildcard matches nothing, or a file holds no name or an unknown one.
    """
    if source_of(name) in ('hub', 'folder', 'registry'):
        return None
    if name == 'all':
        return list_models(pretrained=pretrained, exclude_filters=list(exclude))
    path = Path(name)
    if path.is_file() and not name.endswith(WEIGHT_SUFFIXES):
        return read_model_list(path)
    if any(c in name for c in '*?['):
        found = list_models(name, pretrained=pretrained)
        if not found:
            known = list_models(pretrained=pretrained)
            found = [full for full in known if fnmatch(full.partition('.')[0], name)]
        if not found:
            extra = ' with pretrained weights' if pretrained and list_models(name) else ''
            raise BadInput(f'no model{extra} matches {name!r}; `timm.list_models()` lists what there is')
        return found
    return None


def read_model_list(path: str | Path) -> list[str]:
    """The names in a text file, one a line; blank lines and those that start with # are skipped."""
    try:
        lines = Path(path).read_text(encoding='utf-8').splitlines()
    except OSError as error:
        raise BadInput(f'cannot read the model list {path}: {error.strerror}') from None
    except UnicodeDecodeError:
        raise BadInput(f'{path} is neither a list of model names (text) nor a checkpoint '
                       f'({", ".join(WEIGHT_SUFFIXES)})') from None
    names = [line.strip() for line in lines if line.strip() and not line.startswith('#')]
    if not names:
        raise BadInput(f'the model list {path} is empty')
    for name in names:
        if not source_of(name):
            check_model_name(name)
    return names


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a weight file, read without running any code that it may carry.

    Args:
        path: ``.safetensors``, or what ``torch.save`` wrote; a pickle is read with ``weights_only=True``.

    Returns:
        The dict in the file: a training checkpoint (``arch``, ``state_dict``, ...) or a bare state dict.

    Raises:
        BadInput: If the file is missing, truncated, of another kind, or a pickle that would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f'no checkpoint at {path}')
    if path.stat().st_size == 0:
        raise BadInput(f'{path} is empty: the checkpoint was never written whole')
    if path.suffix == '.safetensors':
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise BadInput(f'{path} is truncated or not a safetensors file ({_first_line(error)})') from None
    with path.open('rb') as file:
        magic = file.read(2)
    if magic not in (b'PK', b'\x80\x02', b'\x80\x03', b'\x80\x04'):
        raise BadInput(f'{path} is not a checkpoint: it is neither a safetensors file nor one that torch.save wrote')
    try:
        # timm's own training checkpoints keep their options as an argparse.Namespace.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        if 'GLOBAL' in str(error) or 'global' in str(error) or 'Can only' in str(error):
            raise BadInput(f'{path} is refused: it is a pickle that would run code{_unsafe_names(path)}; '
                           'ask its author for a safetensors file or a plain state dict') from None
        raise BadInput(f'{path} is damaged, or not a checkpoint that torch.save wrote') from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        whole = magic != b'PK' or zipfile.is_zipfile(path)
        what = 'is not a checkpoint that torch.save wrote' if whole else 'is truncated'
        raise BadInput(f'{path} {what} ({_first_line(error)[:120]})') from None
    if not isinstance(content, dict):
        raise BadInput(f'{path} holds a {type(content).__name__}, not a checkpoint or a state dict')
    return content


def _unsafe_names(path: Path) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the legacy format has no such list, and the answer is only a courtesy
        return ''
    return f' ({", ".join(sorted(names)[:3])})' if names else ''


def state_dict_of(content: Mapping[str, Any], use_ema: bool = False, path: str | Path = '') -> dict[str, torch.Tensor]:
    """The weights inside a checkpoint, prefixes of DDP and ``torch.compile`` removed.

    Args:
        content: What ``read_checkpoint`` returned.
        use_ema: Take the averaged weights; the raw ones, with a warning, if there are none.
        path: Named in errors.
    """
    ema = content.get('state_dict_ema', content.get('model_ema'))
    if use_ema and ema is None:
        _logger.warning(f'{path} has no EMA weights: the raw weights are used.')
    weights = ema if use_ema and ema is not None else content.get('state_dict', content.get('model', content))
    if not isinstance(weights, Mapping) or not weights or not all(isinstance(k, str) for k in weights):
        raise BadInput(f'{path} holds no weights: no state_dict inside')
    weights = clean_state_dict(dict(weights))
    if not any(isinstance(value, torch.Tensor) for value in weights.values()):
        raise BadInput(f'{path} holds no weights: its keys are {", ".join(sorted(weights)[:4])}')
    return weights


def trained_as(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a training checkpoint says about its model: ``model`` and the options that shaped it; empty if nothing."""
    args = content.get('args')
    args = dict(vars(args)) if isinstance(args, argparse.Namespace) else dict(args) if isinstance(args, Mapping) else {}
    keys = ('num_classes', 'in_chans', 'img_size', 'input_size', 'gp', 'model_kwargs', 'asr', 'last_norm_init')
    found = {key: args[key] for key in keys if args.get(key) not in (None, '', {})}
    name = content.get('arch') or args.get('model')
    return {'model': name, **found} if isinstance(name, str) else found


def _classifier_classes(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> int | None:
    classifier = (getattr(model, 'pretrained_cfg', None) or {}).get('classifier')
    classifier = classifier[0] if isinstance(classifier, list | tuple) and classifier else classifier
    for name in (f'{classifier}.weight', f'{classifier}.bias'):
        if isinstance(weights.get(name), torch.Tensor):
            return weights[name].shape[0]
    return None


def _other_backbone(with_asr: Iterable[str], without: Iterable[str]) -> bool:
    """Whether two sets of keys differ by more than the ASR vectors in one of them."""
    plain = {key.replace('.layer.', '.') for key in with_asr if '.vectors.' not in key}
    return plain != {key.replace('.layer.', '.') for key in without}


def load_weights(model: nn.Module, path: str | Path, weights: Mapping[str, torch.Tensor], name: str = '') -> None:
    """Load weights strictly; ``BadInput`` says what kind of other model they belong to."""
    classes = _classifier_classes(model, weights)
    if classes is not None and classes != model.num_classes:
        raise BadInput(f'{path} was trained for {classes} classes, but {model.num_classes} were asked for; '
                       f'leave --num-classes out or give {classes}')
    name = name or type(model).__name__
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        own = set(model.state_dict())
        missing, unexpected = sorted(own - set(weights)), sorted(set(weights) - own)
        trains, trained = (any(key.endswith('psi') for key in keys) for keys in (own, weights))
        if trains and not trained and not _other_backbone(own, weights):
            raise BadInput(f'{path} is fused (it has no ASR vectors), and {name} is the trainable form: '
                           'name the plain architecture, or a checkpoint from before fusing') from None
        if trained and not trains and not _other_backbone(weights, own):
            raise BadInput(f'{path} is a trainable ASR checkpoint, and {name} has no ASR vectors: '
                           'name the ASR model, and add --reparam to measure it fused') from None
        if missing or unexpected:
            said = [f'{len(keys)} keys {what} (such as {keys[0]})'
                    for keys, what in ((missing, 'missing'), (unexpected, 'too many')) if keys]
            raise BadInput(f'{path} does not fit {name}: {" and ".join(said)}') from None
        lines = [line.strip() for line in str(error).splitlines()]
        raise BadInput(f'{path} does not fit {name}: {lines[min(1, len(lines) - 1)].rstrip(".")}') from None


def _create(name: str, pretrained: bool, shape: Mapping[str, Any], kwargs: Mapping[str, Any]) -> nn.Module:
    """:func:`timm_asr.create_model` whose errors are one sentence."""
    try:
        resolved = resolve_model_input_args(name, dict(shape), **kwargs)
        return create_model(**resolved, pretrained=pretrained)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AssertionError,
            safetensors.SafetensorError) as error:
        reason = _first_line(error)
        if name.startswith(_HUB_PREFIXES):
            raise BadInput(f'cannot load {name} from the Hugging Face Hub: {reason[:200]}') from None
        if 'No pretrained weights exist' in reason:
            raise BadInput(f'{name} has no pretrained weights; name the weights with --checkpoint FILE, '
                           'or a fused folder as the model') from None
        raise BadInput(f'cannot create {name}: {reason[:300]}') from None


def check_folder(folder: Path, num_classes: int | None) -> dict[str, Any]:
    """The ``config.json`` of a folder of weights, after the checks that timm leaves to a traceback."""
    try:
        config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    except OSError:
        raise BadInput(f'{folder} is not a folder of weights: it has no config.json') from None
    except ValueError:
        raise BadInput(f'{folder / "config.json"} is not valid JSON') from None
    architecture = config.get('architecture') if isinstance(config, dict) else None
    if not isinstance(architecture, str):
        raise BadInput(f'{folder / "config.json"} names no architecture')
    check_model_name(architecture)
    classes = config.get('num_classes', config.get('pretrained_cfg', {}).get('num_classes'))
    if num_classes is not None and classes is not None and num_classes != classes:
        raise BadInput(f'{folder} has {classes} classes, but {num_classes} were asked for; leave --num-classes out')
    if not any(path.name.endswith(WEIGHT_SUFFIXES) for path in folder.iterdir()):
        raise BadInput(f'{folder} has a config.json and no weights (model.safetensors)')
    return config


def load_model(
        name: str,
        checkpoint: str | Path = '',
        *,
        pretrained: bool = False,
        use_ema: bool = False,
        num_classes: int | None = None,
        in_chans: int | None = None,
        img_size: int | None = None,
        input_size: Sequence[int] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
) -> nn.Module:
    """The model that the user names, on the CPU, in train mode, its weights loaded and unfused.

    Args:
        name: A registry name (``resnet50_asr_se``), a hub name (``hf-hub:user/model``), a folder that ``save_fused``
            wrote, or a training checkpoint, which says itself what it holds. Empty: what the checkpoint says.
        checkpoint: A weight file to load into the model ``name``, or a fused folder (then ``name`` is not used).
        pretrained: Load the weights that belong to a registry or hub name; those of a folder are always loaded.
        use_ema: Take a checkpoint's averaged weights.
        num_classes: Number of classes; None takes that of the weights, or the architecture's own.
        in_chans: Channels of the input; None takes that of the checkpoint, or 3.
        img_size: Side of the input in pixels, for architectures whose weights depend on it.
        input_size: (channels, height, width), the same.
        model_kwargs: More keywords of :func:`timm_asr.create_model`, ``asr`` among them.
        **kwargs: The same; entries that are None are left out.

    Raises:
        BadInput: One sentence for an unknown name, a file that is truncated, foreign or would run code, weights of
            another model, a wrong class count, or a hub that cannot be reached.
    """
    shape: dict[str, Any] = {'in_chans': in_chans, 'img_size': img_size, 'input_size': input_size}
    kwargs = {'num_classes': num_classes, **kwargs, **(model_kwargs or {})}
    if checkpoint and is_folder_of_weights(checkpoint):
        name, checkpoint = str(checkpoint), ''
    if not checkpoint and source_of(name) == 'file':
        name, checkpoint = '', name
    # A weight file beside its config.json is the folder that holds it.
    if checkpoint and not name and Path(checkpoint).name == 'model.safetensors' and is_folder_of_weights(
            Path(checkpoint).parent):
        name, checkpoint = str(Path(checkpoint).parent), ''
    if checkpoint:
        return _load_checkpoint(name, Path(checkpoint), use_ema, shape, kwargs)
    source = source_of(name)
    if source == 'folder':
        folder = Path(name.removeprefix(_FOLDER_PREFIX))
        check_folder(folder, kwargs['num_classes'])
        return _create(f'{_FOLDER_PREFIX}{folder}', True, shape, kwargs)
    if source == 'hub':
        return _create(name, pretrained, shape, kwargs)
    if not source and name and Path(name).is_dir():
        raise BadInput(f'{name} is a folder without config.json: name a folder that save_fused wrote, '
                       'or a checkpoint file')
    if not source and name.endswith(WEIGHT_SUFFIXES):
        raise BadInput(f'no checkpoint at {name}')
    if not source and '/' in name:
        raise BadInput(f'nothing at {name}: name a folder, a checkpoint file, hf-hub:{name} or a registry name')
    check_model_name(name)
    if pretrained:
        _check_pretrained_classes(name, kwargs['num_classes'])
    return _create(name, pretrained, shape, kwargs)


def _check_pretrained_classes(name: str, num_classes: int | None) -> None:
    cfg = timm.get_pretrained_cfg(name)
    if num_classes is not None and cfg is not None and cfg.num_classes != num_classes and (cfg.has_weights):
        raise BadInput(f'the pretrained weights of {name} have {cfg.num_classes} classes, but {num_classes} were '
                       'asked for; leave --num-classes out')


def _load_checkpoint(
        name: str,
        path: Path,
        use_ema: bool,
        shape: dict[str, Any],
        kwargs: dict[str, Any],
) -> nn.Module:
    if name:
        check_model_name(name)
    if path.suffix in ('.npz', '.npy'):
        return _load_numpy(name, path, shape, kwargs)
    content = read_checkpoint(path)
    weights = state_dict_of(content, use_ema, path)
    # Split BN keeps the statistics of the augmented parts beside those that inference uses.
    weights = {key: value for key, value in weights.items() if '.aux_bn.' not in key}
    said = trained_as(content)
    name = name or said.get('model', '')
    if not name:
        raise BadInput(f'{path} does not say which model it is: name that with --model')
    check_model_name(name)
    if shape['img_size'] is None and shape['input_size'] is None:
        shape = {**shape, 'img_size': said.get('img_size'), 'input_size': said.get('input_size')}
    if shape['in_chans'] is None and shape['input_size'] is None:
        shape = {**shape, 'in_chans': said.get('in_chans') or (said.get('input_size') or [None])[0]}
    kwargs = {**(said.get('model_kwargs') or {}), 'global_pool': said.get('gp'), 'asr': said.get('asr'),
              **{key: value for key, value in kwargs.items() if value is not None}}
    if kwargs['asr']:
        # The weights know their sites, whatever is found by default.
        kwargs.setdefault('asr_sites', list(dict.fromkeys(
            key.partition('.vectors.')[0] for key in weights if '.vectors.' in key)) or None)
    if 'num_classes' not in kwargs:
        # The classifier itself is the best witness; a model of no matter how many classes knows its name.
        cfg = timm.get_pretrained_cfg(name)
        head = getattr(cfg, 'classifier', None)
        head = head[0] if isinstance(head, list | tuple) and head else head
        weight = weights.get(f'{head}.weight')
        kwargs['num_classes'] = weight.shape[0] if isinstance(weight, torch.Tensor) else said.get('num_classes')
    model = _create(name, False, shape, kwargs)
    load_weights(model, path, weights, name)
    return model


def _load_numpy(name: str, path: Path, shape: dict[str, Any], kwargs: dict[str, Any]) -> nn.Module:
    model = _create(name, False, shape, kwargs)
    try:
        timm.models.load_checkpoint(model, str(path))
    except (OSError, ValueError, KeyError, NotImplementedError, RuntimeError, AttributeError) as error:
        raise BadInput(f'cannot load {path} into {name}: {_first_line(error)}') from None
    return model
