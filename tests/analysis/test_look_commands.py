"""``timm-asr stripes | gradcam | gradients | feature-integration | curves | scatter``: what they write, and errors."""

import csv
import json
import sys

import matplotlib
import pytest
import timm
import torch
from export_helpers import our_checkpoint
from helpers import randomize
from PIL import Image

from timm_asr.analysis import measure_stripes
from timm_asr.detection import create_detector
from timm_asr.engine import looking
from timm_asr.engine.commands import dispatch
from timm_asr.engine.summary import add_summary
from timm_asr.figures import plot_curve, plot_looks, style
from timm_asr.figures.gates import _chosen


def checkpoint_of(name, path, seed=0, **kwargs):
    model = randomize(timm.create_model(name, num_classes=10, in_chans=1, **kwargs), seed)
    return our_checkpoint(path, model, arch=name, argv=['--model', name])


@pytest.fixture
def command(tmp_path, capsys):
    """Runs a line, which succeeds in silence or else fails; returns what it says, and the folder."""
    def call(line, fails=False):
        words = line.replace('TMP', str(tmp_path)).split()
        status = dispatch([*words, '-o', str(tmp_path / 'look')], 'timm-asr')
        out = capsys.readouterr()
        errors = '\n'.join(line for line in out.err.splitlines() if not line.startswith('Data: '))
        assert (status, bool(errors)) == (2 * fails, fails), errors
        return errors if fails else out.out, tmp_path / 'look'

    return call


def files(folder):
    found = {path.name for path in folder.iterdir()}
    for name in found:
        if name.endswith('.png'):
            image = Image.open(folder / name).convert('RGB')
            assert len(image.getcolors(1 << 20)) > 50
            assert image.width == round(style.WIDTH * style.DPI) or name == 'gradcam.png'
    return found


DATA = '--dataset digits -j 0 --batch-size 20'


def test_stripes(command, tmp_path):
    checkpoint_of('resnet20_se', tmp_path / 'last.pth.tar')
    out, folder = command(f'stripes --checkpoint TMP/last.pth.tar {DATA} --samples 50 --images 8')
    assert files(folder) == {'stripes.csv', 'stripes.json', 'stripes.png', 'deviations.png'}
    told = json.loads((folder / 'stripes.json').read_text())
    assert (told['images'], told['model'], len(told['gates'])) == (50, 'resnet20_se', 9)
    assert f'Stripe score over 50 images: {told["score"]:.3f}' in out
    rows = list(csv.DictReader((folder / 'stripes.csv').open()))
    assert [row['gate'] for row in rows] == [f'layer{s}.{b}.se' for s in (1, 2, 3) for b in range(3)]
    assert float(rows[4]['std']) == told['gates'][4]['std']
    assert told['command'].startswith('timm-asr stripes --checkpoint ')
    for name, said in (('x', '--gates x: there is no such module in resnet20_se'), ('fc', "no gate 'fc' to draw")):
        assert said in command(f'stripes --checkpoint TMP/last.pth.tar {DATA} --gates {name}', fails=True)[0]
    assert [_chosen('abcdefg', count) for count in (1, 3, 9)] == [['a'], ['a', 'd', 'g'], list('abcdefg')]


def test_stripes_over_the_epochs_of_a_run(command, tmp_path):
    for epoch in (0, 5, 10):
        checkpoint_of('resnet20_se', tmp_path / f'checkpoint-{epoch}.pth.tar', seed=epoch)
    _, folder = command(f'stripes --checkpoints TMP {DATA}')
    assert files(folder) == {'differences.csv', 'differences.json', 'differences.png'}
    told = json.loads((folder / 'differences.json').read_text())
    assert told['epochs'] == [0, 5, 10]
    assert torch.tensor(told['gates']['layer3.2.se']).shape == (2, 3, 64)
    assert [row['epoch'] for row in csv.DictReader((folder / 'differences.csv').open())][:4] == ['5', '5', '5', '10']
    assert '--gates x: there is no such module' in command(f'stripes --checkpoints TMP {DATA} --gates x', fails=True)[0]
    (tmp_path / 'checkpoint-5.pth.tar').rename(tmp_path / 'checkpoint-9.pth.tar')
    assert 'epochs are missing between 0 and 10' in command(f'stripes --checkpoints TMP {DATA}', fails=True)[0]


