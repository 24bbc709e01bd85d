"""The command lines of timm's documented recipes run as they stand, and each of their options has its effect.

Model, batch and number of epochs are made small by what is appended; everything before is as documented.
"""

import copy
import json
import math
import shlex
import sys
from types import SimpleNamespace

import pytest
import timm
import torch
from timm.data import FastCollateMixup
from timm.layers import SplitBatchNorm2d
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from torch.nn.functional import cross_entropy
from train_helpers import make_images

from timm_asr.engine import loop
from timm_asr.engine.build import build_model
from timm_asr.engine.commands.train import parse_args
from timm_asr.engine.progress import Progress
from timm_asr.engine.side_by_side import TURNS
from timm_asr.engine.summary import read_summary
from timm_asr.engine.training import Run
from timm_asr.errors import BadInput


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp('data') / 'images', classes=3, train=8, validation=4, size=40)


@pytest.fixture
def train(images, tmp_path, monkeypatch):
    """Trains for two epochs in this process and returns what can be looked at afterwards."""
    monkeypatch.setitem(TURNS, 'rounds', 1)  # what the table says of times is no test's business

    def call(line, model='resnet20_asr_se', size=32, batch=6, finish=False, more=''):
        argv = shlex.split(line) + shlex.split(
            f'--data-dir {images} --model {model} --img-size {size} -b {batch} --epochs 2 -j 0 --num-classes 3 '
            f'--output {tmp_path} --experiment run --no-progress --device cpu {more}')
        args = parse_args(argv)
        job = Run(args, argv)
        first, epochs = job.prepare()
        training, seen = job.training, SimpleNamespace(batches=[], outputs=[], rates=[])
        forward = training.task.forward

        def spy(batch, target):
            result = forward(batch, target)
            seen.batches.append((batch.detach().clone(memory_format=torch.preserve_format), target.clone()))
            seen.outputs.append(result['output'].detach())
            seen.rates.append([group['lr'] for group in training.optimizer.param_groups])
            return result

        training.task.forward = spy
        with Progress(0, bar=False) as progress:
            for epoch in range(first, 2):
                job.epoch(epoch, epochs, progress)
        if finish:
            assert job.finish() == 0
        for loader in (training.loaders.train, training.loaders.eval):
            if getattr(loader, 'loader', None) is not None:
                loader.loader._iterator = None  # ends its processes now; the garbage collector would wait for them
        transform = getattr(training.loaders.train.dataset, 'transform', None)
        return SimpleNamespace(
            args=args, job=job, training=training, seen=seen, folder=job.folder, loss=training.task.criterion,
            optimizer=training.optimizer, model=training.task.get_trainable_module(),
            transform=repr(transform), last=torch.load(job.folder / 'last.pth.tar', weights_only=True))
    return call


A3 = ('--lr 8e-3 --weight-decay 0.02 --opt lamb --sched cosine --bce-loss --mixup 0.1 --cutmix 1.0 '
      '--aa rand-m6-mstd0.5-inc1 --crop-pct 0.95 --warmup-epochs 1 --smoothing 0.0 --amp --amp-dtype bfloat16')
A2 = ('--lr 5e-3 --weight-decay 0.02 --opt lamb --bce-loss --mixup 0.1 --cutmix 1.0 --aa rand-m7-mstd0.5-inc1 '
      '--crop-pct 0.95 --drop-path 0.05 --smoothing 0.0 --warmup-epochs 1 --channels-last --bce-target-thresh 0.2')
A1 = ('--lr 5e-3 --weight-decay 0.01 --opt lamb --bce-loss --mixup 0.2 --cutmix 1.0 --aa rand-m7-mstd0.5-inc1 '
      '--crop-pct 0.95 --drop-path 0.05 --smoothing 0.1 --warmup-epochs 1 --grad-accum-steps 2')
MOBILENET = ('--sched step --decay-epochs 2.4 --decay-rate .973 --opt rmsproptf --opt-eps .001 --warmup-lr 1e-6 '
             '--weight-decay 1e-5 --drop 0.2 --drop-path 0.2 --model-ema --model-ema-decay 0.9999 '
             '--aa rand-m9-mstd0.5 --remode pixel --reprob 0.2 --recount 3 --amp --lr .064 --lr-noise 0.42 0.9')
