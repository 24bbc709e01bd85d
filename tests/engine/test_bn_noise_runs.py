"""``--bn-noise`` of train.py and validate.py: in force while they run, and nowhere in what they write."""

import csv
import json

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import create_loader
from train_helpers import run

from timm_asr.analysis import bn_noise
from timm_asr.data import Digits
from timm_asr.engine.commands import dispatch

RUN = ('--config digits --img-size 16 --train-images 256 --epochs 1 --no-progress --batch-size 64 --experiment noise '
       '--model-kwargs layers=(1,1,1)')


@pytest.mark.slow
def test_a_run(tmp_path, capsys):
    rows = {}
    for name, noise in (('noisy', ['--bn-noise', '0.8,0.5']), ('clean', ['--no-fuse'])):
        done = run([*RUN.split(), *noise, '--output', tmp_path / name], tmp_path / 'log')
        assert done.code == 0, done.text
        rows[name] = list(csv.DictReader((tmp_path / name / 'noise' / 'summary.csv').open()))
    assert rows['noisy'][0]['train_loss'] != rows['clean'][0]['train_loss']
    # What is written has no trace of the noise: timm alone gives the figures of validation by the noise put on again.
    model = timm.create_model(f'local-dir:{tmp_path}/noisy/noise', pretrained=True).eval()
    images = create_loader(Digits('validation', input_img_mode='L'), (1, 16, 16), 128, mean=[0.3053], std=[0.376],
                           crop_pct=1.0, interpolation='bilinear', use_prefetcher=False, num_workers=0)
    best = max(rows['noisy'], key=lambda row: float(row['eval_top1']))
    for noise in (True, False):
        right = loss = 0
        with torch.no_grad(), bn_noise(0.8, 0.5) if noise else torch.no_grad():
            for x, y in images:
                logits = model(x)
                right += (logits.argmax(1) == y).sum().item()
                loss += F.cross_entropy(logits, y, reduction='sum').item()
        if noise:
            assert loss / 359 == pytest.approx(float(best['eval_loss']), rel=1e-3)
            assert 100 * right / 359 == pytest.approx(float(best['eval_top1']), abs=0.6)
        line = ['validate', '--model', f'{tmp_path}/noisy/noise', '--dataset', 'digits', '-j', '0']
        assert dispatch([*line, *(['--bn-noise', '0.8,0.5'] if noise else [])], 'timm-asr') == 0
        told = json.loads(capsys.readouterr().out.partition('--result')[2])
        assert told['top1'] == pytest.approx(100 * right / 359, abs=0.3)


VALIDATE = 'validate --model resnet20.cifar10 --dataset digits --bn-noise'


@pytest.mark.parametrize(('line', 'sentence'), [
    (f'{VALIDATE} 0.8', "'0.8' is no noise: write two numbers"),
    (f'{VALIDATE} 0.8,0.5 --fold-bn', '--bn-noise does not go with --fold-bn'),
    (f'{VALIDATE.replace("20.", "20_se.")} 0.8,0.5 --reparam', '--bn-noise does not reach each BatchNorm'),
    (f'{VALIDATE} 0.8,0.5 --torchscript', '--bn-noise does not go with --torchscript'),
    ('train --config digits --grad-checkpointing --bn-noise 1,0', '--bn-noise does not go with --grad-checkpointing')])
def test_bad_noise(line, sentence, capsys):
    assert dispatch(line.split(), 'timm-asr') == 2
    assert sentence in capsys.readouterr().err
