"""The console command: what it finds, how fast it answers, what it calls itself."""

import runpy
import subprocess
import sys

import pytest
from pages import ROOT

from timm_asr.engine.commands import dispatch, names, summary


def call(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_file_is_a_command_that_says_what_it_does() -> None:
    assert {'train', 'validate', 'benchmark', 'export', 'freeze', 'publish', 'run'} <= set(names())
    for name in names():
        assert summary(name).endswith('.'), name


def test_help_imports_no_torch() -> None:
    """Of the console command and of each of its commands: torch alone takes seconds."""
    code = (
        'import contextlib, io, sys, timm_asr_cli\n'
        'printed = io.StringIO()\n'
        'for words in sys.argv[1:]:\n'
        '    sys.argv = ["timm-asr", *words.split()]\n'
        '    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):\n'
        '        timm_asr_cli.main()\n'
        'assert not {"torch", "timm", "numpy"} & set(sys.modules), sorted(sys.modules)\n'
        'print(printed.getvalue())\n')
    done = call('-c', code, '--help', *(f'{name} --help' for name in names()))
    assert done.returncode == 0, done.stderr
    for name in names():
        assert f'  {name:<20}{summary(name)}' in done.stdout
        assert f'usage: timm-asr {name} ' in done.stdout


@pytest.mark.parametrize(('line', 'prog'), [
    (['-m', 'timm_asr', 'validate'], 'python -m timm_asr validate'), (['validate.py'], 'validate.py'),
    (['timm_asr_cli.py', 'validate'], 'timm-asr validate')])
def test_messages_name_the_command_as_it_was_called(
        line: list[str], prog: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = line[0] == '-m'  # its help imports torch
    assert module or call(*line, '--help').stdout.startswith(f'usage: {prog} ')
    for words, said in ((['--bach-size', '3'], 'unknown option --bach-size; did you mean --batch-size?'),
                        (['--data-dir', 'nowhere'], 'no data at nowhere')):
        monkeypatch.setattr(sys, 'argv', [*line[module:], *words])
        start = runpy.run_module if module else runpy.run_path
        with pytest.raises(SystemExit) as ended:  # here, since another process takes seconds to import torch
            start('timm_asr' if module else str(ROOT / line[0]), run_name='__main__')
        assert (ended.value.code, capsys.readouterr().err) == (2, f'{prog}: error: {said}\n')


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(['exprot'], 'timm-asr') == 2
    assert capsys.readouterr().err == "timm-asr: error: unknown command 'exprot'; did you mean 'export'?\n"
    done = call('timm_asr_cli.py')
    assert (done.returncode, done.stdout.splitlines()[0]) == (2, 'usage: timm-asr COMMAND [options]')