JSD = ('--sched cosine --lr 0.05 --amp --remode pixel --reprob 0.6 --aug-splits 3 --aa rand-m9-mstd0.5-inc1 '
       '--resplit --split-bn --jsd --dist-bn reduce')
DEIT = ('--opt adamw --lr 5e-4 --weight-decay 0.05 --sched cosine --warmup-epochs 1 --warmup-lr 1e-6 --min-lr 1e-5 '
        '--drop-path 0.1 --aa rand-m9-mstd0.5-inc1 --mixup 0.8 --cutmix 1.0 --mixup-prob 1.0 --mixup-switch-prob 0.5 '
        '--smoothing 0.1 --reprob 0.25 --clip-grad 1.0 --model-ema --layer-decay 0.65 --train-interpolation bicubic')


def test_resnet_a3(train):
    run = train(A3, finish=True)
    assert isinstance(run.loss, BinaryCrossEntropy)
    assert type(run.optimizer).__name__ == 'Lamb'
    assert {group['weight_decay'] for group in run.optimizer.param_groups} == {0.0, 0.02}
    assert all(torch.allclose(target.sum(1), torch.ones(len(target)), atol=1e-4) for _, target in run.seen.batches)
    assert any((target.max(1).values < 0.99).any() for _, target in run.seen.batches)
    assert 'RandAugment' in run.transform
    assert run.seen.outputs[0].dtype == torch.bfloat16
    assert run.seen.rates[0][0] == pytest.approx(1e-5)  # warm-up
    assert run.seen.rates[-1][0] == pytest.approx(8e-3, rel=0.6)
    assert run.training.loaders.eval.dataset.transform.transforms[0].size == int(32 / 0.95)
    files = {path.name for path in run.folder.iterdir()}
    assert {'model.safetensors', 'config.json', 'metrics.json', 'summary.csv', 'curve.png', 'attention.png',
            'args.yaml'} <= files
    header = (run.folder / 'summary.csv').read_text().splitlines()[0]
    assert header == 'epoch,train_loss,eval_loss,eval_top1,eval_top5,lr'
    assert json.loads((run.folder / 'metrics.json').read_text())['epoch_last'] == 1


def test_resnet_a2(train):
    run = train(A2, more='--bce-sum --bce-pos-weight 2')
    assert (run.loss.target_threshold, run.loss.sum_classes, run.loss.pos_weight) == (0.2, True, 2)
    assert run.seen.batches[0][0].is_contiguous(memory_format=torch.channels_last)
    assert run.model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert run.model.layer3[-1].drop_path.drop_prob == pytest.approx(0.05)
    assert run.seen.outputs[0].dtype == torch.float32


def test_resnet_a1(train):
    run = train(A1)
    assert min(target.min() for _, target in run.seen.batches) == pytest.approx(0.1 / 3, rel=1e-4)  # smoothing


def test_training_is_this_loop(train, tmp_path):
    """Four batches an update, two in the last of an epoch; clipped, averaged, scheduled, and validated as averaged."""
    model = timm.create_model('test_vit', num_classes=3, img_size=32)
    averaged = copy.deepcopy(model).eval()
    torch.save(model.state_dict(), tmp_path / 'start.pth')
    run = train('--opt momentum --lr-base 0.3 --lr-base-size 48 --weight-decay 0.1 --grad-accum-steps 4 '
                '--sched-on-updates --warmup-epochs 0 --smoothing 0.2 --clip-grad 0.01 --clip-mode value --model-ema '
                f'--model-ema-decay 0.5 --initial-checkpoint {tmp_path / "start.pth"}', model='test_vit', batch=4)
    optimizer = create_optimizer_v2(model, 'momentum', lr=0.1, momentum=0.9, weight_decay=0.1)
    for update, (start, end) in enumerate(((0, 4), (4, 6), (6, 10), (10, 12))):
        for group in optimizer.param_groups:
            group['lr'] = 0.05 * (1 + math.cos(math.pi * update / 4))
        optimizer.zero_grad()
        for image, label in run.seen.batches[start:end]:
            (cross_entropy(model(image), label, label_smoothing=0.2) / (end - start)).backward()
        torch.nn.utils.clip_grad_value_(model.parameters(), 0.01)
        optimizer.step()
        for mean, parameter in zip(averaged.parameters(), model.parameters(), strict=True):
            mean.data.lerp_(parameter.data, 0.5 if update else 1)
    for key, expected in (('state_dict', model), ('state_dict_ema', averaged)):
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(run.last[key][name], value, rtol=1e-4, atol=1e-5, msg=f'{key} {name}')
    image, label = map(torch.cat, zip(*run.training.loaders.eval, strict=True))
    row = read_summary(run.folder / 'summary.csv')[-1]
    assert float(row['eval_loss']) == pytest.approx(cross_entropy(averaged(image), label).item(), rel=1e-4)


