"""Gates replaced by their means: exact where they are constant, and what is reported where they are not."""

import copy
from unittest.mock import Mock

import pytest
import timm
import torch
from freeze_helpers import CIFAR, FIVE, IMAGENET, build, gates_of, literally_frozen, loader, logits, make_constant
from helpers import randomize, relative_error
from timm.layers.cbam import CbamModule
from torch import nn
from torch.optim.swa_utils import update_bn

import timm_asr
from timm_asr.asr.wrapper import ASR
from timm_asr.freeze.attention import recalibrate_batch_norm
from timm_asr.freeze.report import _figures
from timm_asr.gates.gate import ChannelGate

# Name, its keywords, the plain network that is left with its keywords, image size, and where the constants go.
EXACT = [
    *[(f'resnet20_{gate}', CIFAR, 'resnet20', CIFAR, 16, 'before')
      for gate in ('se', 'eca', 'ie', 'srm', 'spa', 'spe', 'ras', 'ras_se')],
    ('wrn52_4_se', CIFAR, 'wrn52_4', CIFAR, 16, 'before'), ('seresnet50', IMAGENET, 'resnet50', IMAGENET, 64, 'before'),
    ('ecaresnet50d', IMAGENET, 'resnet50d', IMAGENET, 64, 'before'),
    ('resnet18_se', IMAGENET, 'resnet18', IMAGENET, 64, 'before'), ('legacy_seresnet18', FIVE, None, {}, 64, 'before'),
    ('nf_ecaresnet26', FIVE, None, {}, 64, 'before'),
    ('regnety_002', FIVE, 'regnety_002', {**FIVE, 'se_ratio': 0}, 64, 'before'),
    ('ese_vovnet19b_dw', FIVE, None, {}, 64, 'before'),
    ('rexnet_100', FIVE, 'rexnet_100', {**FIVE, 'se_ratio': 0}, 64, 'before'),
    ('efficientnet_b0', FIVE, 'efficientnet_b0', {**FIVE, 'se_layer': nn.Identity}, 64, 'after'),
    ('mobilenetv3_small_100', FIVE, None, {}, 64, 'mixed'), ('repvit_m0_9', FIVE, None, {}, 64, 'before'),
    ('mixnet_s', FIVE, None, {}, 64, 'some')]


@pytest.mark.parametrize(('name', 'kwargs', 'plain', 'plain_kwargs', 'size', 'where'), EXACT, ids=[e[0] for e in EXACT])
def test_constant_gates_are_frozen_exactly(name, kwargs, plain, plain_kwargs, size, where):
    model = build(name, **kwargs)
    x = torch.randn(4, 3, size, size, dtype=torch.float64)
    names = make_constant(model, x)
    expected = logits(model, x)
    report = timm_asr.freeze_attention(model, loader(x, 2))

    assert relative_error(expected, logits(model, x)) < 1e-12
    assert [gate.name for gate in report.frozen] == names
    assert max(gate.std.max().item() for gate in report.gates) < 1e-12
    assert max(gate.mean.std().item() for gate in report.gates) > 0.01 or 'eca' in name or 'spa' in name
    assert report.change.largest <= 1e-12 * report.change.largest_logit
    assert report.change.same_top1 == 100
    fates = {'before' if gate.what.startswith('folded') and 'inputs' not in gate.what else
             'after' if gate.what.startswith('folded') else 'multiplied' for gate in report.gates}
    assert fates == {'mixed': {'before', 'after'}, 'some': {'after', 'multiplied'}}.get(where, {where})
    assert not gates_of(model, x)
    if plain:
        stock = timm.create_model(plain, dtype=torch.float64, **plain_kwargs).eval()
        stock.load_state_dict(model.state_dict(), strict=True)
        assert relative_error(expected, logits(stock, x)) < 1e-12
        assert report.parameters[1] == sum(p.numel() for p in stock.parameters())
    assert report.architecture == ('' if 'se_layer' in plain_kwargs else plain or '')  # a class is no keyword to save


def test_vectors_of_asr_stay_and_fold_later():
    model = build('resnet20_se_asr_se', **CIFAR)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    make_constant(model, x)
    expected = logits(model, x)
    report = timm_asr.freeze_attention(model, loader(x))
    assert isinstance(model.layer1[0].bn2, ASR)
    assert report.gates[0].what == 'folded into layer1.0.bn2'
    assert relative_error(expected, logits(model, x)) < 1e-12
    stock = timm.create_model('resnet20', dtype=torch.float64, **CIFAR).eval()
    stock.load_state_dict(timm_asr.fold_asr(model).state_dict(), strict=True)
    assert relative_error(expected, logits(stock, x)) < 1e-12


@pytest.mark.parametrize(('name', 'kwargs'), [
    ('seresnet50', IMAGENET), ('resnet20', {**CIFAR, 'gate': 'se', 'rd_ratio': 0.25}), ('resnet20_se_asr_se', CIFAR),
    ('resnet20_se', {**CIFAR, 'asr': 'eca', 'asr_depth': 2})])
