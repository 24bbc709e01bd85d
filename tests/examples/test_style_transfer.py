"""The example of style transfer, end to end, and its folding in float64."""

import sys

import pytest
import torch
from helpers import randomize, relative_error
from pages import ROOT

import timm_asr

sys.path.insert(0, str(ROOT / 'examples'))
import style_transfer


def test_runs_end_to_end(tmp_path, capsys):
    pytest.importorskip('sklearn')
    assert style_transfer.main(['--steps', '2', '--size', '32', '--width', '4', '--batch-size', '2',
                                '--output', str(tmp_path)]) == 0
    assert (tmp_path / 'sheet.png').stat().st_size > 10_000
    folded = torch.load(tmp_path / 'bn_asr.pt')
    assert folded.keys() == torch.load(tmp_path / 'bn.pt').keys()  # ASR leaves the plain network
    assert 'batch norm + ASR(SE): loss' in capsys.readouterr().out


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    photographs, args = torch.rand(2, 3, 32, 32), style_transfer.argparse.Namespace(
        seed=0, width=4, device='cpu', size=32, batch_size=2, steps=0)
    loss = style_transfer.PerceptualLoss(style_transfer.stripes(32)[None])
    values = []
    for args.steps in (1, 40):
        network = style_transfer.train('bn_asr', photographs, loss, args).train()
        values.append(loss(network(photographs), photographs).item())
    assert values[1] < 0.9 * values[0]


@pytest.mark.parametrize('norm', ['in', 'bn'])
@pytest.mark.parametrize('sites', [
    ['down.*.1', 'blocks.*.*.1', 'up.0.1', 'up.1.1'], ['up.0.0', 'up.1.0', 'down.0.0']], ids=['norms', 'convolutions'])
def test_asr_folds_into_norms_and_transposed_convolutions(norm, sites):
    plain = style_transfer.Transformer(norm, 4, 2).double()
    network = randomize(timm_asr.attach_asr(plain, 'se', sites=sites)).eval()
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    before = network(x)
    assert timm_asr.has_asr(network)
    assert relative_error(before, timm_asr.fold_asr(network)(x)) < 1e-12