def test_mobilenet(train):
    more = '--warmup-epochs 0 --bn-momentum 0.3 --bn-eps 0.01'
    run = train(MOBILENET, model='test_efficientnet', more=more, finish=True)
    assert (run.model.bn1.momentum, run.model.bn1.eps) == (0.3, 0.01)
    assert type(run.optimizer).__name__ == 'RMSpropTF'
    assert run.optimizer.defaults['eps'] == 0.001
    assert type(run.training.scheduler).__name__ == 'StepLRScheduler'
    assert run.training.scheduler.decay_t == 2.4
    assert run.model.drop_rate == 0.2
    assert run.seen.outputs[0].dtype == torch.float16
    erasing = run.training.loaders.train.random_erasing
    assert (erasing.probability, erasing.max_count) == (0.2, 3)
    ema, raw = run.last['state_dict_ema'], run.last['state_dict']
    assert list(ema) == list(raw)
    assert any(not torch.equal(ema[key], raw[key]) for key in raw)
    assert run.training.task.get_trainable_module(ema=True).decay == 0.9999
    assert run.training.scheduler.noise_range_t == pytest.approx([0.84, 1.8])
    assert run.seen.rates[0][0] == pytest.approx(0.064)
    assert run.seen.rates[-1][0] != pytest.approx(0.064, rel=1e-3)  # noise in epoch 1
    assert run.seen.rates[-1][0] == pytest.approx(0.064, rel=0.68)
    # A plain model of timm is written too.
    assert timm.create_model(f'local-dir:{run.folder}', pretrained=True).num_classes == 3
    assert not (run.folder / 'attention.png').exists()


def test_augmix_with_jsd_and_split_bn(train):
    run = train(JSD, model='resnet20_asr_se', size=16, finish=True)
    assert isinstance(run.loss, JsdCrossEntropy)
    assert run.loss.num_splits == 3
    splits = [module for module in run.model.modules() if isinstance(module, SplitBatchNorm2d)]
    assert len(splits) == 21
    assert all(len(module.aux_bn) == 2 for module in splits)
    statistics = [splits[0].running_mean, *(bn.running_mean for bn in splits[0].aux_bn)]
    assert not torch.equal(statistics[0], statistics[1])
    assert not torch.equal(statistics[1], statistics[2])
    batch, target = run.seen.batches[0]
    assert len(batch) == 18
    assert torch.equal(target[:6], target[6:12])
    splitter = run.training.loaders.train.dataset
    assert 'RandAugment' not in repr(splitter.dataset.transform)  # the clean part
    assert 'RandAugment' in repr(splitter.augmentation)
    assert run.training.loaders.train.random_erasing.num_splits == 3
    fused = timm.create_model(f'local-dir:{run.folder}', pretrained=True)
    assert not any('aux_bn' in key or 'psi' in key for key in fused.state_dict())
    assert any('.aux_bn.' in key for key in run.last['state_dict'])
    assert any(key.endswith('psi') for key in run.last['state_dict'])


def test_deit(train):
    run = train(DEIT, model='test_vit', size=64)
    assert type(run.optimizer).__name__ == 'AdamW'
    scales = {round(group['lr_scale'], 6) for group in run.optimizer.param_groups}
    assert len(scales) > 4
    assert max(scales) == 1.0
    assert 0.65 in scales
    assert isinstance(run.loss, SoftTargetCrossEntropy)
    assert isinstance(run.training.loaders.train.loader.collate_fn, FastCollateMixup)
    assert 'bicubic' in run.transform
    assert run.args.clip_grad == 1.0
    assert run.training.scheduler.lr_min == 1e-5


