"""``python -m timm_asr run``: other programs' scripts, timm's own among them."""

import json
import sys
from unittest.mock import Mock

import pytest
import timm
import torch
from train_helpers import make_images, python

import timm_asr
from timm_asr.engine.commands import run
from timm_asr.errors import BadInput

NAME = 'resnet20_asr_se'

SCRIPT = """
import json, sys
import neighbour
from timm.models import create_model
assert __name__ == '__main__'
model = create_model('resnet20_asr_se', num_classes=7)
open(sys.argv[1], 'w').write(json.dumps(dict(argv=sys.argv, classes=model.num_classes, path=sys.path[0])))
"""


def test_a_script_gets_its_arguments_unchanged(tmp_path):
    (tmp_path / 'neighbour.py').write_text('')
    script, out = tmp_path / 'measure.py', tmp_path / 'out.json'
    script.write_text(SCRIPT)
    before = list(sys.argv), list(sys.path)
    arguments = [str(out), '--model', 'x', '-h', '--fold-bn']
    assert run.main([str(script), *arguments]) == 0
    found = json.loads(out.read_text())
    assert found == {'argv': [str(script), *arguments], 'classes': 7, 'path': str(script.parent)}
    assert (sys.argv, sys.path) == before


def test_exit_status_and_errors_are_the_scripts_own(tmp_path):
    path = tmp_path / 'stops.py'
    path.write_text('import sys\nsys.exit(3)\n')
    with pytest.raises(SystemExit) as stop:
        run.main([str(path)])
    assert stop.value.code == 3
    path.write_text('raise KeyError("mine")\n')
    with pytest.raises(KeyError, match='mine'):
        run.main([str(path)])
    assert sys.argv[0] != str(path)


def test_bad_input(tmp_path):
    for words, said in (
            ([], 'no script given'), (['nowhere.py'], 'no script at nowhere.py'), ([str(tmp_path)], 'no script at'),
            (['--fast', 'x.py'], 'no script given')):
        with pytest.raises(BadInput, match=said) as error:
            run.main(words)
        assert '\n' not in str(error.value)


def test_what_is_exported_after_timms_train(tmp_path, monkeypatch):
    monkeypatch.setattr(run.export, 'main', export := Mock())
    (tmp_path / 'mine.yaml').write_text('model_ema: true\nval_split: test\nclass_map: m.txt\n')
    run.export_best(tmp_path / 'best', ['-c', str(tmp_path / 'mine.yaml'), 'images', '-j', '3'], 'x')
    assert export.call_args.args[0] == [
        str(tmp_path / 'best'), '--output', str(tmp_path), '--force', '--workers', '3', '--use-ema',
        '--data-dir=images', '--split=test', '--class-map=m.txt']


@pytest.mark.slow
def test_timms_own_scripts(tmp_path, timm_scripts):
    make_images(tmp_path / 'set', classes=7, train=1, validation=3, size=32)
    model = timm.create_model(NAME, num_classes=7)
    torch.save({'arch': NAME, 'state_dict': model.state_dict()}, tmp_path / 'a.pth')
    plain = sum(p.numel() for p in timm.create_model('resnet20', num_classes=7).parameters())

    def result(*words):
        return json.loads(python('-m', 'timm_asr', *words).stdout.split('--result\n')[1])

    line = ['--model', NAME, '--checkpoint', tmp_path / 'a.pth', '--data-dir', tmp_path / 'set', '--device', 'cpu',
            '-j', '0', '-b', '8', '--num-classes', '7']
    theirs = result('run', timm_scripts / 'validate.py', *line)
    fused = result('run', timm_scripts / 'validate.py', *line, '--reparam')
    ours = result('validate', *line)
    assert ours == theirs
    assert fused == theirs | {'param_count': round(plain / 1e6, 2)}
    row = result('run', timm_scripts / 'benchmark.py', '--reparam', '--model', NAME, '--device', 'cpu', '-b', '2',
                 '--num-warm-iter', '1', '--num-bench-iter', '5', '--bench', 'inference')
    assert row['param_count'] == 0.27


@pytest.mark.slow
def test_timms_train_ends_with_the_folded_model(images, tmp_path, timm_scripts):
    (tmp_path / 'mine.yaml').write_text(f'output: {tmp_path / "out"}\nexperiment: x\nmodel: {NAME}\n')
    done = python('-m', 'timm_asr', 'run', timm_scripts / 'train.py', '--data-dir', images, '--device', 'cpu',
                  '-c', tmp_path / 'mine.yaml', '--num-classes', 3, '--img-size', 32, '-b', 6, '-j', 0,
                  '--epochs', 1, '--lr', '0.1')
    assert 'top-1 on 12 images' in done.stdout
    folded = timm.create_model(f'local-dir:{tmp_path / "out" / "x"}', pretrained=True)
    assert not timm_asr.has_asr(folded)
