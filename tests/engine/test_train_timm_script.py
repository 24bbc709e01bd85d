"""timm's own ``train.py`` trains models of this package, and each engine goes on from the other's checkpoint."""

import csv

import pytest
import torch
from train_helpers import python, run

pytestmark = pytest.mark.slow


def test_each_goes_on_from_the_other(images, tmp_path, timm_scripts):
    common = ['--data-dir', images, '--num-classes', 3, '--img-size', 32, '-b', 6, '-j', 0, '--output', tmp_path,
              '--model-ema', '--opt', 'adamw', '--lr', '1e-3', '--warmup-epochs', 1, '--model', 'resnet50_asr_se']

    def timm_train(*argv):
        python(timm_scripts / 'train.py', '--device-modules', 'timm_asr', '--device', 'cpu', *common, *argv)

    timm_train('--experiment', 'a', '--epochs', 1)
    last = torch.load(tmp_path / 'a' / 'last.pth.tar', weights_only=False)  # timm keeps a Namespace in it
    assert sum(key.endswith('psi') for key in last['state_dict']) == 16
    ours = run([*common, '--experiment', 'b', '--epochs', 2, '--resume', tmp_path / 'a' / 'last.pth.tar'],
               tmp_path / 'log')
    assert ours.code == 0, ours.text
    assert 'at epoch 1' in ours.text
    timm_train('--experiment', 'c', '--epochs', 3, '--resume', tmp_path / 'b' / 'last.pth.tar')
    epochs, rates = [], []
    for name in 'abc':
        rows = list(csv.DictReader((tmp_path / name / 'summary.csv').open()))
        assert list(rows[0]) == ['epoch', 'train_loss', 'eval_loss', 'eval_top1', 'eval_top5', 'lr']
        epochs += [row['epoch'] for row in rows]
        rates += [float(row['lr']) for row in rows]
    assert epochs == ['0', '1', '2']
    assert rates[0] == pytest.approx(1e-5)  # warm-up
    assert 0 < rates[2] < rates[1] <= 1e-3
