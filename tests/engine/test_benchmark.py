"""benchmark.py: its steps, its figures, the fair comparison, its errors. No test depends on the clock."""

import csv
import functools
import json
import logging
from unittest.mock import Mock

import pytest
import timm
import torch
from torch import nn

import timm_asr
from timm_asr.engine import bench
from timm_asr.engine.bench import InferenceStep, TrainStep, saved_for_backward, split_name
from timm_asr.engine.commands import benchmark
from timm_asr.engine.options import parse
from timm_asr.engine.reports import as_markdown
from timm_asr.engine.versus import Spread, interleave, ratios
from timm_asr.errors import BadInput
from timm_asr.gates.spe import SPE
from timm_asr.inference.reparameterize import is_foldable
from timm_asr.models.counts import count_parameters

CPU = torch.device('cpu')
SHORT = ['--device', 'cpu', '-b', '2', '--num-warm-iter', '1', '--num-bench-iter', '2']


def options(*words):
    return parse(benchmark.OPTIONS, {}, list(words))


@pytest.fixture(autouse=True)
def _log_to_pytest(monkeypatch):
    monkeypatch.setattr(bench, 'setup_logging', lambda: None)
    monkeypatch.setattr(logging.getLogger('timm_asr'), 'propagate', True)
    monkeypatch.setattr('gc.collect', lambda: 0)  # takes a second where many tests have run


@pytest.fixture
def run(capsys):
    """Runs benchmark.py and returns what it prints after ``--result``."""
    def call(*words):
        status = benchmark.main([*SHORT, *map(str, words)])
        result = json.loads(capsys.readouterr().out.split('--result\n')[1])
        assert status == ('error' in result)
        return result
    return call


def test_the_inference_form_is_what_is_measured():
    assert split_name('resnet20_asr_se+fold-bn') == ('resnet20_asr_se', None, 'fold-bn')
    assert split_name('a+b+asr-se+reparam') == ('a+b', 'se', 'reparam')
    for form in ('reparam', 'fold-bn'):
        for name, words in ((f'resnet20_asr_se+{form}', []), ('resnet20_asr_se', [f'--{form}'])):
            step = InferenceStep(name, options(*words), CPU, 1)
            assert not timm_asr.has_asr(step.model)
            assert any(isinstance(m, nn.BatchNorm2d) for m in step.model.modules()) == (form == 'reparam')


def test_training_options_have_their_effect():
    step = TrainStep('resnet20_asr_se', options(
        '--opt', 'adamw', '--opt-betas', '0.5', '0.6', '--opt-eps', '0.1', '--weight-decay', '0.3',
        '--smoothing', '0.25', '--drop', '0.4', '--drop-path', '0.01', '--gp', 'max', '--grad-checkpointing',
        '--clip-grad', '0.01', '--clip-mode', 'value'), CPU, 2)
    assert isinstance(step.optimizer, torch.optim.AdamW)
    group = max(step.optimizer.param_groups, key=lambda group: group['weight_decay'])
    assert (tuple(group['betas']), group['eps'], group['weight_decay']) == ((0.5, 0.6), 0.1, 0.3)
    assert (step.loss.label_smoothing, step.model.drop_rate, step.model.grad_checkpointing) == (0.25, 0.4, True)
    assert (step.model.layer3[-1].drop_path.drop_prob, step.model.global_pool.pool_type) == (0.01, 'max')
    before = {name: p.detach().clone() for name, p in step.eager.named_parameters()}
    step()
    assert [name for name, p in step.eager.named_parameters() if torch.equal(before[name], p)] == []
    assert max(p.grad.abs().max().item() for p in step.eager.parameters()) == pytest.approx(0.01)
    step = TrainStep('resnet20', options('--momentum', '0.7', '--clip-grad', '0.01'), CPU, 2)
    assert step.optimizer.param_groups[0]['momentum'] == 0.7
    step()
    assert torch.cat([p.grad.flatten() for p in step.eager.parameters()]).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_auxiliary_loss_is_part_of_the_step():
    step = TrainStep('resnet20_spe', options(), CPU, 2)
    step.eager.eval()  # the same output twice
    with torch.no_grad():
        plain = step.loss(step.eager(step.images), step.target)
    gates = [module for module in step.eager.modules() if isinstance(module, SPE)]
    penalty = sum(gate.eta * gate.mix.square().sum() for gate in gates)
    assert len(gates) == 9
    assert step.forward_loss().item() == pytest.approx((plain + penalty).item(), abs=1e-4)