def test_saved_as_the_network_that_it_is(name, kwargs, tmp_path):
    model = timm_asr.fold_asr(randomize(timm.create_model(name, **kwargs)))
    plain = name.removeprefix('se').partition('_')[0]
    x = torch.randn(4, 3, *model.default_cfg['input_size'][1:])
    report = timm_asr.freeze_attention(model, [x], threshold=0)
    if len(report.frozen) < len(report.gates):  # the others in a second step; some gates are constant by chance
        report = timm_asr.freeze_attention(model, [x])
    assert report.architecture == model.pretrained_cfg['architecture'] == plain
    assert f"The model is a '{plain}' now." in str(report)
    timm_asr.save_fused(model, tmp_path / 'frozen', check=False)
    loaded = timm.create_model(f'local-dir:{tmp_path}/frozen', pretrained=True)
    assert not gates_of(loaded.eval(), x)
    assert relative_error(logits(model.eval(), x), logits(loaded, x)) < 1e-6
    kept = randomize(timm.create_model(name, **kwargs))
    assert not timm_asr.freeze_attention(kept, [x], threshold=1e-9).architecture
    assert kept.pretrained_cfg['architecture'] == name


def test_then_the_inference_form():
    model = build('resnet20_se', **CIFAR)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    timm_asr.freeze_attention(model, [x])
    expected = logits(model, x)
    assert relative_error(expected, logits(model.reparameterize(fold_bn=True), x)) < 1e-12
    assert all(type(m) in (nn.Conv2d, nn.Linear) or isinstance(m, nn.Conv2d)
               for m in model.modules() if next(m.parameters(recurse=False), None) is not None)


@pytest.mark.parametrize(('name', 'size'), [('resnet20_se', 16), ('efficientnet_b0', 64), ('regnety_002', 64)])
def test_figures_of_gates_that_are_not_constant(name, size):
    model = build(name, **(CIFAR if size == 16 else FIVE))
    x = torch.randn(10, 3, size, size, dtype=torch.float64)
    labels = torch.arange(10) % 5
    seen, handles = {}, []
    for key, module in model.named_modules():
        if key.endswith('.se'):
            def keep(m, i, o, key=key):
                seen[key] = m.excite(m.pool(i[0])) if isinstance(m, ChannelGate) else o.flatten(1)
            place = module if isinstance(module, ChannelGate) else module.gate
            handles.append(place.register_forward_hook(keep))
    before = logits(model, x)
    for handle in handles:
        handle.remove()
    after = logits(literally_frozen(model, {key: v.mean(0) for key, v in seen.items()}), x)

    model.train()
    report = timm_asr.freeze_attention(model, list(zip(x.split(3), labels.split(3), strict=True)))
    assert model.training
    assert [gate.name for gate in report.gates] == list(seen)
    for gate in report.gates:
        v = seen[gate.name]
        assert torch.allclose(gate.mean, v.mean(0), atol=1e-10)
        assert torch.allclose(gate.std, v.std(0, unbiased=False), atol=1e-8)
        assert gate.mean_std == pytest.approx(v.std(0, unbiased=False).mean().item())
    assert max(gate.mean_std for gate in report.gates) > 1e-3
    assert relative_error(after, logits(model.eval(), x)) < 1e-12
    change = report.change
    assert change.mean == pytest.approx((after - before).abs().mean().item())
    assert change.largest == pytest.approx((after - before).abs().max().item())
    assert change.largest_logit == pytest.approx(before.abs().max().item())
    assert change.same_top1 == pytest.approx(100 * (after.argmax(1) == before.argmax(1)).double().mean().item())
    assert change.top1 == pytest.approx(tuple(
        100 * (y.argmax(1) == labels).double().mean().item() for y in (before, after)))
    assert report.images == change.images == 10
    told = _figures(Mock(top1=(50.0, 40.0)))
    assert (told['top1_before'], told['top1_after']) == (50, 40)


