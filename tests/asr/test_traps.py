"""What timm and PyTorch do to models behind one's back: the attention stays, or it fails loudly."""

import copy
import gc
import io
import pickle
import socket

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
import torch.multiprocessing as mp
from helpers import KEYWORD_KINDS, asr_layers, clone, images, kinds, randomize, relative_error, same_gradients, small
from test_together import apart
from timm.layers import (
    SplitBatchNorm2d,
    convert_splitbn_model,
    convert_sync_batchnorm,
    freeze_batch_norm_2d,
    unfreeze_batch_norm_2d,
)
from timm.models import create_feature_extractor
from timm.models.byobnet import ByoBlockCfg
from timm.utils import ModelEmaV3, freeze
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops.misc import FrozenBatchNorm2d

import timm_asr
from timm_asr import fold_asr, has_asr
from timm_asr.asr.wrapper import ASR

ASR_KINDS = [name for name in kinds() if '_asr_' in name] + KEYWORD_KINDS
SOME = ['resnet20_asr_se', 'resnet18_srm_asr_srm', 'resnet50_asr_spa', 'vit_tiny_asr_eca']
OTHERS = ['repvgg_a0_cifar_se_asr_se', 'resnet56_acnet_asr_se', 'mobilenetv1_100_cifar_asr_ie',
          'shufflenetv2_100_cifar_srm_asr_srm', 'vgg19_cifar_asr_eca']


def model_and_images(name, batch=4, **kwargs):
    model = randomize(small(name, **kwargs)).eval()
    return model, images(model, batch)


@pytest.mark.parametrize(('convert', 'kind'), [
    (convert_sync_batchnorm, nn.SyncBatchNorm), (nn.SyncBatchNorm.convert_sync_batchnorm, nn.SyncBatchNorm),
    (lambda m: convert_splitbn_model(m, 2).double(), SplitBatchNorm2d), (freeze_batch_norm_2d, FrozenBatchNorm2d),
    (lambda m: unfreeze_batch_norm_2d(freeze_batch_norm_2d(m)), nn.BatchNorm2d),
    (lambda m: freeze(m, ['layer1', 'layer2.0.bn2']) or m, FrozenBatchNorm2d)])
def test_converted_norms_keep_the_attention(convert, kind):
    model, x = model_and_images('resnet20_asr_se')
    expected, vectors = model(x), len(asr_layers(model))
    model = convert(model).eval()
    assert type(model.layer1[0].bn2.layer) is kind
    assert len(asr_layers(model)) == vectors
    assert relative_error(expected, model(x)) < 1e-10
    assert relative_error(expected, fold_asr(model)(x)) < 1e-10


def test_frozen_batch_norm_trains_the_attention():
    model, x = model_and_images('resnet20_asr_se')
    expected = model(x)
    model = freeze_batch_norm_2d(model).train()
    assert relative_error(expected, model(x)) < 1e-10
    model(x).sum().backward()
    assert all(torch.isfinite(m.vectors[0].psi.grad).all() for m in asr_layers(model))


@pytest.mark.parametrize(('name', 'kwargs', 'trained'), [
    ('resnet20_asr_se', {'layers': (2, 2, 1)}, ('layer2', 'layer3', 'fc')),
    ('resnet20_spe', {}, ('layer2', 'layer3', 'fc')), ('vit_tiny_asr_eca', {}, ('blocks.1', 'norm', 'head'))])