@pytest.mark.parametrize(('precision', 'weights', 'output'), [
    ('float32', torch.float32, torch.float32), ('bfloat16', torch.bfloat16, torch.bfloat16),
    ('amp_bfloat16', torch.float32, torch.bfloat16)])
def test_precision(precision, weights, output):
    step = InferenceStep('resnet20', options('--precision', precision), CPU, 1)
    seen = []
    step.model.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    step()
    assert next(step.model.parameters()).dtype == weights
    assert seen == [output]


@pytest.mark.parametrize(('words', 'norms'), [((), True), (('--reparam',), True), (('--fold-bn',), False)])
def test_norms_are_folded_where_asked_for(words, norms):
    step = InferenceStep('resnet20', options(*words), CPU, 1)
    assert any(isinstance(module, nn.BatchNorm2d) for module in step.model.modules()) == norms


def test_channels_last_and_sizes():
    step = InferenceStep('resnet20', options('--channels-last', '--input-size', '1', '40', '48'), CPU, 2)
    assert step.images.shape == (2, 1, 40, 48)
    assert step.model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    step()
    for words, side in (([], 288), (['--use-train-size'], 224)):
        assert InferenceStep('resnet18', options(*words), CPU, 1).input_size == (3, side, side)


def test_bytes_saved_for_backward():
    layer = nn.Linear(10, 20)
    x = torch.zeros(5, 10)
    # The input of the linear layer and the output of exp; the weight is a parameter.
    assert saved_for_backward(lambda: layer(x).exp(), layer) == 5 * 10 * 4 + 5 * 20 * 4


def test_asr_saves_what_the_plain_network_saves():
    """Weight space keeps nothing of a feature map for the backward pass: what it keeps, twice the parameters of the
    gates at most, is the same at any batch size."""
    more = []
    for batch in (2, 8):
        steps = [TrainStep(name, options(), CPU, batch) for name in ('resnet20', 'resnet20_asr_se', 'resnet20_se')]
        plain, asr, se = (saved_for_backward(step.forward_loss, step.eager) for step in steps)
        more.append(asr - plain)
        assert se > 1.1 * plain
    small, large = (count_parameters(step.eager) for step in steps[:2])
    assert more[0] == more[1] <= 2 * 4 * (large - small)


def test_columns(run):
    row = run('-m', 'resnet20_asr_se', '--num-classes', '7')
    assert list(row) == [
        'model', 'infer_samples_per_sec', 'infer_step_time', 'infer_batch_size', 'infer_img_size', 'infer_gmacs',
        'infer_macts', 'train_samples_per_sec', 'train_step_time', 'train_batch_size', 'train_img_size',
        'train_saved_mb', 'param_count']
    for prefix in ('infer', 'train'):
        assert row[f'{prefix}_batch_size'] == 2
        # Both come from one reading of the clock.
        assert row[f'{prefix}_samples_per_sec'] * row[f'{prefix}_step_time'] == pytest.approx(2000, rel=0.01)
    assert row['infer_img_size'] == 32
    assert row['param_count'] == 0.27


def test_detail_splits_the_step(run, caplog):
    caplog.set_level('INFO', 'timm_asr')
    row = run('-m', 'resnet20', '--bench', 'train', '--detail', '--amp', '--amp-dtype', 'bfloat16')
    assert 'in amp_bfloat16 precision' in caplog.text
    parts = sum(row[f'train_{key}_time'] for key in ('fwd', 'bwd', 'opt'))
    assert 0 < parts <= row['train_step_time'] * 1.01


def test_lists_and_wildcards(run, tmp_path):
    rows = run('-m', 'resnet20_eca*', '--bench', 'inference', '--results-file', tmp_path / 'a.csv')
    names = timm.list_models('resnet20_eca*')
    assert len(names) > 1
    assert sorted(row['model'] for row in rows) == sorted(names)
    speeds = [row['infer_samples_per_sec'] for row in rows]
    assert speeds == sorted(speeds, reverse=True)
    with (tmp_path / 'a.csv').open() as file:
        assert [row['model'] for row in csv.DictReader(file)] == [row['model'] for row in rows]
    (tmp_path / 'list.txt').write_text('resnet20\n\nresnet20_se\n')
    rows = run('--model-list', tmp_path / 'list.txt', '--bench', 'profile', '--results-file', tmp_path / 'a.json',
               '--results-format', 'json')
    assert {row['model'] for row in rows} == {'resnet20', 'resnet20_se'}
    assert json.loads((tmp_path / 'a.json').read_text()) == rows