def test_torchcompile(train, monkeypatch):
    """The backend that needs no C compiler; inductor goes the same way."""
    torch._dynamo.reset()
    calls = []
    monkeypatch.setitem(torch._dynamo.backends.registry._BACKENDS, 'counting', None)
    monkeypatch.setitem(torch._dynamo.backends.registry._COMPILER_FNS, 'counting',
                        lambda graph, inputs: calls.append(graph) or graph)
    run = train('--lr 0.1 --torchcompile counting --model-ema --model-kwargs layers=(1,1,1)', finish=True)
    assert calls
    assert not any('_orig_mod' in key for key in run.last['state_dict'])


def test_torchscript(train):
    run = train('--lr 0.1 --torchscript --model-kwargs layers=(1,1,1)', finish=True)
    assert isinstance(run.model, torch.jit.ScriptModule)
    assert any(key.endswith('psi') for key in run.last['state_dict'])


def test_model_dtype(train):
    run = train('--lr 0.1 --model-dtype bfloat16 --scale 0.3 0.8 --ratio 0.9 1.1 --grayscale-prob 0.2 '
                '--gaussian-blur-prob 0.3 --color-jitter-prob 0.4')
    assert all(what in run.transform for what in (
        'scale=(0.3, 0.8), ratio=(0.9, 1.1)', 'RandomGrayscale(p=0.2)', 'p=0.3', 'p=0.4'))
    assert run.seen.batches[0][0].dtype == torch.bfloat16
    assert {value.dtype for value in run.last['state_dict'].values()} == {torch.bfloat16, torch.int64}


def test_scheduled_resolution(train, monkeypatch):
    losses, update = [], loop._update
    monkeypatch.setattr(loop, '_update', lambda training, loss, due: losses.append(loss) or update(training, loss, due))
    run = train('--lr 0.1 --train-img-sizes 16 32 --train-batch-sizes 8 4 --train-size-probs 0.5 0.5 '
                '--train-batches-per-epoch 6 --variable-batch-loss-scale linear --smoothing 0')
    shapes = {tuple(batch.shape) for batch, _ in run.seen.batches}
    assert shapes == {(8, 3, 16, 16), (4, 3, 32, 32)}
    sums = [cross_entropy(output, label, reduction='sum').item() for output, (_, label) in zip(
        run.seen.outputs, run.seen.batches, strict=True)]
    assert [loss.item() for loss in losses] == pytest.approx([total / 6 for total in sums], rel=1e-5)
    mean = sum(sums[6:]) / sum(len(batch) for batch, _ in run.seen.batches[6:])
    assert float(read_summary(run.folder / 'summary.csv')[-1]['train_loss']) == pytest.approx(mean, rel=1e-5)


def test_mixing_stops_at_its_epoch_also_in_living_workers(train):
    run = train('--lr 0.1 --mixup 0.8 --mixup-off-epoch 1 --smoothing 0', more='-j 2')
    first, second = run.seen.batches[:4], run.seen.batches[4:]
    assert any((target.max(1).values < 0.99).any() for _, target in first)
    assert all((target.max(1).values > 0.999).all() for _, target in second)


def test_small_options_have_their_effect(train, tmp_path, monkeypatch):
    (tmp_path / 'a_module_of_mine.py').write_text('')
    monkeypatch.syspath_prepend(tmp_path)
    run = train('--lr-base 0.2 --lr-base-size 12 --head-init-scale 0 --head-init-bias 0.25 --val-interval 2 '
                '--save-images --log-interval 1 --mean 0.5 --std 0.25 --val-split "" --grad-checkpointing '
                '--model-kwargs asr_depth=2 --opt-kwargs nesterov=False --start-epoch 1 --warmup-epochs 0 '
                '--fast-norm --synchronize-step --hflip 1 --vflip 0 --no-aug --drop-connect 0.3 --gp max '
                '--device-modules a_module_of_mine', finish=True)
    assert not (run.folder / 'model.safetensors').exists()  # nothing to compare on
    assert run.args.lr == pytest.approx(0.1)
    assert run.args.lr_base_scale == 'linear'
    assert run.training.loaders.eval is None
    assert run.last['metric'] is not None  # the training loss
    assert run.job.saver.decreasing
    assert run.model.grad_checkpointing
    assert run.model.global_pool.pool_type == 'max'
    assert run.model.layer3[-1].drop_path.drop_prob == pytest.approx(0.3)
    assert 'a_module_of_mine' in sys.modules
    assert run.optimizer.defaults['nesterov'] is False
    assert sum(key.endswith('psi') for key in run.last['state_dict']) == 18
    assert sorted(path.name for path in run.folder.glob('train-batch-*.jpg'))
    assert len(run.seen.batches) == 4  # one epoch: the second
    assert torch.equal(run.seen.outputs[0], torch.full((6, 3), 0.25))
    timm.layers.set_fast_norm(False)


