"""torchvision's detectors over timm networks: fused they find the same, their state dict is the plain one's."""

import copy
import math

import pytest
import timm
import torch
from helpers import asr_layers, randomize, relative_error
from torch import nn
from torchvision.models.detection import faster_rcnn, retinanet
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.misc import FrozenBatchNorm2d

import timm_asr
from timm_asr.detection import create_detector
from timm_asr.detection.backbone import make_body
from timm_asr.detection.create import region_pool
from timm_asr.inference.block import InferenceBlock

SMALL = {'num_classes': 4, 'fpn_channels': 16, 'min_size': 64, 'max_size': 96}
RCNN = {**SMALL, 'box_detections_per_img': 8, 'box_score_thresh': 0.0, 'rpn_post_nms_top_n_test': 30}
KWARGS = {'fasterrcnn': RCNN, 'maskrcnn': RCNN, 'retinanet': {**SMALL, 'detections_per_img': 8, 'score_thresh': 0.0}}
SLIM = {'layers': (2, 1, 1, 1), 'channels': (16, 16, 32, 32)}


def build(kind, backbone, seed=0, **kwargs):
    slim = {'backbone_kwargs': SLIM} if backbone.startswith('resnet18') else {}
    torch.manual_seed(seed)
    return randomize(create_detector(kind, backbone, **{**KWARGS[kind], **slim, **kwargs}).double(), seed).eval()


def images():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator, dtype=torch.float64) for size in ((64, 80), (70, 64))]


@torch.no_grad()
def detect(detector):
    return detector(images())


def assert_same(before, after):
    for a, b in zip(before, after, strict=True):
        assert list(a) == list(b)
        assert len(a['boxes']) > 0
        assert torch.equal(a['labels'], b['labels'])
        for key in set(a) - {'labels'}:
            assert relative_error(a[key], b[key]) < 1e-9, key


def targets():
    masks = torch.zeros(2, 64, 80, dtype=torch.uint8)
    masks[0, 8:30, 8:30] = masks[1, 30:60, 40:70] = 1
    boxes = torch.tensor([[8.0, 8, 30, 30], [40, 30, 70, 60]], dtype=torch.float64)
    return [{'boxes': boxes, 'labels': torch.tensor([1, 2]), 'masks': masks},
            {'boxes': boxes[:1], 'labels': torch.tensor([3]), 'masks': masks[:1, :, :64].new_zeros(1, 70, 64)}]


@pytest.mark.parametrize('kind', ['fasterrcnn', 'maskrcnn', 'retinanet'])
def test_made_ready_it_finds_the_same(kind):
    detector = build(kind, 'resnet18_asr_se')
    before = detect(detector)
    assert len(asr_layers(detector)) == 5
    assert (set(before[0]) >= {'masks'}) == (kind == 'maskrcnn')

    folded = timm_asr.fold_asr(copy.deepcopy(detector))
    assert_same(before, detect(folded))
    plain = build(kind, 'resnet18', seed=5)
    plain.load_state_dict(folded.state_dict(), strict=True)
    assert_same(before, detect(plain))

    ready = timm_asr.reparameterize(copy.deepcopy(detector))
    assert not timm_asr.has_asr(ready)
    assert_same(before, detect(ready))
    ready = timm_asr.reparameterize(detector, fold_bn=True)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in ready.modules())
    assert_same(before, detect(ready))


def test_gates_in_the_blocks_get_their_inference_form_and_can_be_frozen():
    detector = build('maskrcnn', 'resnet18_se')
    before = detect(detector)
    ready = timm_asr.reparameterize(copy.deepcopy(detector))
    assert sum(isinstance(m, InferenceBlock) for m in ready.modules()) == 5
    assert_same(before, detect(ready))
    report = timm_asr.freeze_attention(detector, [(images(), targets())])
    assert len(report.frozen) == 5
    assert report.gates[0].what == 'folded into backbone.body.layer1.0.bn2'
    assert report.change is None
    build('maskrcnn', 'resnet18', seed=5).load_state_dict(detector.state_dict(), strict=True)


def test_frozen_norms_keep_the_attention_and_train_it():
    detector = build('maskrcnn', 'resnet18_asr_eca', frozen_bn=True)  # no hidden ReLU that random psi could kill
    for norm in detector.modules():
        if isinstance(norm, FrozenBatchNorm2d):  # its weights are buffers, and timm starts the last ones at zero
            norm.weight.uniform_(0.6, 1.4)
            norm.bias.uniform_(-0.3, 0.3)
    sites = asr_layers(detector)
    assert [type(site.layer) for site in sites] == [FrozenBatchNorm2d] * 5
    norms = {name: b.clone() for name, b in detector.backbone.named_buffers()}
    before = detect(detector.eval())
    optimizer = torch.optim.SGD(detector.parameters(), 0.01)
    losses = detector.train()(images(), targets())
    sum(losses.values()).backward()
    assert all(site.vectors[0].psi.grad.abs().sum() > 0 for site in sites)
    old = [site.attention_vector().clone() for site in sites]
    optimizer.step()
    assert all(not torch.equal(a, site.attention_vector()) for a, site in zip(old, sites, strict=True))
    assert all(torch.equal(norms[name], b) for name, b in detector.backbone.named_buffers())

    trained = detect(detector.eval())
    with pytest.raises(AssertionError):
        assert_same(before, trained)
    timm_asr.reparameterize(detector)
    assert_same(trained, detect(detector))
    plain = build('maskrcnn', 'resnet18', seed=5, frozen_bn=True)
    plain.load_state_dict(detector.state_dict(), strict=True)
    assert_same(trained, detect(plain))


