"""One vector for a sum of branches: the same as multiplying the sum, under everything that is done to such a block."""

import copy
import pickle

import pytest
import torch
from helpers import asr_layers, clone, randomize, relative_error, same_gradients
from timm.layers import convert_splitbn_model, convert_sync_batchnorm, freeze_batch_norm_2d
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg, RepVggBlock
from timm.utils import reparameterize_model
from torch import nn

from timm_asr import attach_asr, fold_asr, has_asr, reparameterize
from timm_asr.asr.blocks import existing, register_block
from timm_asr.asr.wrapper import ASR, wrap
from timm_asr.gates.table import asr_gate


def plain(gate=None, **kwargs):
    """Two stages of a block without and one with an identity branch."""
    blocks = tuple(ByoBlockCfg('rep', d=2, c=16 * i, s=2) for i in (1, 2))
    return ByobNet(ByoModelCfg(blocks, stem_type='rep', stem_chs=8, attn_layer=gate), 3, **kwargs).double()


@pytest.fixture(params=[None, 'se'])
def model(request):
    return randomize(attach_asr(plain(request.param), 'se', sites=['stem', 'stages.*.*'], depth=2)).eval()


X = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

@pytest.mark.parametrize('training', [False, True])
def test_it_is_the_sum_times_the_vector_with_every_gradient(model, training):
    for asr, channels in ((model.stages[0][0], 8), (model.stages[0][1], 16)):
        x = torch.randn(4, channels, 7, 7, dtype=torch.float64)
        ours, theirs = copy.deepcopy(asr).train(training), copy.deepcopy(asr)
        block = theirs.layer.train(training)
        total = block.conv_kxk(x) + block.conv_1x1(x) + (0 if block.identity is None else block.identity(x))
        expected = block.act(block.attn(total * theirs.attention_vector().view(1, -1, 1, 1)))
        y = ours(x)
        assert relative_error(expected, y) < 1e-12
        expected.square().sum().backward()
        y.square().sum().backward()
        same_gradients(theirs, ours, 1e-10)
        for (key, p), q in zip(ours.named_buffers(), theirs.buffers(), strict=True):
            assert torch.equal(p, q), key  # running statistics move alike


def _blocks_one_by_one(model):
    for module in model.modules():
        if hasattr(module, 'reparameterize'):
            module.reparameterize()
    return model


ORDERS = {
    'timm': (reparameterize_model,), 'ours': (reparameterize,), 'fold, timm': (fold_asr, reparameterize_model),
    'ours, timm': (reparameterize, reparameterize_model),
    'timm, ours': (reparameterize_model, reparameterize, fold_asr), 'blocks, fold': (_blocks_one_by_one, fold_asr),
    'blocks, ours': (_blocks_one_by_one, reparameterize), 'blocks, timm': (_blocks_one_by_one, reparameterize_model),
    'norms': (lambda model: reparameterize(model, fold_bn=True),)}


@pytest.mark.parametrize('order', ORDERS)
def test_branches_merge_in_any_order(model, order):
    expected, changed = model(X), clone(model)
    for step in ORDERS[order]:
        changed = step(changed)
        assert relative_error(expected, changed(X)) < 1e-12  # after every step, not only the last
    blocks = [m for m in changed.modules() if isinstance(m, RepVggBlock)]
    assert len(blocks) == 5
    assert all(block.reparam_conv is not None for block in blocks)
    assert not has_asr(changed)
    assert has_asr(model)


