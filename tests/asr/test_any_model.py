"""ASR on a small model of each of timm's families: sites, exact folding to the stock model, fine-tuning, gradients.

All of timm is swept by results/sites.py; these are the members that a test can afford.
"""

import re

import pytest
import timm
import torch
from helpers import asr_layers, asr_sites, randomize, relative_error
from timm.layers import DropPath

import timm_asr

#: Name -> (keywords that shrink it, side of the image, its sites with numbers as *)
FAMILIES = {
    'test_resnet': ({}, 32, 'layer*.*.bn*'), 'resnest14d': ({}, 32, 'layer*.*.bn*'),
    'res2net50_26w_4s': ({'layers': (1, 1, 1, 1)}, 32, 'layer*.*.bn*'),
    'skresnet18': ({'layers': (1, 1, 1, 1)}, 32, 'layer*.*.conv*.bn'),
    'resnetv2_18': ({'layers': (1, 1, 1, 1)}, 32, 'stages.*.blocks.*.conv*'),
    'resnetv2_50x1_bit': ({}, 32, 'stages.*.blocks.*.norm*'), 'regnetx_002': ({}, 32, 's*.b*.conv*.bn'),
    'test_byobnet': ({}, 32, 'stages.*.*.conv*_*x*.bn stages.*.*.conv*_kxk.bn'),
    'mobileone_s0': ({}, 32, 'stages.*.* stem'), 'test_efficientnet': ({}, 32, 'blocks.*.*.bn*'),
    'mobilenetv4_conv_small_050': ({}, 32, 'blocks.*.*.pw_proj.bn'),
    'ghostnet_050': ({}, 32, 'blocks.*.*.ghost*.cheap_operation.* blocks.*.*.ghost*.primary_conv.*'),
    'repghostnet_050': ({}, 32, 'blocks.*.*.ghost*'), 'test_nfnet': ({}, 32, 'stages.*.*.conv*'),
    'densenet121': ({'block_config': (2, 2, 2, 2)}, 64, 'features.denseblock*.denselayer*.norm* features.norm*'),
    'dpn48b': ({'k_sec': (1, 1, 1, 1)}, 32, 'features.conv*_*.c*x*_c*'),
    'vgg11_bn': ({'mlp_ratio': 0.02}, 64, 'features.*'), 'selecsls42': ({}, 64, 'features.*.conv*.* head.*.* stem.*'),
    'rexnet_100': ({'depth_mult': 0.4}, 32, 'features.*.conv_pwl.bn'),
    'dla46_c': ({}, 64, 'level*.tree*.bn* level*.tree*.tree*.bn*'),
    'test_convnext': ({}, 32, 'stages.*.blocks.*.mlp.fc*'),
    'poolformer_s12': ({}, 64, 'stages.*.blocks.*.mlp.fc* stages.*.blocks.*.norm*'),
    'caformer_s18': ({}, 32,
                     'stages.*.blocks.*.mlp.fc* stages.*.blocks.*.token_mixer.proj '
                     'stages.*.blocks.*.token_mixer.pwconv*'),
    'fastvit_t8': ({'layers': (1, 1, 1, 1)}, 64, 'stages.*.blocks.*.mlp.fc* stages.*.blocks.*.token_mixer'),
    'repvit_m0_9': ({'depth': (1, 1, 1, 1)}, 64,
                    'stages.*.blocks.*.channel_mixer.conv* stages.*.blocks.*.token_mixer stages.*.downsample.ffn.conv* '
                    'stages.*.downsample.pre_block.channel_mixer.conv* stages.*.downsample.pre_block.token_mixer'),
    'efficientvit_b0': ({}, 64,
                        'stages.*.blocks.*.context_module.main.proj.norm '
                        'stages.*.blocks.*.local_module.main.point_conv.norm '
                        'stages.*.blocks.*.main.point_conv.norm stem.res*.main.point_conv.norm'),
    'mobilevit_xxs': ({}, 64, 'stages.*.*.conv*_*x*.bn stages.*.*.transformer.*.attn.proj '
                              'stages.*.*.transformer.*.mlp.fc*'),
    'test_vit': ({}, 160, 'blocks.*.attn.proj blocks.*.mlp.fc*'),
    'eva02_tiny_patch14_224': ({'depth': 2, 'img_size': 28}, 28, 'blocks.*.attn.proj blocks.*.mlp.fc*'),
    'cait_xxs24_224': ({'depth': 2, 'img_size': 32}, 32,
                       'blocks.*.attn.proj blocks.*.mlp.fc* blocks_token_only.*.attn.proj blocks_token_only.*.mlp.fc*'),
    'xcit_nano_12_p16_224': ({'depth': 2, 'img_size': 64}, 64, None),
    'swin_tiny_patch4_window7_224': (
        {'depths': (1, 1, 1, 1), 'img_size': 64, 'window_size': 2, 'embed_dim': 24, 'num_heads': (1, 2, 2, 2)}, 64,
        'layers.*.blocks.*.attn.proj layers.*.blocks.*.mlp.fc*'),
    'test_maxvit': ({}, 160, None),
    'test_coatnet': ({}, 160, 'stages.*.blocks.*.attn.proj stages.*.blocks.*.conv*_*x* stages.*.blocks.*.mlp.fc*'),
    'levit_128s': ({}, 224, None), 'tiny_vit_5m_224': ({'depths': (1, 1, 1, 1)}, 64, None),
    'gmlp_ti16_224': ({'img_size': 64}, 64, 'blocks.*.mlp_channels.fc*'),
    'sequencer2d_s': ({'layers': (1, 1, 1, 1), 'embed_dims': (24, 24, 24, 24), 'hidden_sizes': (8, 8, 8, 8)}, 64,
                      'stages.*.blocks.*.mlp_channels.fc* stages.*.blocks.*.rnn_tokens.fc')}


@pytest.mark.parametrize('name', FAMILIES)
def test_a_family(name):
    kwargs, size, places = FAMILIES[name]
    make = lambda: timm.create_model(name, num_classes=5, **kwargs).double()  # noqa: E731
    model = randomize(make()).eval()
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        timm_asr.attach_asr(model, 'se', preserve=True)
        if places is not None:
            assert sorted({re.sub(r'\d+', '*', n) for n in asr_sites(model)}) == sorted(places.split())
        assert relative_error(before, model(x)) < 1e-9
        assert not any(asr.training for asr in asr_layers(model))
        for asr in asr_layers(model):
            randomize(asr.vectors)
        expected = model(x)
        assert relative_error(before, expected) > 1e-9
        state = timm_asr.fold_asr(model).state_dict()
        assert not any(type(m).__module__.startswith('timm_asr') for m in model.modules())
        assert relative_error(expected, model(x)) < 1e-12
        stock = make().eval()
        stock.load_state_dict(state, strict=True)
        assert relative_error(expected, stock(x)) < 1e-12

    timm_asr.attach_asr(stock, 'se').train()
    for module in stock.modules():
        if isinstance(module, DropPath):  # it could drop both images of a branch
            module.eval()
    stock(torch.cat([x, x.flip(-1)])).square().mean().backward()
    for key, p in stock.named_parameters():
        if '.vectors.' in key:
            assert p.grad.isfinite().all(), key
            assert p.grad.any() or not key.endswith('.psi'), key
