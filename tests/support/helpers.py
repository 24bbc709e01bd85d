"""What several test files need: random states, errors, small versions of every registered model."""

import copy

import timm
import torch
from timm.models import get_pretrained_cfg, list_models, model_entrypoint
from timm.models.byobnet import ByoBlockCfg
from torch import nn

from timm_asr.asr.ungated import UNGATED
from timm_asr.asr.wrapper import ASR


def zoo_names() -> list[str]:
    """Every name that this package registers."""
    return [n for n in list_models() if model_entrypoint(n).__module__.startswith('timm_asr.')]


# Names that differ in depth alone are one kind; its shallowest stands for it where a test shrinks the depth anyway.
_DEEPER = {
    'resnet18': ('resnet34',), 'resnet50': ('resnet101', 'resnet152'),
    'resnet20': ('resnet32', 'resnet44', 'resnet56', 'resnet110'),
    'resnet83': ('resnet164', 'resnet245', 'resnet326', 'resnet407'), 'repvgg_a0': ('repvgg_b3',),
    'vit_tiny': ('vit_small', 'vit_base_384', 'vit_base')}


# Backbones whose every gate is a gate of resnet20, resnet83 and wrn52_4, in blocks of the same classes or by a place of
# their own: a few of their names stand for the rest.
_FEW = ('resnet18', 'resnet50', 'resnext101_8x32d', 'repvgg_a0', 'repvgg_a0_cifar', 'resnet56_acnet',
        'mobilenetv1_100', 'mobilenetv1_100_cifar', 'shufflenetv2_100', 'shufflenetv2_100_cifar', 'vgg19_cifar')
_FEW_ENDS = ('', '_spa', '_asr_se', '_srm_asr_srm', '_spe', '_ras', '_dia_srm', '_dia_lstm')


# Plain backbones that take vectors without a gate by keyword; 'NAME+free' stands for ``asr='free'``.
_PLAIN = ('resnet20', 'resnet83', 'wrn52_4', 'repvgg_a0_cifar', 'resnet56_acnet',
          'mobilenetv1_100_cifar', 'shufflenetv2_100_cifar', 'vgg19_cifar')
KEYWORD_KINDS = [f'{name}+{asr}' for name in _PLAIN for asr in UNGATED]


def names_of_one_depth() -> list[str]:
    """The registered names but those that a shallower one stands for."""
    deeper = tuple(f'{name}_' for names in _DEEPER.values() for name in names)
    return [n for n in zoo_names() if n.startswith('resnet56_acnet') or not f'{n}_'.startswith(deeper)]


def kinds() -> list[str]:
    """One registered name of every kind: all of them but those that a shallower or simpler one stands for."""
    few = {f'{name}{end}' for name in _FEW for end in _FEW_ENDS}
    simpler = tuple(f'{name}_' for name in _FEW)
    return [n for n in names_of_one_depth()
            if (n in few or not f'{n}_'.startswith(simpler)) and '_spem' not in n]  # is spe


def small(name: str, **kwargs) -> nn.Module:
    """A registered model from its own entrypoint, or with ASR by keyword ('NAME+free'); few blocks, float64."""
    name, _, asr = name.partition('+')
    kwargs = {**kwargs, 'asr': asr} if asr else kwargs
    large = get_pretrained_cfg(name).input_size != (3, 32, 32)
    if name.startswith('vit'):
        shrink = {'depth': 2, 'img_size': 32, 'embed_dim': 48, 'num_heads': 3}
    elif name.startswith('repvgg'):
        strides = (2 if large else 1, 2, 2, 2)
        stages = [ByoBlockCfg('rep', d=2 if i == 0 else 1, c=16 + 16 * (i > 1), s=s) for i, s in enumerate(strides)]
        shrink = {'blocks': tuple(stages), 'stem_chs': 16}
    elif name.startswith('mobilenet'):
        shrink = {'depth_multiplier': 0.2}
    elif name.startswith('vgg'):
        shrink = {'layers': (2, 1, 1, 1, 1), 'channels': (16, 16, 32, 32, 32)}
    elif name.startswith('shufflenet'):
        shrink = {'layers': (2, 1, 1), 'channels': (16, 32, 32, 64, 64)}
    elif large:
        shrink = {'layers': (2, 1, 1, 1), 'channels': (16, 16, 32, 32)}
    else:
        shrink = {'layers': (2, 1, 1)}
    return timm.create_model(name, **{'dtype': torch.float64, 'num_classes': 5, **shrink, **kwargs})


def images(model: nn.Module, batch: int = 2, size: int | None = None) -> torch.Tensor:
    """Random images that fit a model and its dtype, small ones where any size will do."""
    channels, height, _ = model.default_cfg['input_size']
    grid = getattr(getattr(model, 'patch_embed', None), 'img_size', None)
    size = size or (grid[0] if grid else 16 if height == 32 else 64)
    dtype = next(model.parameters()).dtype
    return torch.randn(batch, getattr(model, 'in_chans', channels), size, size).to(dtype)


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move every parameter and statistic away from its initial value, keeping activations of order one."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.empty(like.shape, dtype=torch.float64).uniform_(low, high, generator=generator).to(like)

    for name, p in model.named_parameters():
        if p.ndim > 1:  # some noise on top of the initialisation, whose scale is right
            p.add_(draw(p, -1, 1) * (p.std() if p.numel() > 1 and p.std() > 0 else 0.1) * 0.3)
        elif name.endswith('psi'):
            p.copy_(draw(p, -1, 1))
        elif name.endswith('weight'):
            p.copy_(draw(p, 0.6, 1.4))
        else:
            p.copy_(draw(p, -0.3, 0.3))
    for name, b in model.named_buffers():
        if name.endswith('running_mean'):
            b.copy_(draw(b, -0.3, 0.3))
        elif name.endswith('running_var'):
            b.copy_(draw(b, 0.6, 1.4))
    return model


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return ((a - b).abs().max() / a.abs().max().clamp_min(1e-30)).item()


def same_gradients(expected: nn.Module, found: nn.Module, limit: float = 1e-9) -> None:
    """Assert that two copies of a model have the same gradients."""
    for (key, p), q in zip(expected.named_parameters(), found.parameters(), strict=True):
        assert relative_error(p.grad, q.grad) < limit, key


def asr_layers(model: nn.Module) -> list[ASR]:
    return [m for m in model.modules() if isinstance(m, ASR)]


def asr_sites(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, ASR)]


def clone(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)
