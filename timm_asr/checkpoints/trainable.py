"""A trainable model from an exported folder, which may come from somebody else."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from ..asr.options import ASR_KEYWORDS
from ..errors import BadInput
from ..models.create import create_model
from .find import check_model_name
from .names import KEY, WEIGHTS
from .read import first_line, read_config

#: What a configuration may say of the model and its images; addresses, files, devices and code are not among it.
CFG_KEYS = frozenset((
    'architecture', 'tag', 'num_classes', 'input_size', 'fixed_input_size', 'min_input_size', 'interpolation',
    'crop_pct', 'crop_mode', 'mean', 'std', 'pool_size', 'first_conv', 'classifier', 'label_names',
    'label_descriptions'))
_MODEL_ARGUMENTS = frozenset((
    'in_chans', 'global_pool', 'img_size', 'drop_rate', 'drop_path_rate', 'proj_drop_rate', 'attn_drop_rate',
    *ASR_KEYWORDS, 'gate', 'dia', 'rd_ratio', 'se_bias', 'eca_kernel', 'spe_mix',
    'spe_reweight', 'spe_eta', 'ras_depth', 'ras_connect', 'ras_share', 'layers', 'channels', 'depth', 'depths',
    'dims', 'embed_dim', 'num_heads', 'mlp_ratio', 'patch_size', 'depth_multiplier', 'width', 'stem_width',
    'stem_type', 'stem_chs', 'output_stride', 'cardinality', 'base_width', 'avg_down', 'class_token', 'init_values',
    'ls_init_value', 'act_layer', 'norm_layer', 'dynamic_img_size', 'qk_norm', 'pre_norm', 'last_norm_init'))


def create_trainable(folder: str | Path) -> nn.Module:
    """The model of a folder that :func:`timm_asr.save_fused` wrote, or of ``trainable`` inside it, in train mode.

    ASR that is registered under a name of its own comes with that name; ASR that was attached to another model's name
    is attached again. Of the configuration, which may come from the Hub, the registered architecture, plain values as
    its arguments and the keywords of ASR are used; the weights are those of this folder, wherever it says others are.

    Raises:
        BadInput: The folder is not one of weights, or they do not fit.
    """
    folder = Path(folder)
    config = read_config(folder)
    name, section = config['architecture'], config.get(KEY) or {}
    check_model_name(name)
    args = {key: value for key, value in (config.get('model_args') or {}).items()
            if key in _MODEL_ARGUMENTS and not isinstance(value, Mapping)}
    asr = (section.get('asr') or {}) if section.get('form') == 'trainable' else {}
    args |= {key: value for key, value in asr.items() if key in ASR_KEYWORDS}
    said = {**(config.get('pretrained_cfg') or {}), **{key: config[key] for key in ('label_names',) if key in config}}
    cfg = {key: value for key, value in said.items() if key in CFG_KEYS}
    try:
        model = create_model(name, num_classes=config.get('num_classes', cfg.get('num_classes')), **args)
        model.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    except Exception as error:  # constructors raise whatever they like
        raise BadInput(f'{folder} cannot be loaded ({first_line(error)})') from None
    model.pretrained_cfg = {**model.pretrained_cfg, **cfg}  # type: ignore[dict-item, assignment]
    return model