def test_markdown_is_a_table():
    text = as_markdown([{'model': 'a|b', 'speed': 1.5}, {'model': 'c', 'error': 'none'}])
    assert text.splitlines() == [
        '| model | speed | error |', '| ----- | ----: | ----- |', '| a\\|b  |   1.5 |       |',
        '| c     |       | none  |']


def test_measured_as_trained_is_said_once(run, caplog):
    for words, said in ((['--bench', 'both'], ['resnet20_asr_se is measured as trained']),
                        (['--bench', 'inference', '--reparam'], [])):
        caplog.clear()
        run('-m', 'resnet20_asr_se', *words)
        assert [r.message.partition(';')[0] for r in caplog.records if r.levelname == 'WARNING'] == said


@pytest.mark.parametrize(('name', 'foldable'), [
    ('resnet20', False), ('resnet20_asr_se', True), ('resnet20_se', True), ('resnet20_ras', True),
    ('test_vit', False), ('repvgg_a0', True)])
def test_what_has_an_inference_form(name, foldable):
    model = timm.create_model(name).eval()
    assert is_foldable(model) is foldable
    assert not is_foldable(timm_asr.reparameterize(model))


def test_operations_of_resnet18(run):
    row = run('-m', 'resnet18', '--bench', 'profile', '--img-size', '224')
    assert row == {'model': 'resnet18', 'batch_size': 1, 'img_size': 224, 'gmacs': 1.81, 'macts': 2.48,
                   'param_count': 11.69}


def test_interleaving_takes_turns():
    """Steps that move the clock by what they cost."""
    cost, order = {'a': 1.0, 'b': 2.0, 'c': 4.0}, []
    steps = {name: functools.partial(order.append, name) for name in cost}

    def clock():
        return sum(cost[name] for name in order)

    times = interleave(steps, rounds=3, iters=2, warmup=1, clock=clock)
    assert ''.join(order) == 'abc' + 'aabbcc' + 'bbccaa' + 'ccaabb'
    assert times == {'a': [1.0] * 3, 'b': [2.0] * 3, 'c': [4.0] * 3}
    assert len(interleave(steps, rounds=10, warmup=0, budget=14, clock=clock)['a']) == 2  # a round takes 7 s


def test_ratios_are_those_of_rounds():
    # The machine slows down by a factor of ten half-way; the ratio does not notice.
    noise = [1, 1, 1, 10, 10, 10, 10]
    slower = [2.0, 2.0, 2.1, 2.0, 1.9, 2.0, 5.0]
    times = {'a': [1.0 * n for n in noise], 'b': [s * n for s, n in zip(slower, noise, strict=True)]}
    found = ratios(times, 'a')
    assert found['a'] == (1, 1, 1)
    assert found['b'] == pytest.approx(Spread(2.0, 2.0, 2.05))
    assert Spread.of([3.0]) == (3.0, 3.0, 3.0)


def test_versus(capsys, monkeypatch, tmp_path):
    times = {'resnet20': [1.0, 2.0, 1.0], 'resnet20_asr_se': [1.0, 2.0, 1.1], 'resnet20_se': [2.0, 4.0, 2.1]}
    monkeypatch.setattr(bench, 'interleave', timing := Mock(return_value=times))
    benchmark.main([*SHORT, '-m', 'resnet20', '--versus', 'resnet20_asr_se', 'resnet20_se', '--rounds', '3', '-b', '4',
                    '--results-file', str(tmp_path / 'a.md'), '--results-format', 'md'])
    assert timing.call_args.kwargs == {'rounds': 3, 'iters': 1, 'warmup': 1, 'device': CPU}
    table, result = capsys.readouterr().out.split('--result\n')
    rows, table = json.loads(result), table.splitlines()
    assert [row['model'] for row in rows] == list(times)
    for prefix in ('infer', 'train'):
        assert [[row[f'{prefix}_time_ratio{end}'] for end in ('', '_q1', '_q3')] for row in rows] == [
            [1, 1, 1], [1, 1, 1.05], [2, 2, 2.05]]
        assert (rows[2][f'{prefix}_step_time'], rows[2][f'{prefix}_samples_per_sec']) == (2100, round(4 / 2.1, 2))
    assert rows[1]['train_saved_mb'] == pytest.approx(rows[0]['train_saved_mb'], rel=0.01)
    assert rows[2]['train_saved_mb'] > 1.1 * rows[0]['train_saved_mb']
    lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in table]
    assert lines[0] == ['model', 'inference', 'training step', 'parameters, M']
    assert lines[4] == ['resnet20_se', '2.000 (2.000-2.050)', '2.000 (2.000-2.050)', '0.27']
    assert max(map(len, table)) < 100
    assert 'the median of 3 rounds' in table[5]
    assert [cell.strip() for cell in (tmp_path / 'a.md').read_text().splitlines()[0].strip('|').split('|')] == list(
        rows[0])