def test_pretrained_path_adapts_the_head(train, tmp_path):
    source = timm.create_model('resnet20_asr_se', num_classes=7)
    torch.save(source.state_dict(), tmp_path / 'w.pth')
    run = train(f'--lr 1e-30 --warmup-epochs 0 --pretrained-path {tmp_path / "w.pth"}')
    assert torch.equal(run.last['state_dict']['conv1.weight'], source.conv1.weight)
    assert run.last['state_dict']['fc.weight'].shape == (3, 64)


def test_pretrained_path_of_vectors_of_another_depth(tmp_path):
    """For other classes timm loads what fits, and would leave the second vector of each site as it was drawn."""
    torch.save(timm.create_model('resnet20_asr_se', num_classes=7).state_dict(), tmp_path / 'w.pth')
    args = parse_args(['--model', 'resnet20_asr_se', '--pretrained-path', str(tmp_path / 'w.pth'),
                       '--num-classes', '3', '--model-kwargs', 'asr_depth=2'])
    with pytest.raises(BadInput, match='come from another gate or asr_depth than the model has'):
        build_model(args)


def test_pretrained_path_of_a_file_that_timm_looks_into(tmp_path):
    source = timm.create_model('eva02_tiny_patch14_224', img_size=56, num_classes=7)
    torch.save({'module': source.state_dict()}, tmp_path / 'w.pth')
    found = build_model(parse_args(['--model', 'eva02_tiny_patch14_224', '--pretrained-path', str(tmp_path / 'w.pth'),
                                    '--num-classes', '3', '--img-size', '56']))
    assert torch.equal(found.blocks[0].norm1.weight, source.blocks[0].norm1.weight)


def test_auxiliary_terms_reach_the_loss(train, monkeypatch):
    from timm_asr.asr.vector import ASRVector
    monkeypatch.setattr(ASRVector, 'penalty', lambda self: (100 / self.psi.numel(), self.psi - 3), raising=False)
    with_term = train('--lr 1e-3 --warmup-epochs 0')
    assert with_term.training.task.has_auxiliary
    psi = [value for key, value in with_term.last['state_dict'].items() if key.endswith('psi')]
    assert min(value.min() for value in psi) > 0.15  # pulled from 0.1 towards 3
    monkeypatch.undo()
    without = train('--lr 1e-3 --warmup-epochs 0 --overwrite')
    assert not without.training.task.has_auxiliary


def test_plateau_that_starts_late_has_its_own_rate(train):
    run = train('--sched plateau --warmup-epochs 1 --lr 0.05 --start-epoch 1')
    assert run.seen.rates[0] == pytest.approx([0.05] * len(run.seen.rates[0]))


def test_weights_to_start_from(tmp_path):
    """Averaged ones where there are any, as timm; both heads of a distilled network."""
    raw, averaged = (timm.create_model('resnet20', num_classes=3) for _ in range(2))
    torch.save({'state_dict': raw.state_dict(), 'state_dict_ema': averaged.state_dict()}, tmp_path / 'a.pth')
    line = f'--model resnet20 --num-classes 3 --initial-checkpoint {tmp_path / "a.pth"}'
    assert torch.equal(build_model(parse_args(line.split())).fc.weight, averaged.fc.weight)
    line = '--model deit_tiny_distilled_patch16_224 --head-init-bias 0.25 --model-kwargs depth=1'
    for head in build_model(parse_args(line.split())).get_classifier():
        assert head.bias.eq(0.25).all()