def test_the_backward_pass_ends_where_all_before_is_frozen(name, kwargs, trained):
    model, x = model_and_images(name, **kwargs)
    other, needed = clone(model), []
    for key, p in model.named_parameters():
        p.requires_grad_(key.startswith(trained))
    model.get_submodule(trained[0]).register_forward_pre_hook(lambda _, inputs: needed.append(inputs[0].requires_grad))
    for network in (model, other):
        network(x).square().sum().backward()
    assert needed == [False]
    for (key, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (p.grad is not None) == key.startswith(trained)
        assert p.grad is None or relative_error(q.grad, p.grad) < 1e-9


@pytest.mark.parametrize(('name', 'early'), [
    ('resnet20_asr_se', 'layer1.0'), ('resnet56_acnet_asr_se', 'layer1.0'), ('vit_tiny_asr_se', 'blocks.0')])
def test_sites_that_a_loss_does_not_reach_get_no_gradient(name, early):
    """Zeros would do to a dropped block what weight decay and momentum do."""
    features, model = [], randomize(small(name)).eval()
    nets, x = (apart(model), model), images(model)
    for net in nets:
        net.get_submodule(early).register_forward_hook(lambda _, args, y: features.append(y))
        loss = net(x).square().sum()
        features.pop().square().sum().backward(retain_graph=True)
    missing = [key for key, p in nets[0].named_parameters() if p.grad is None]
    assert any('psi' in key for key in missing)
    assert missing == [key for key, p in model.named_parameters() if p.grad is None]
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize('name', ['resnet20_asr_se', 'resnet20_spe', 'resnet20_dia_lstm', 'resnet20_asr_spe'])
def test_a_pass_without_a_backward_pass_is_freed(name):
    model, x = model_and_images(name)
    model(x)
    counts = []
    for _ in range(2):
        gc.collect()
        counts.append(len(gc.get_objects()))
        for _ in range(8):
            model(x)
    assert counts[1] - counts[0] < 8  # a graph is a dozen objects


@pytest.mark.parametrize('name', SOME + OTHERS)
def test_ema_copies_follow(name):
    model, x = model_and_images(name)
    ema = ModelEmaV3(model, decay=0.5)
    randomize(model, seed=1)
    ema.update(model)
    for (key, p), q in zip(ema.module.named_parameters(), model.parameters(), strict=True):
        assert not key.endswith('psi') or not torch.equal(p, q)
    expected = ema.module(x)
    assert relative_error(expected, fold_asr(clone(ema.module))(x)) < 1e-12


@pytest.mark.parametrize('name', ASR_KINDS)
def test_deepcopy_and_pickle(name):
    model, x = model_and_images(name, batch=1)
    expected = model(x)
    other = copy.deepcopy(model)
    assert torch.equal(expected, other(x))
    fold_asr(other)
    assert has_asr(model)
    assert torch.equal(expected, model(x))  # the copy shared nothing
    assert torch.equal(expected, pickle.loads(pickle.dumps(model))(x))
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    fresh = small(name)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(expected, fresh.eval()(x))


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'kwargs'), [
    ('resnet20_srm_asr_srm', {'layers': (1, 1, 1)}), ('vit_tiny_asr_eca', {}), ('repvgg_a0_cifar_se_asr_se', {
        'blocks': (ByoBlockCfg('rep', d=2, c=16, s=1), ByoBlockCfg('rep', d=1, c=16, s=2))})])
def test_compile_without_graph_breaks(name, kwargs):
    model, x = model_and_images(name, **kwargs)
    for training in (False, True):
        eager = clone(model).train(training)
        compiled = clone(model).train(training)
        run = torch.compile(compiled, fullgraph=True, backend='aot_eager')
        expected, y = eager(x), run(x)
        assert relative_error(expected, y) < 1e-10
        expected.square().sum().backward()
        y.square().sum().backward()
        for (key, p), q in zip(eager.named_parameters(), compiled.parameters(), strict=True):
            assert (p.grad - q.grad).abs().max() <= 1e-8 * (1 + p.grad.abs().max()), key
        for a, b in zip(eager.buffers(), compiled.buffers(), strict=True):
            assert relative_error(a.double(), b.double()) < 1e-10


@pytest.mark.slow
def test_inductor_compiles_it():
    model, x = model_and_images('resnet20_asr_se')
    model, x = model.float(), x.float()
    assert relative_error(model(x), torch.compile(clone(model), fullgraph=True)(x)) < 1e-4


@pytest.mark.parametrize('name', ['resnet20_asr_se', 'resnet18_eca_asr_eca', *OTHERS])
def test_fx_feature_extraction(name):
    model, x = model_and_images(name)
    first = next(key for key, m in model.named_modules() if isinstance(m, ASR))
    stages = model.forward_intermediates(x, intermediates_only=True)
    nodes = {first: 'site'}
    if name.startswith('resnet') and 'acnet' not in name:
        nodes['layer2'] = 'stage'
    extract = create_feature_extractor(model, nodes)
    assert 'stage' not in nodes.values() or relative_error(stages[2], extract(x)['stage']) < 1e-12
    assert has_asr(extract)
    with pytest.raises(TypeError, match='torch.fx cannot look into ASR'):
        torch.fx.symbolic_trace(model)
    graph = small(name, features_only=True, feature_cls='fx').eval()
    assert len(graph(x)) == len(stages)


def test_fx_traces_what_holds_a_network():
    model, x = model_and_images('resnet20_spe')
    assert relative_error(model(x), torch.fx.symbolic_trace(nn.Sequential(model))(x)) < 1e-12


@pytest.mark.parametrize('name', SOME + OTHERS)
def test_gradient_checkpointing(name):
    model, x = model_and_images(name)
    other = clone(model)
    other.set_grad_checkpointing()
    for m in (model, other):
        m.train()
        m(x).square().sum().backward()
    same_gradients(model, other)


@pytest.mark.parametrize('name', SOME + OTHERS)
def test_bf16_autocast(name):
    model, x = model_and_images(name)
    model, x = model.float().train(), x.float()
    with torch.autocast('cpu', torch.bfloat16):
        loss = model(x).float().square().mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    model.eval()
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        assert relative_error(model(x).float(), fold_asr(clone(model))(x).float()) < 2e-2


@pytest.mark.parametrize('name', ['resnet20_asr_se', 'resnet18_srm_asr_srm', 'resnet20_spa', 'resnet20_cbam'])
def test_channels_last(name):
    model, x = model_and_images(name)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    assert relative_error(expected, model(x)) < 1e-12
    assert model.forward_features(x).is_contiguous(memory_format=torch.channels_last)
    assert relative_error(expected, model.reparameterize(fold_bn=True)(x)) < 1e-12