@pytest.mark.parametrize(('frozen_bn', 'asr'), [(False, None), (True, None), (True, 'eca')])
def test_weights_of_a_trained_classifier(frozen_bn, asr, tmp_path):
    """As train.py writes them; every one of the backbone arrives, and ASR that is added starts as their function."""
    classifier = randomize(timm.create_model('resnet18_asr_se' if asr is None else 'resnet18', num_classes=7, **SLIM))
    raw = {key: 0 * value for key, value in classifier.state_dict().items()}
    torch.save({'state_dict': raw, 'state_dict_ema': classifier.state_dict()}, tmp_path / 'last.pth.tar')
    detector = create_detector(
        'fasterrcnn', 'resnet18_asr_se' if asr is None else 'resnet18', checkpoint=tmp_path / 'last.pth.tar', asr=asr,
        frozen_bn=frozen_bn, backbone_kwargs=SLIM, **RCNN)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = classifier.eval().forward_features(x)
        assert relative_error(wanted, detector.eval().backbone.body(x)[-1]) < 1e-5
    assert len(asr_layers(detector)) == 5


@pytest.mark.parametrize(('name', 'kwargs', 'x'), [
    ('resnet18', SLIM, torch.rand(1, 3, 64, 64)),
    ('convnext_atto', {'depths': (1, 1, 1, 1), 'dims': (8, 8, 16, 16)}, torch.rand(1, 3, 64, 64)),
    ('vit_tiny_patch16_224', {'img_size': 32, 'depth': 3, 'embed_dim': 24, 'num_heads': 2}, torch.rand(1, 3, 32, 32))])
def test_a_checkpoint_with_asr_attached(name, kwargs, x, tmp_path):
    """Attention that was trained by ``--asr`` on a name without comes along, whatever timm calls its features."""
    trained = randomize(timm_asr.create_model(name, asr='eca', **kwargs)).eval()
    torch.save({'state_dict': trained.state_dict()}, tmp_path / 'last.pth.tar')
    body = make_body(name, checkpoint=tmp_path / 'last.pth.tar', asr='eca', **kwargs).eval()
    assert len(asr_layers(body)) > 2
    for a, b in zip(asr_layers(trained), asr_layers(body), strict=False):
        assert torch.equal(a.attention_vector(), b.attention_vector())
    with torch.no_grad():
        for wanted, found in zip(trained.forward_intermediates(x, intermediates_only=True)[-3:], body(x)[-3:],
                                 strict=True):
            assert relative_error(wanted, found) < 1e-5
    with pytest.raises(ValueError, match=r"with this ASR: '.*psi' is \(.*,\) where it has \(.*,\)\."):
        make_body(name, checkpoint=tmp_path / 'last.pth.tar', asr='srm', **kwargs)
    deeper = timm_asr.create_model(name, asr='eca', asr_depth=2, **kwargs)
    torch.save({'state_dict': deeper.state_dict()}, tmp_path / 'deeper.pth.tar')
    with pytest.raises(ValueError, match=r"with this ASR: it also has '.*vectors\.1.*' \(asr_depth=\.\.\.\)\."):
        make_body(name, checkpoint=tmp_path / 'deeper.pth.tar', asr='eca', **kwargs)
    plain = randomize(make_body(name, **kwargs)).eval()  # whose names may be others: stages_0
    torch.save(plain.state_dict(), tmp_path / 'features.pth')
    body = make_body(name, checkpoint=tmp_path / 'features.pth', asr='eca', **kwargs).eval()
    with torch.no_grad():
        assert all(relative_error(a, b) < 1e-4 for a, b in zip(plain(x), body(x), strict=True))


@pytest.mark.parametrize(('kind', 'backbone', 'kwargs', 'strides'), [
    ('maskrcnn', 'resnet20_asr_se', {}, (4,)),
    ('retinanet', 'resnet20_asr_se', {'strides': (4, 2, 4), 'image_mean': [0.1] * 3}, (2, 4)),
    ('fasterrcnn', 'resnet18_asr_se', {'strides': (8, 32)}, (8, 32)),
    ('retinanet', 'swin_tiny_patch4_window7_224', {'backbone_kwargs': {
        'img_size': 64, 'window_size': 4, 'embed_dim': 12, 'depths': (1, 1, 1, 1), 'num_heads': (1, 1, 1, 1),
        'strict_img_size': False}}, (8, 16, 32)),
    ('fasterrcnn', 'vit_tiny_asr_eca', {'backbone_kwargs': {
        'img_size': 64, 'dynamic_img_size': True, 'depth': 3, 'embed_dim': 24, 'num_heads': 2}}, (16,))])
