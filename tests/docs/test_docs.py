"""The Python of the README runs as it stands, in order, each block in a fresh process."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def blocks(path, language):
    return re.findall(rf'```{language}\n(.*?)```', (ROOT / path).read_text(), re.DOTALL)


@pytest.mark.slow
def test_readme_python_runs(tmp_path):
    code = blocks('README.md', 'python')
    assert len(code) >= 3
    for block in code:
        run = subprocess.run([sys.executable, '-c', block], cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, block + run.stderr
    assert (tmp_path / 'resnet50_fused' / 'model.safetensors').is_file()


def test_readme_opens_with_the_two_commands_that_ci_runs():
    commands = blocks('README.md', 'bash')
    assert [c.count('\n') for c in commands[:2]] == [1, 1]
    assert commands[0].rstrip().endswith('python train.py')
    assert commands[1].rstrip().endswith('pytest')
    assert 'README.md' in (ROOT / '.ci' / 'run').read_text()


@pytest.mark.parametrize('path', ['README.md', *(f'docs/{p.name}' for p in (ROOT / 'docs').glob('*.md'))])
def test_links_lead_somewhere(path):
    text = (ROOT / path).read_text()
    links = [link for link in re.findall(r'\]\(([^)#]+)', text) if '://' not in link]
    missing = [link for link in links if not ((ROOT / path).parent / link).exists()]
    assert not missing