def test_stripes_of_a_detector(command, tmp_path):
    as_trained, sizes = {'strides': [8, 16], 'frozen_bn': True}, {'min_size': 10, 'max_size': 640}
    model = create_detector('retinanet', 'resnet18_se', 4, fpn_channels=32, backbone_kwargs={'se_bias': False},
                            **as_trained, **sizes)
    torch.save({'state_dict': model.state_dict(), 'args': {**as_trained, 'detector_kwargs': sizes}},
               tmp_path / 'detector.pth')
    for number in range(3):
        path = tmp_path / 'data' / f'{number}.png'  # as COCO's val2017
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (600 + 10 * number, 10), (number, 99, 30)).save(path)
    _, folder = command(
        'stripes --detector retinanet --model resnet18_se --model-kwargs se_bias=False --checkpoint TMP/detector.pth '
        '--data-dir TMP/data -j 0')
    told = json.loads((folder / 'stripes.json').read_text())
    assert (told['model'], told['images'], len(told['gates'])) == ('retinanet on resnet18_se', 3, 8)
    images = [torch.tensor([n, 99, 30]).view(3, 1, 1).expand(3, 10, 600 + 10 * n) / 255 for n in range(3)]
    expected = measure_stripes(model, [(images, None)])
    assert told['score'] == pytest.approx(expected.score, abs=1e-4)


def test_gradcam(command, tmp_path, monkeypatch):
    pytest.importorskip('pytorch_grad_cam')
    seen = []
    monkeypatch.setattr(looking, 'plot_looks', lambda images, *more: seen.append(images) or plot_looks(images, *more))
    for seed in (0, 1):
        checkpoint_of('resnet20', tmp_path / f'{seed}.pth.tar', seed)
    _, folder = command(f'gradcam --checkpoint TMP/0.pth.tar TMP/1.pth.tar {DATA} --images 22 --samples 0')
    scores = json.loads((folder / 'gradcam.json').read_text())['scores']
    assert [(row['image'], row['model']) for row in scores] == [
        (i, name) for name in ('resnet20', 'resnet20 (2)') for i in range(22)]
    assert min(row['softmax score'] for row in scores) < 0.1  # of the labels, by networks that know nothing
    assert -1e-5 < seen[0].min() < seen[0].max() < 1 + 1e-5  # as the files have them
    _, folder = command(
        f'gradcam --checkpoint TMP/0.pth.tar TMP/1.pth.tar --labels one two {DATA} --images 3 --samples 25 '
        '--target predicted')
    assert files(folder) == {'gradcam.csv', 'gradcam.json', 'gradcam.png'}
    told = json.loads((folder / 'gradcam.json').read_text())
    assert torch.tensor(told['average']['two']).shape == (32, 32)
    assert min(row['softmax score'] for row in told['scores']) > 0.1
    assert [(row['image'], row['model']) for row in told['scores']] == [
        (image, model) for model in ('one', 'two') for image in (0, 1, 2, 'mean of 25')]


def test_gradients(command):
    line = f'gradients --model resnet20 resnet20_se --model-kwargs no_skip=True num_classes=10 {DATA} --samples 40'
    means = []
    for words in ('', ' --eval-mode'):
        torch.manual_seed(0)  # of the weights
        _, folder = command(line + words)
        rows = list(csv.DictReader((folder / 'gradients.csv').open()))
        means.append(rows[0]['mean'])
    assert files(folder) == {'gradients.csv', 'gradients.json', 'gradients.png'}
    assert [(row['model'], row['stage']) for row in rows] == [
        (f'{model} (random weights)', f'layer{n}') for model in ('resnet20', 'resnet20_se') for n in (1, 2, 3)]
    assert all(float(row['mean']) > 0 for row in rows)
    assert means[0] != means[1]