def test_versus_takes_one_image_size(run):
    rows = run('-m', 'test_resnet', '--versus', 'resnet20', 'test_vit', '--rounds', '1', '--bench', 'inference')
    assert [row['infer_img_size'] for row in rows] == [160] * 3
    rows = run('-m', 'resnet20', '--versus', 'test_vit', '--rounds', '1', '--img-size', '64', '--bench', 'train')
    assert [row['train_img_size'] for row in rows] == [64] * 2


def test_smaller_batches_after_an_error(run, monkeypatch):
    real = InferenceStep.__call__

    def scarce(self):
        if self.batch_size > 4:
            raise RuntimeError('out of memory')
        real(self)

    monkeypatch.setattr(InferenceStep, '__call__', scarce)
    assert run('-m', 'resnet20', '--bench', 'inference', '-b', '8')['infer_batch_size'] == 4
    row = run('-m', 'resnet20', '--bench', 'inference', '-b', '8', '--no-retry')
    assert row == {'model': 'resnet20', 'error': 'out of memory'}


def test_a_network_that_does_not_take_the_images_has_a_row(run, tmp_path):
    (tmp_path / 'list.txt').write_text('test_vit\nresnet20\n')
    for kind in ('profile', 'inference'):
        good, bad = run('--model-list', tmp_path / 'list.txt', '--bench', kind, '--img-size', '40', '--results-file',
                        tmp_path / 'a.csv')
        assert good['model'] == 'resnet20'
        assert bad == {'model': 'test_vit', 'error': 'Input height (40) should be divisible by patch size (16)'}
    row = run('-m', 'test_resnet', '--bench', 'train', '--img-size', '32', '-b', '1')
    assert row['error'].startswith('Expected more than 1 value per channel when training')


def test_an_interrupt_keeps_what_is_measured_the_fastest_first(run, tmp_path, monkeypatch):
    rows = [{'model': name, 'train_samples_per_sec': speed} for speed, name in enumerate(('resnet20', 'resnet32'))]
    monkeypatch.setattr(bench, 'measure', Mock(side_effect=[rows[:1], rows[1:], KeyboardInterrupt]))
    (tmp_path / 'list.txt').write_text('resnet20\nresnet32\nresnet44\n')
    assert run('--model-list', tmp_path / 'list.txt', '--bench', 'train') == rows[::-1]


@pytest.mark.parametrize(('words', 'said'), [
    (['-m', 'resnet2o'], "unknown model 'resnet2o'; the nearest names are"),
    (['-m', 'resnet20', '--versus', 'resnet20_asr_ze'], "unknown model 'resnet20_asr_ze'"),
    (['-m', 'resnet20', '--versus', 'resnet20'], 'name another model'), (['-m', 'nope*'], "no model matches 'nope*'"),
    (['--model-list', 'nowhere.txt'], 'nowhere.txt cannot be read'),
    (['-m', 'resnet20', '--bench', 'train', '--fold-bn'], 'is not trained'),
    (['-m', 'resnet20', '--bench', 'profile', '--versus', 'resnet20_se'], '--versus compares times'),
    (['-m', 'resnet20', '--device', 'warp'], '--device warp'),
    (['-m', 'resnet20', '--opt', 'nope', '--bench', 'train'], '--opt nope'),
    (['-m', 'resnet20', '--results-file', 'no/such/a.csv'], 'there is no folder'),
    (['-m', 'resnet20', '--num-bench-iter', '0'], '--num-bench-iter must be at least 1'),
    (['-m', 'resnet20', '--model-kwargs', 'asr_deep=2'], 'cannot create resnet20'),
], ids=lambda value: ' '.join(value) if isinstance(value, list) else '')
def test_bad_input(words, said):
    with pytest.raises(BadInput) as error:
        benchmark.main([*SHORT, *words])
    assert said in str(error.value)
    assert '\n' not in str(error.value)