@pytest.mark.parametrize('name', SOME + OTHERS)
def test_in_chans_and_classifier(name):
    model, x = model_and_images(name, in_chans=1)
    assert x.shape[1] == 1
    assert model(x).shape == (4, 5)
    model.train()
    model.reset_classifier(0)
    assert model(x).shape == (4, model.num_features)
    model.reset_classifier(9)
    assert model(x).shape == (4, 9)
    assert model.get_classifier().weight.dtype == torch.float64
    assert all(m.training for m in model.modules())
    assert small(name, num_classes=0)(images(model.eval(), 2).repeat(1, 3, 1, 1)).shape == (2, model.num_features)
    if not name.startswith('vit'):
        model.reset_classifier(0, '')
        assert model(x).ndim == 4


@pytest.mark.parametrize('name', SOME + OTHERS)
def test_features_are_equal_before_and_after_fusing(name):
    more = {'out_indices': 2} if name.startswith('vit') else {}
    net = randomize(small(name, features_only=True, **more).double()).eval()
    model, x = model_and_images(name)
    expected = [*net(x), *model.forward_intermediates(x, intermediates_only=True)]
    timm_asr.reparameterize(net)
    assert not has_asr(net)
    y = [*net(x), *model.reparameterize().forward_intermediates(x, intermediates_only=True)]
    assert len(y) == len(expected) >= 4
    for a, b in zip(expected, y, strict=True):
        assert relative_error(a, b) < 1e-12


@pytest.mark.parametrize('name', SOME + OTHERS)
def test_meta_construction_and_loading(name):
    model, x = model_and_images(name)
    empty = small(name, device='meta')
    assert all(t.is_meta for t in (*empty.parameters(), *empty.buffers()))
    with torch.device('meta'):
        assert all(p.is_meta for p in small(name).parameters())
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(model(x), empty.eval()(x))


@pytest.mark.parametrize('name', ['resnet20_asr_se', 'resnet18_ie_asr_ie', *OTHERS])
def test_torchscript(name):
    model, x = model_and_images(name)
    assert relative_error(model(x), torch.jit.script(model)(x)) < 1e-12


#: Under DDP, and under FSDP2 where PyTorch has it: recurrent and shared attention too, which leave no parameter unused.
PARALLEL = [(name, False) for name in (
    'resnet20_se_asr_se', 'vit_tiny_asr_se', 'resnet20_dia_lstm', 'resnet20_dia_lstm_light', 'resnet83_dia_srm',
    'resnet20_spe', 'resnet20_ras_spa')]
if hasattr(torch.distributed.fsdp, 'fully_shard'):
    PARALLEL += [('resnet20_se_asr_se', True), ('vit_tiny_asr_se', True)]


def _parallel(name):
    """The same in every process; in eval mode, since BatchNorm over half a batch is not that over the whole."""
    torch.manual_seed(5)
    return model_and_images(name, **({} if name.startswith('vit') else {'layers': (2, 1, 2), 'channels': (8, 8, 8)}))


def _loss(model, x):
    return model(x).square().mean() + timm_asr.auxiliary_loss(model)


def _worker(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    gradients = {}
    for name, sharded in PARALLEL:
        model, x = _parallel(name)
        if sharded:
            from torch.distributed.fsdp import fully_shard
            mesh = dist.init_device_mesh('cpu', (2,))
            for block in list(model.blocks)[:1] if name.startswith('vit') else [*model.layer1]:
                fully_shard(block, mesh=mesh)  # the sites of the others belong to the network
            run = fully_shard(model, mesh=mesh)
        else:
            run = DistributedDataParallel(model, find_unused_parameters=False)
        for _ in range(2):  # DDP reports an unused parameter at the second step
            run.zero_grad()
            _loss(run, x.chunk(2)[rank]).backward()
        gradients[name, sharded] = [p.grad.full_tensor() if sharded else p.grad for p in model.parameters()]
    if rank == 0:
        torch.save(gradients, f'{folder}/gradients.pt')
    dist.barrier()  # neither ends while the other still talks to it
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    mp.start_processes(_worker, (port, str(tmp_path)), nprocs=2, start_method='spawn')
    for (name, sharded), found in torch.load(tmp_path / 'gradients.pt', weights_only=True).items():
        model, x = _parallel(name)
        _loss(model, x).backward()
        for (key, p), g in zip(model.named_parameters(), found, strict=True):
            assert (p.grad - g).abs().max() <= 1e-10 * max(p.grad.abs().max().item(), 1e-3), (name, sharded, key)


@pytest.mark.parametrize('name', ['resnet20_dia_lstm', 'resnet83_dia_srm', 'resnet20_spe', 'resnet20_ras_spa'])
def test_norms_inside_gates_are_synchronised_too(name):
    model, x = _parallel(name)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(clone(model))
    norms = [m for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(type(m) is nn.SyncBatchNorm for m in norms)
    assert relative_error(model(x), converted(x)) < 1e-12