def test_any_backbone_and_strides(kind, backbone, kwargs, strides):
    detector = build(kind, backbone, **kwargs)
    assert detector.backbone.strides == strides
    assert detector.transform.image_mean == kwargs.get('image_mean', list(timm.get_pretrained_cfg(backbone).mean))
    maps = detector.backbone(torch.rand(1, 3, 64, 96, dtype=torch.float64))
    assert [m.shape[1] for m in maps.values()] == [16] * len(maps)
    assert [m.shape[-1] for m in maps.values()][:len(strides)] == [96 // stride for stride in strides]
    before = detect(detector)
    assert_same(before, detect(timm_asr.reparameterize(detector)))
    assert all(out['boxes'].isfinite().all() for out in before)


@pytest.mark.parametrize(('args', 'kwargs', 'error', 'sentence'), [
    (('maskrcn', 'resnet18'), {}, ValueError, "Unknown detector 'maskrcn', did you mean 'maskrcnn'; there are faster"),
    (('retinanet', 'resnet20'), {}, ValueError, 'features at the strides 1, 2, 4, and none of these is used; choose'),
    (('maskrcnn', 'resnet20'), {'strides': (2, 8)}, ValueError, 'features at the strides 1, 2, 4, and none at 8'),
    (('fasterrcnn', 'resnet20'), {'box_score_tresh': 0.1}, TypeError,
     "torchvision's FasterRCNN has no keyword 'box_score_tresh', did you mean 'box_score_thresh'."),
    (('fasterrcnn', 'resnet20'), {'checkpoint': 'nowhere'}, ValueError, 'no checkpoint of the backbone at nowhere.'),
    (('fasterrcnn', 'resnet18_asr_se'), {'checkpoint': 'plain', 'backbone_kwargs': SLIM}, ValueError,
     "is not one of 'resnet18_asr_se': 'layer1.0.bn2.layer.weight' is absent."),
    (('fasterrcnn', 'resnet18'), {'checkpoint': 'asr', 'backbone_kwargs': SLIM}, ValueError,
     "has ASR, and 'resnet18' by its name has none: name its")])
def test_bad_input(args, kwargs, error, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if (file := kwargs.get('checkpoint')) in ('plain', 'asr'):
        model = timm_asr.create_model('resnet18', asr='se' if file == 'asr' else None, **SLIM)
        torch.save(model.state_dict(), file)
    with pytest.raises(error, match='.*') as caught:
        create_detector(*args, **kwargs)
    assert sentence in str(caught.value)
    assert '\n' not in str(caught.value)


SIZE = 512


def maps(strides):
    generator = torch.Generator().manual_seed(1)
    return {str(n): torch.rand(1, 3, SIZE // s, SIZE // s, generator=generator) for n, s in enumerate(strides)}


def test_the_usual_strides_are_pooled_and_have_anchors_as_torchvision_has_them():
    corners = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * SIZE / 2
    sides = torch.logspace(0.5, math.log10(SIZE / 2), 200)
    boxes = torch.cat([corners, corners + sides[:, None]], 1)
    features = maps((4, 8, 16, 32))
    theirs = MultiScaleRoIAlign(list(features), 7, 2)
    ours = region_pool((4, 8, 16, 32), 7)
    what = features, [boxes], [(SIZE, SIZE)]
    assert torch.equal(ours(*what), theirs(*what))
    for net, usual in (build('fasterrcnn', 'resnet18').rpn, faster_rcnn), (build('retinanet', 'resnet18'), retinanet):
        found, usual = net.anchor_generator, usual._default_anchorgen()
        assert (found.sizes, found.aspect_ratios) == (usual.sizes, usual.aspect_ratios)


@pytest.mark.parametrize(('strides', 'levels'), [
    ((8, 32), {30: 0, 150: 0, 300: 0, 500: 1}),  # 300 belongs to the stride 16, between both: the finer has it
    ((4, 16), {30: 0, 150: 0, 300: 1, 500: 1}), ((14,), {30: 0, 500: 0})])
def test_other_strides(strides, levels):
    features, pool = maps(strides), region_pool(strides, 2)
    for side, level in levels.items():
        box = torch.tensor([[4.0, 4, 4 + side, 4 + side]])
        wanted = roi_align(features[str(level)], [box], 2, 1 / strides[level], 2)
        assert torch.equal(pool(features, [box], [(SIZE, SIZE)]), wanted)


def test_a_detector_pools_at_its_strides():
    detector = create_detector('maskrcnn', 'resnet20', 3, fpn_channels=8, strides=(4, 1), size_divisible=8)
    for pool in (detector.roi_heads.box_roi_pool, detector.roi_heads.mask_roi_pool):
        assert pool.scales == [1, 1 / 4]
    assert detector.transform.size_divisible == 8
