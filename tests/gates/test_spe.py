"""SPE: the mix, its penalty, its ablations, what is refused; the shares of all gates at once are never stale."""

import copy

import pytest
import timm
import torch
from helpers import images, randomize, relative_error, small
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import timm_asr
from timm_asr.gates import passes, spe
from timm_asr.gates.spe import SPE
from timm_asr.gates.table import asr_gate

C = 6


def test_initial_state():
    gate = SPE(C)
    assert (gate.mix == 0.5).all()
    assert torch.cat([gate.exc_weight, gate.rew_weight]).eq(0).all()
    assert torch.cat([gate.exc_bias, gate.rew_bias]).eq(-1).all()
    assert (gate.shares() == 0.5).all()
    v = torch.sigmoid(torch.tensor(-1.0)) ** 2
    assert torch.allclose(gate(torch.ones(2, C, 3, 3)), v.expand(2, C, 3, 3))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    'p', [(1.0, 0.5), (0.0, 0.3), (1e-3, -2e-3), (1e-6, 1e-6), (1e-12, 3e-13), (1e-30, 0.0), (0.0, 0.0)])
def test_the_mix_is_never_undefined(p, dtype):
    gate = SPE(C, dtype=dtype)
    gate.mix.data = torch.tensor(p, dtype=dtype)
    shares = gate.shares()
    assert ((shares >= 0) & (shares <= 1)).all()
    assert abs(shares.sum().item() - 1) < 1e-6
    x = torch.randn(2, C, 3, 3).to(dtype)
    gate(x).float().square().sum().backward()
    assert torch.isfinite(gate.mix.grad).all()
    stored = [v.item() ** 2 for v in gate.mix]
    if sum(stored) > 1e-2:
        assert abs(shares[0].item() - stored[0] / sum(stored)) < (1e-12 if dtype == torch.float64 else 1e-6)
    if sum(stored) == 0:
        assert (shares == 0.5).all()


def test_the_penalty_reaches_training():
    model = randomize(timm.create_model('resnet20_spe', layers=(1, 2, 1), dtype=torch.float64))
    mixes = [p for name, p in model.named_parameters() if name.endswith('.mix')]
    assert len(mixes) == 4
    expected = sum(0.1 * (p[0] ** 2 + p[1] ** 2) for p in mixes)
    assert relative_error(expected, timm_asr.auxiliary_loss(model)) < 1e-12
    timm_asr.auxiliary_loss(model).backward()
    for p in mixes:
        assert relative_error(0.2 * p, p.grad) < 1e-12
    assert all(p.grad is None for name, p in model.named_parameters() if not name.endswith('.mix'))
    other, shared = timm.create_model('resnet20_spe', spe_eta=0.5), timm.create_model('resnet20', dia='spe')
    assert abs(timm_asr.auxiliary_loss(other).item() - 9 * 0.5 * 0.5) < 1e-6
    assert abs(timm_asr.auxiliary_loss(shared).item() - 3 * 0.1 * 0.5) < 1e-6
    assert timm_asr.auxiliary_loss(timm.create_model('resnet20_spe', spe_mix=0.3)) == 0
    assert timm_asr.auxiliary_loss(timm.create_model('resnet20_se')) == 0


def test_under_asr_the_mix_is_fixed():
    gate = asr_gate('spe')(C)
    assert gate.mix is None
    psi = torch.rand(C)
    gate.exc_weight.data = gate.rew_weight.data = torch.randn(C)
    v = torch.sigmoid(gate.exc_weight * psi - 1) * torch.sigmoid(2 * gate.rew_weight * psi - 1)
    assert torch.allclose(gate.excite(gate.describe(psi))[0], v)
    model = timm.create_model('resnet20_asr_spe', spe_reweight='none')
    assert model.layer1[0].bn2.vectors[0].gate.rew_weight is None


@pytest.mark.parametrize('copied', [False, True])
def test_the_penalty_is_in_the_gradient_where_nobody_asks_for_it(copied):
    """As under timm's own train.py: forward, loss, backward. A copy of the model does the same."""
    def gradients(ask):
        torch.manual_seed(0)
        model = timm.create_model('resnet20_spe', layers=(1, 1, 1), num_classes=3, spe_eta=0.2, dtype=torch.float64)
        model = randomize(copy.deepcopy(model) if copied else model)
        loss = model(torch.linspace(-1, 1, 2 * 3 * 8 * 8, dtype=torch.float64).view(2, 3, 8, 8)).square().mean()
        (loss + timm_asr.auxiliary_loss(model) if ask else loss).backward()
        return [p.grad for name, p in model.named_parameters() if name.endswith('.mix')]

    asked, unasked = gradients(True), gradients(False)
    assert len(asked) == 3
    for a, b in zip(asked, unasked, strict=True):
        assert relative_error(a, b) < 1e-12


