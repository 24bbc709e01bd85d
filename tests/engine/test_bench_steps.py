"""The steps that benchmark.py measures: what they run, and what is counted without a clock."""

from argparse import Namespace

import pytest
import torch
from torch import nn

import timm_asr
from timm_asr.engine.bench_steps import InferenceStep, TrainStep, split_name
from timm_asr.engine.commands import benchmark
from timm_asr.engine.operations import saved_for_backward
from timm_asr.engine.options import parse
from timm_asr.gates.spe import SPE
from timm_asr.models.counts import count_operations

CPU = torch.device('cpu')
SHORT = ['--device', 'cpu', '-b', '2', '--num-warm-iter', '1', '--num-bench-iter', '2']


def options(*words: str) -> Namespace:
    return parse(benchmark.OPTIONS, {}, list(words))


def test_the_inference_form_is_what_is_measured() -> None:
    assert split_name('resnet20_asr_se+fold-bn') == ('resnet20_asr_se', None, 'fold-bn')
    assert split_name('a+b+asr-se+reparam') == ('a+b', 'se', 'reparam')
    for name, words in (('resnet20_asr_se+reparam', []), ('resnet20_asr_se', ['--reparam'])):
        step = InferenceStep(name, options(*words), CPU, 1)
        assert not timm_asr.has_asr(step.model)
        assert any(isinstance(m, nn.BatchNorm2d) for m in step.model.modules())
    for name, words in (('resnet20_asr_se+fold-bn', []), ('resnet20_asr_se', ['--fold-bn'])):
        step = InferenceStep(name, options(*words), CPU, 1)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in step.model.modules())


def test_training_options_have_their_effect() -> None:
    step = TrainStep('resnet20', options(
        '--opt', 'adamw', '--opt-betas', '0.5', '0.6', '--opt-eps', '0.1', '--weight-decay', '0.3',
        '--smoothing', '0.25', '--drop', '0.4', '--grad-checkpointing'), CPU, 2)
    assert isinstance(step.optimizer, torch.optim.AdamW)
    group = max(step.optimizer.param_groups, key=lambda group: group['weight_decay'])
    assert (tuple(group['betas']), group['eps'], group['weight_decay']) == ((0.5, 0.6), 0.1, 0.3)
    assert step.loss.label_smoothing == 0.25
    assert step.model.drop_rate == 0.4
    assert step.model.grad_checkpointing
    assert TrainStep('resnet20', options('--momentum', '0.7'), CPU, 2).optimizer.param_groups[0]['momentum'] == 0.7


def test_a_training_step_trains() -> None:
    step = TrainStep('resnet20_asr_se', options(), CPU, 2)
    before = {name: p.detach().clone() for name, p in step.eager.named_parameters()}
    step()
    still = [name for name, p in step.eager.named_parameters() if torch.equal(before[name], p)]
    assert still == []


@pytest.mark.parametrize(('mode', 'norm'), [('norm', 0.01), ('value', None)])
def test_gradients_are_clipped(mode: str, norm: float | None) -> None:
    step = TrainStep('resnet20_asr_se', options('--clip-grad', '0.01', '--clip-mode', mode), CPU, 2)
    step()
    gradients = torch.cat([p.grad.flatten() for p in step.eager.parameters()])
    if norm is None:
        assert gradients.abs().max().item() == pytest.approx(0.01)
    else:
        assert gradients.norm().item() == pytest.approx(norm, rel=1e-3)


def test_the_auxiliary_loss_is_part_of_the_step() -> None:
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
def test_precision(precision: str, weights: torch.dtype, output: torch.dtype) -> None:
    step = InferenceStep('resnet20', options('--precision', precision), CPU, 1)
    seen = []
    step.model.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    step()
    assert next(step.model.parameters()).dtype == weights
    assert seen == [output]


def test_channels_last_and_sizes() -> None:
    step = InferenceStep('resnet20', options('--channels-last', '--input-size', '1', '40', '48'), CPU, 2)
    assert step.images.shape == (2, 1, 40, 48)
    assert step.model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    step()


def test_operations_of_a_known_layer() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1)
    assert count_operations(conv, torch.zeros(2, 3, 10, 10)) == (2 * 8 * 100 * 27, 2 * 8 * 100)


def test_bytes_saved_for_backward() -> None:
    layer = nn.Linear(10, 20)
    x = torch.zeros(5, 10)
    # The input of the linear layer and the output of exp; the weight is a parameter.
    assert saved_for_backward(lambda: layer(x).exp(), layer) == 5 * 10 * 4 + 5 * 20 * 4


def test_asr_saves_what_the_plain_network_saves() -> None:
    """Weight space keeps nothing of a feature map for the backward pass: what it keeps, twice the parameters of the
    gates at most, is the same at any batch size."""
    more = []
    for batch in (2, 8):
        steps = [TrainStep(name, options(), CPU, batch) for name in ('resnet20', 'resnet20_asr_se', 'resnet20_se')]
        plain, asr, se = (saved_for_backward(step.forward_loss, step.eager) for step in steps)
        more.append(asr - plain)
        assert se > 1.1 * plain
    assert more[0] == more[1] <= 2 * 4 * (steps[1].param_count - steps[0].param_count)