@pytest.mark.parametrize('change', [
    convert_sync_batchnorm, nn.SyncBatchNorm.convert_sync_batchnorm, freeze_batch_norm_2d,
    lambda m: convert_splitbn_model(m, 2).double().eval(), lambda m: m.to(memory_format=torch.channels_last),
    lambda m: pickle.loads(pickle.dumps(m)), torch.jit.script, lambda m: torch.jit.script(_blocks_one_by_one(m)),
    lambda m: torch.export.export(m, (X,)).module(),
], ids=['sync', 'torch-sync', 'freeze', 'split', 'channels_last', 'pickle', 'script', 'merged-script', 'export'])
def test_what_is_done_to_models_keeps_the_attention(model, change, request):
    if request.node.callspec.id.endswith('export') and torch.__version__.startswith('2.5.'):
        pytest.skip('the strict export of PyTorch 2.5 cannot ask whether autocast is on; fold first there')
    expected = model(X)
    other = change(clone(model))
    assert relative_error(expected, other(X)) < 1e-12
    if isinstance(other, ByobNet):
        assert len(asr_layers(other)) == 5
        assert relative_error(expected, fold_asr(other)(X)) < 1e-12


def test_scripted_training_has_the_gradients(model):
    eager, scripted = clone(model).train(), torch.jit.script(clone(model).train())
    eager(X).square().sum().backward()
    scripted(X).square().sum().backward()
    same_gradients(eager, scripted)


def test_a_site_inside_a_site_is_refused():
    stock = plain()
    with pytest.raises(ValueError, match=r"site 'stages.0.0.conv_kxk.bn': it is inside 'stages.0.0', another site"):
        attach_asr(stock, sites=['stages.0.0', 'stages.0.*.conv_kxk.bn'])
    assert not has_asr(stock)
    attach_asr(stock, sites=['stages.0.0.conv_kxk.bn'])
    with pytest.raises(TypeError, match=r"ASR does not fit the site 'stages.0.0': A NormActASR cannot be scaled"):
        attach_asr(stock, sites=['stages.0.0'])


class Two(nn.Module):
    """A block of somebody else's, with a list of branches."""

    def __init__(self, *widths, act=None):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, width, 1), nn.BatchNorm2d(width), *([act] if act else [])) for width in widths)
        self.nothing = None

    def forward(self, x):
        return sum(branch(x) for branch in self.branches)


class Fusable(nn.Sequential):
    """Like the blocks of RepViT: it gives another module in its place."""

    def fuse(self):
        conv = nn.Conv2d(4, 4, 1).double()
        conv.weight.data, conv.bias.data = self[0].weight.detach(), self[0].bias.detach()
        return conv


def test_ones_own_block(monkeypatch):
    monkeypatch.setattr('timm_asr.asr.blocks.BLOCKS', {})
    register_block(Two, ends=lambda block: existing(block, 'nothing', 'branches.1'))
    with pytest.raises(RuntimeError, match='block Two is registered already'):
        register_block(Two, ends=lambda block: [])
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    asr = randomize(wrap(Two(4, 4).double(), asr_gate('ie'))).eval()
    assert type(asr) is ASR
    assert relative_error(asr.layer(x) * asr.attention_vector().view(1, -1, 1, 1), asr(x)) < 1e-12
    with pytest.raises(TypeError, match='ASR on a Two cannot be scripted'):
        torch.jit.script(asr)
    with pytest.raises(TypeError, match='parallel branches of this Two differ in their number of channels'):
        wrap(Two(4, 5), asr_gate('ie'))
    with pytest.raises(TypeError, match='This Two has no parallel branch that ends in a layer to scale'):
        wrap(Two(), asr_gate('ie'))
    register_block(Fusable, ends=lambda block: ['0'])
    body = nn.Sequential(randomize(wrap(Fusable(nn.Conv2d(4, 4, 1)).double(), asr_gate('ie'))))
    expected = body(x)
    body = reparameterize_model(body)
    assert type(body[0]) is nn.Conv2d
    assert relative_error(expected, body(x)) < 1e-12


def test_branches_that_end_in_an_activation_are_refused():
    block = plain().stages[0][0]
    block.conv_1x1.bn.act = nn.ReLU()
    with pytest.raises(TypeError, match="parallel branch 'conv_1x1.bn' of this RepVggBlock ends in an activation"):
        wrap(block, asr_gate('se'))
