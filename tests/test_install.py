"""An editable install, as the README's first command makes it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_a_script_above_the_clone_imports_the_package(tmp_path):
    """And not the clone, which has its name and would be an empty namespace package."""
    pytest.importorskip('setuptools', minversion='77')
    clone = tmp_path / 'timm_asr'
    clone.mkdir()
    for name in ('pyproject.toml', 'README.md', 'LICENSE', 'timm_asr_cli.py'):
        shutil.copy(ROOT / name, clone / name)
    shutil.copytree(ROOT / 'timm_asr', clone / 'timm_asr', ignore=shutil.ignore_patterns('__pycache__', 'weights'))
    # --ignore-installed: else pip takes away the package that the other tests run with.
    command = ['install', '--no-deps', '--no-build-isolation', '--no-index', '--ignore-installed']
    done = subprocess.run(
        [sys.executable, '-m', 'pip', *command, '--prefix', str(tmp_path / 'prefix'), '-e', str(clone)],
        capture_output=True, text=True, check=False)
    if 'No module named pip' in done.stderr:
        pytest.skip('there is no pip in this environment')
    assert done.returncode == 0, done.stderr
    folder, = (tmp_path / 'prefix').rglob('site-packages')
    code = (f'import site, sys; sys.path.insert(0, {str(tmp_path)!r}); site.addsitedir({str(folder)!r})\n'
            'from importlib.util import find_spec; print(find_spec("timm_asr").origin)')
    found = subprocess.run([sys.executable, '-I', '-S', '-c', code], capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()) == clone / 'timm_asr' / '__init__.py'