def test_a_threshold_leaves_gates_as_they_are():
    model = build('resnet20_se', **CIFAR)
    x = torch.randn(8, 3, 16, 16, dtype=torch.float64)
    stds = sorted(g.mean_std for g in timm_asr.freeze_attention(copy.deepcopy(model), [x]).gates)
    threshold = (stds[1] + stds[2]) / 2
    original = copy.deepcopy(model)
    report = timm_asr.freeze_attention(model, [x], threshold=threshold)
    assert len(report.frozen) == 2
    for gate in report.gates:
        assert gate.frozen == (gate.mean_std <= threshold)
        left = model.get_submodule(gate.name)
        if not gate.frozen:
            assert gate.what == f'left: its deviation exceeds {threshold:g}'
            for a, b in zip(left.parameters(), original.get_submodule(gate.name).parameters(), strict=True):
                assert torch.equal(a, b)
    means = {gate.name: gate.mean for gate in report.frozen}
    assert relative_error(logits(literally_frozen(original, means), x), logits(model, x)) < 1e-12
    ladder = timm_asr.freeze_attention(copy.deepcopy(original), [x], threshold=threshold, thresholds=4).costs
    assert [cost.frozen for cost in ladder] == [sum(std <= cost.threshold for std in stds) for cost in ladder]
    assert ladder[-1].frozen == 4
    assert len(ladder) > 1
    same = [cost.change.largest for cost in ladder if cost.frozen == 2]
    assert same == pytest.approx([report.change.largest] * len(same))
    state = copy.deepcopy(model.state_dict())
    assert not timm_asr.freeze_attention(model, [x], threshold=0).frozen
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_statistics_of_batch_norms():
    model = build('resnet20_se', **CIFAR)
    x = torch.randn(12, 3, 16, 16, dtype=torch.float64)
    batches = list(x.split(4))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.num_batches_tracked += 7  # it was trained
    plain = copy.deepcopy(model)
    timm_asr.freeze_attention(plain, batches)
    update_bn(batches, plain)
    again = copy.deepcopy(model)
    report = timm_asr.freeze_attention(model.eval(), batches, recalibrate_bn=True)
    assert report.recalibrated == len(norms) == 11
    assert not any(m.training for m in model.modules())
    for key, value in plain.state_dict().items():
        assert torch.allclose(model.state_dict()[key].double(), value.double(), rtol=1e-10), key
    assert 'The statistics of 11 BatchNorms were estimated anew' in str(report)
    assert list(report.changes) == ['frozen', 'new statistics alone', 'frozen, new statistics']
    assert report.change is report.changes['frozen, new statistics']
    assert min(change.largest for change in report.changes.values()) > 1e-4
    assert recalibrate_batch_norm(again, batches) == 11
    assert all(m.momentum == 0.1 and not m.training for m in again.modules() if isinstance(m, nn.BatchNorm2d))


def test_norms_that_cannot_be_measured():
    """A last batch of one image, on maps of one pixel, is left out; a norm that does not run is left alone."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1, dtype=torch.float64), nn.BatchNorm2d(4, dtype=torch.float64))
    model[0].unused = randomize(nn.BatchNorm2d(4))
    before = {key: value.clone() for key, value in model[0].unused.state_dict().items()}
    x = torch.randn(5, 3, 1, 1, dtype=torch.float64)
    assert recalibrate_batch_norm(model.eval(), x.split(4)) == 1
    assert torch.allclose(model[1].running_mean, model[0](x[:4]).mean((0, 2, 3)))
    assert all(torch.equal(before[key], value) for key, value in model[0].unused.state_dict().items())
    x = torch.randn(3, 3, 2, 2, dtype=torch.float64)
    assert recalibrate_batch_norm(model, x.split(1)) == 1  # batches of one image are all there are
    assert torch.allclose(model[1].running_mean, model[0](x).mean((0, 2, 3)))


def test_images_of_their_own_to_compare_on():
    model = build('resnet20_se', **CIFAR)
    x, y = torch.randn(8, 3, 16, 16, dtype=torch.float64), torch.randn(5, 3, 16, 16, dtype=torch.float64)
    before = logits(model, y)
    report = timm_asr.freeze_attention(model, loader(x), eval_loader=loader(y), samples=4, thresholds=3)
    assert (report.images, report.change.images, report.change.labelled) == (4, 5, 5)
    assert report.change.largest == pytest.approx((logits(model, y) - before).abs().max().item())
    assert 'Compared on 5 images, other ones' in str(report)
    assert 'What thresholds would cost on these images' in str(report)
    assert len(report.as_dict()['thresholds']) == len(report.costs) > 1


def test_other_attention_is_named():
    model = build('resnet20_se', **CIFAR)
    model.layer2[0].se = timm_asr.get_gate('cbam')(8, dtype=torch.float64)
    model.layer3[0].se = CbamModule(16, dtype=torch.float64)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    report = timm_asr.freeze_attention(model, [x])
    assert report.left == {'layer2.0.se': 'it weighs positions too', 'layer3.0.se': 'it weighs positions too'}
    assert [gate.name for gate in report.frozen] == ['layer1.0.se', 'layer1.1.se']
    assert 'layer2.0.se' in str(report)
    assert 'left: it weighs positions too' in str(report)


def test_layer_scale_is_no_gate():
    model = randomize(timm.create_model('convnext_atto', num_classes=5, depths=(1, 1, 1, 1), ls_init_value=0.1,
                                        dtype=torch.float64)).eval()
    scaled = nn.Sequential(nn.Conv2d(3, 8, 3), timm.layers.LayerScale2d(8)).double().eval()
    for batch in (1, 2):
        x = torch.randn(batch, 3, 32, 32, dtype=torch.float64)
        assert not gates_of(model, x)
        assert not gates_of(scaled, x)


def test_wrappers_and_feature_extractors():
    model = randomize(timm.create_model('resnet20_se', features_only=True, **{**CIFAR, 'num_classes': 0}))
    report = timm_asr.freeze_attention(nn.DataParallel(model), [torch.randn(2, 3, 16, 16)])
    assert len(report.frozen) == 4
    assert report.change is None
    assert 'puts out no logits' in str(report)
    assert not gates_of(model.eval(), torch.randn(2, 3, 16, 16))