@pytest.mark.parametrize('change', [
    lambda gate: gate.load_state_dict(gate.state_dict(), assign=True),
    lambda gate: gate.load_state_dict(gate.state_dict(), assign=True) and gate.compile(backend='eager'),
    lambda gate: SPE(C, device='meta').to_empty(device='cpu'),
    lambda gate: copy.deepcopy(gate.requires_grad_(False)).requires_grad_(True),
    lambda gate: torch.no_grad()(gate.penalty)(),
    lambda gate: gate.penalty() and copy.deepcopy(gate)],
    ids=['assigned', 'compiled', 'meta', 'frozen copy', 'logged', 'copy of one that was asked'])
def test_the_penalty_stays_in_the_gradient(change):
    gate = SPE(C)
    found = change(gate)
    gate = found if isinstance(found, SPE) else gate
    for parameter in gate.parameters():  # memory that nobody has written may hold anything
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(gate.mix, 0.5)
    gate(torch.randn(2, C, 3, 3)).sum().backward()
    assert torch.allclose(gate.mix.grad, torch.tensor([0.1, 0.1]))


def test_a_loss_scaled_for_float16_is_refused_where_nobody_asks_for_the_penalty():
    model, x = timm.create_model('resnet20_spe', layers=(1, 1, 1)), torch.randn(2, 3, 8, 8)

    def loss(dtype):
        with torch.autocast('cpu', dtype):
            return model(x).float().square().mean()

    with torch.no_grad():
        loss(torch.float16)
    loss(torch.bfloat16).backward()
    with pytest.raises(RuntimeError, match='penalty .* would be lost beside a loss that is scaled for float16'):
        loss(torch.float16).backward()
    (loss(torch.float16) + timm_asr.auxiliary_loss(model)).backward()


@pytest.fixture
def computed(monkeypatch):
    """The shapes of the parameters that shares were made of."""
    shapes, run = [], spe.shares

    def shares(p, eps):
        shapes.append(tuple(p.shape))
        return run(p, eps)

    monkeypatch.setattr(spe, 'shares', shares)
    return shapes


@pytest.fixture
def network():
    return randomize(small('resnet20_spe')).eval()


def run_back(model, x):
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    return y, [p.grad.clone() for p in model.parameters()]


def alone(model):
    """A copy whose gates compute their own shares."""
    other = copy.deepcopy(model)
    other.mixes = False
    return other


def same(model, x, other=None):
    expected, wanted = run_back(other or alone(model), x)
    y, found = run_back(model, x)
    assert relative_error(expected, y) < 1e-12
    for a, b in zip(wanted, found, strict=True):
        assert relative_error(a, b) < 1e-9
    assert not passes._running.stack


def test_once_for_the_network(network, computed):
    run_back(network, images(network))
    assert computed == [(4, 2)]
    del computed[:]
    same(network, images(network))
    assert len(computed) == 4 + 1


@pytest.mark.parametrize('reentrant', [True, False])
def test_checkpoints(network, reentrant):
    other, x = alone(network), images(network).requires_grad_()
    for stage in (network.layer1, network.layer2):
        stage.forward = lambda x, run=stage.forward: checkpoint(run, x, use_reentrant=reentrant)
    same(network, x, other)


def test_never_stale(network):
    x = images(network)
    network(x)
    first, second = network(x).square().sum(), network(2 * x).square().sum()
    (first + second).backward()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1)
    same(network, x)
    with torch.inference_mode():
        network(x)
    same(network, x)
    assert torch.equal(network.layer1(h := torch.randn(2, 16, 8, 8, dtype=torch.float64)), alone(network).layer1(h))
    handle = network.layer2.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        network(x)
    handle.remove()
    same(network, x)

    def changes(*_):
        with torch.no_grad():
            network.layer2[0].se.mix.add_(1)

    handle = network.layer1.register_forward_hook(changes)
    y = network(x)
    handle.remove()
    assert relative_error(y, network(x)) < 1e-12


def test_other_parameters(network):
    x, other = images(network), randomize(copy.deepcopy(network), seed=5)
    assert relative_error(other(x), functional_call(network, other.state_dict(), (x,))) < 1e-12


def test_with_asr_in_the_same_network():
    model = randomize(small('resnet20_spe', asr='se')).eval()
    same(model, images(model))