def test_feature_integration(command, tmp_path):
    checkpoint_of('resnet20_dia_lstm', tmp_path / 'last.pth.tar')
    out, folder = command(
        f'feature-integration --checkpoint TMP/last.pth.tar {DATA} --samples 30 --channels 4 --trees 3 --jobs 1')
    assert 'layer3: 30 images, 3 blocks, 64 channels' in out
    assert files(folder) == {'integration.csv', 'integration.json', 'integration.png'}
    rows = [list(row.values())[:3] for row in csv.DictReader((folder / 'integration.csv').open())]
    assert rows == [[f'layer{n}', *pair] for n in (1, 2, 3) for pair in ('21', '31', '32')]


def run_folder(folder, asr, top1):
    folder.mkdir()
    (folder / 'args.yaml').write_text(f'model: resnet20\nasr: {asr}\n')
    for epoch in range(3):
        add_summary(folder / 'summary.csv', {'epoch': epoch, 'train_loss': 2.0 - epoch, 'eval_loss': 1.0,
                                             'eval_top1': top1 - 2 + epoch})


def test_curves_and_scatter(command, tmp_path):
    run_folder(tmp_path / 'a', 'null', 90.0)
    run_folder(tmp_path / 'b', 'se', 91.0)
    before = dict(matplotlib.rcParams)
    _, folder = command('curves TMP/a TMP/b TMP/a')
    assert dict(matplotlib.rcParams) == before
    assert files(folder) == {'curves.csv', 'curves.json', 'curves.png'}
    assert [row['run'] for row in csv.DictReader((folder / 'curves.csv').open())] == ['resnet20'] * 3 + [
        'resnet20+asr-se'] * 3 + ['resnet20 (2)'] * 3
    (tmp_path / 'seeds.csv').write_text('model,top1\nresnet20+asr-se,92\nresnet20+asr-se,93\n')
    for kind, form in (('infer', 'reparam'), ('train', 'fold-bn')):
        (tmp_path / 'speed.csv').write_text(
            f'model,{kind}_samples_per_sec,{kind}_time_ratio,param_count\n'
            f'resnet20,100.5,1,0.27\nresnet20+asr-se+{form},90,1.25,0.28\nother,1,,1\n')
        _, folder = command('scatter TMP/a TMP/b TMP/seeds.csv --benchmark TMP/speed.csv')
        assert json.loads((folder / 'scatter.json').read_text())['models'] == [
            {'model': 'resnet20', 'images_per_second': 100.5, 'parameters': 270000.0, 'top1': 90.0},
            {'model': f'resnet20+asr-se+{form}', 'images_per_second': 80.4, 'parameters': 280000.0, 'top1': 92.0}]
    (tmp_path / 'a' / 'summary.csv').write_text('epoch,train_loss\n0,2.5\n')  # never validated
    assert 'accuracies of none' in command('scatter TMP/a --benchmark TMP/speed.csv', fails=True)[0]


def test_figures_without_matplotlib_and_of_little(tmp_path, monkeypatch):
    plot_curve([{'epoch': '0', 'train_loss': '1'}], tmp_path / 'figure.png')
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(ImportError, match='Figures need matplotlib: pip install matplotlib'):
        plot_curve([], tmp_path / 'figure.png')


@pytest.mark.parametrize(('line', 'sentence'), [
    ('stripes --dataset digits', 'no model: give a name (--model NAME)'),
    ('stripes --model resnet20_se.cifar10', 'no data: give the folder of the images'),
    ('stripes --checkpoints TMP --dataset digits', 'there are 0 files checkpoint-N.pth.tar'),
    (f'stripes --model resnet20.cifar10 --in-chans 3 {DATA} --input-img-mode RGB',
     'No module of this ASRCifarResNet weighs channels'),
    ('gradcam --model a b --checkpoint c --dataset digits', '2 names and 1 checkpoints'),
    (f'gradcam --model resnet20.cifar10 {DATA} --layer layer9', "has no module 'layer9'"),
    (f'gradcam --model resnet20.cifar10 {DATA} --labels a b', '2 labels for 1 models'),
    ('curves TMP', 'no summary.csv in'),
    ('scatter TMP', 'no speeds: give the results file of a benchmark')])
def test_errors(line, sentence, command):
    err, folder = command(line, fails=True)
    assert sentence in err
    assert '\n' not in err
    assert not folder.exists() or not list(folder.iterdir())
