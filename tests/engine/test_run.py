"""``python -m timm_asr run``: other programs' scripts, timm's own among them."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from timm_asr.engine.commands import run
from timm_asr.errors import BadInput

TIMM = os.environ.get('TIMM_SCRIPTS', '')
NAME = 'resnet20_asr_se'

SCRIPT = """
import copy, json, sys
import timm, torch, neighbour
from timm.models import create_model
assert __name__ == '__main__'
model = create_model('resnet20_asr_se', num_classes=7)
model.load_state_dict(torch.load(sys.argv[1], weights_only=True))
x = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
model.train()
before = sum(p.numel() for p in model.parameters())
twin = copy.deepcopy(model)
model.eval()
after = sum(p.numel() for p in model.parameters())
with torch.inference_mode():
    logits = model(x)[0].tolist()
model.train()
model.eval()
out = dict(argv=sys.argv, before=before, after=after, twin=sum(p.numel() for p in twin.parameters()), logits=logits,
           twin_logits=twin.eval()(x)[0].tolist(), path=sys.path[0])
open(sys.argv[2], 'w').write(json.dumps(out))
"""


@pytest.fixture(autouse=True)
def _log_to_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger('timm_asr'), 'propagate', True)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / 'neighbour.py').write_text('')
    path = tmp_path / 'measure.py'
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    model = timm.create_model(NAME, num_classes=7)
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    return tmp_path / 'weights.pth'


def want(weights: Path) -> list[float]:
    model = timm.create_model(NAME, num_classes=7).eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    with torch.no_grad():
        return model(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32))[0].tolist()


def test_a_script_gets_its_arguments_unchanged(script: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out.json'
    before = list(sys.argv), list(sys.path), timm.create_model
    arguments = [str(weights), str(out), '--model', 'x', '-h', '--fold-bn']
    assert run.main([str(script), *arguments]) == 0
    found = json.loads(out.read_text())
    assert found['argv'] == [str(script), *arguments]
    assert found['path'] == str(script.parent)
    assert found['before'] == found['after']
    assert found['logits'] == pytest.approx(want(weights), abs=1e-6)
    assert (sys.argv, sys.path, timm.create_model) == before


@pytest.mark.parametrize('first', [True, False])
def test_reparam_for_a_script_that_has_no_such_option(
        script: Path, weights: Path, tmp_path: Path, first: bool) -> None:
    out = tmp_path / 'out.json'
    words = ['--reparam', str(script)] if first else [str(script), '--reparam']
    assert run.main([*words, str(weights), str(out)]) == 0
    found = json.loads(out.read_text())
    plain = sum(p.numel() for p in timm.create_model('resnet20', num_classes=7).parameters())
    assert found['argv'] == [str(script), str(weights), str(out)]
    assert found['before'] == found['twin'] > found['after'] == plain
    for key in ('logits', 'twin_logits'):
        assert found[key] == pytest.approx(want(weights), abs=1e-5)


def test_reparam_belongs_to_a_script_that_has_it(tmp_path: Path) -> None:
    path = tmp_path / 'own.py'
    path.write_text('import argparse, timm\n'
                    'parser = argparse.ArgumentParser()\n'
                    'parser.add_argument("--reparam", action="store_true")\n'
                    'assert parser.parse_args().reparam\n'
                    'import timm_asr\n'
                    'assert timm_asr.has_asr(timm.create_model("resnet20_asr_se").eval())\n')
    assert run.main([str(path), '--reparam']) == 0


def test_reparam_without_effect_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / 'idle.py'
    path.write_text('import timm\ntimm.create_model("resnet20_asr_se")\n')
    run.main(['--reparam', str(path)])
    assert '--reparam had no effect: idle.py' in caplog.text


def test_exit_status_and_errors_are_the_scripts_own(tmp_path: Path) -> None:
    path = tmp_path / 'stops.py'
    path.write_text('import sys\nsys.exit(3)\n')
    with pytest.raises(SystemExit) as stop:
        run.main([str(path)])
    assert stop.value.code == 3
    path.write_text('raise KeyError("mine")\n')
    with pytest.raises(KeyError, match='mine'):
        run.main([str(path)])
    assert sys.argv[0] != str(path)


def test_bad_input(tmp_path: Path) -> None:
    (tmp_path / 'not_python.py').write_text('model: = resnet\n')
    (tmp_path / 'binary.py').write_bytes(bytes(range(256)))
    for words, said in (
            ([], 'no script given'), (['nowhere.py'], 'no script at nowhere.py'), ([str(tmp_path)], 'no script at'),
            ([str(tmp_path / 'not_python.py')], 'is not a Python script'),
            ([str(tmp_path / 'binary.py')], 'is not a Python script'), (['--fast', 'x.py'], 'unknown option --fast')):
        with pytest.raises(BadInput, match=said) as error:
            run.main(words)
        assert '\n' not in str(error.value)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(['--help']) == 0
    assert '[--reparam] SCRIPT' in capsys.readouterr().out


@pytest.mark.skipif(not TIMM, reason="set TIMM_SCRIPTS to a folder with timm's validate.py and benchmark.py")
@pytest.mark.slow
def test_timms_own_scripts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in range(7):
        where = tmp_path / 'set' / 'validation' / f'class_{label}'
        where.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(where / f'{i}.png')
    model = timm.create_model(NAME, num_classes=7)
    torch.save({'arch': NAME, 'state_dict': model.state_dict()}, tmp_path / 'a.pth')
    plain = sum(p.numel() for p in timm.create_model('resnet20', num_classes=7).parameters())

    def result(*words: object) -> dict:
        done = subprocess.run([sys.executable, '-m', 'timm_asr', *map(str, words)], capture_output=True, text=True,
                              check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.split('--result\n')[1])

    line = ['--model', NAME, '--checkpoint', tmp_path / 'a.pth', '--data-dir', tmp_path / 'set', '--device', 'cpu',
            '-j', '0', '-b', '8', '--num-classes', '7']
    theirs = result('run', Path(TIMM) / 'validate.py', *line)
    fused = result('run', Path(TIMM) / 'validate.py', '--reparam', *line)
    ours = result('validate', *line)
    assert ours == theirs
    assert fused == theirs | {'param_count': round(plain / 1e6, 2)}
    row = result('run', Path(TIMM) / 'benchmark.py', '--reparam', '--model', NAME, '--device', 'cpu', '-b', '2',
                 '--num-warm-iter', '1', '--num-bench-iter', '5', '--bench', 'inference')
    assert row['param_count'] == 0.27
