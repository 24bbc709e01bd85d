"""Every page of the documentation: its Python runs, its links lead somewhere, its commands are understood.

`tests/support/pages.py` lists the comments by which a page says how it is to be run.
"""

import importlib
import re
import shlex
import subprocess
import sys

import pytest
import yaml
from helpers import zoo_names
from pages import PAGES, ROOT, anchors, commands, links, parts

import timm_asr
from timm_asr.engine import options
from timm_asr.engine.commands import names as command_names
from timm_asr.engine.recipes import find_recipe, list_recipes

SLOW = {page for page in PAGES if any(part.kind == 'test' and part.text == 'slow' for part in parts(page))}
WITH_PYTHON = [pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else [])
               for page in PAGES if any(part.kind == 'python' for part in parts(page))]
COMMANDS = [(page, command) for page in PAGES for command in commands(page)]


def loose(text):
    """Text without what another machine changes: numbers, and the width of columns."""
    return [' '.join(re.sub(r'-?\d[\d.,]*(e[-+]\d+)?', '#', line).split()) for line in text.strip().splitlines()]


@pytest.mark.parametrize('page', WITH_PYTHON)
def test_its_python_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MPLBACKEND', 'Agg')
    space, before, printed = {'__name__': page}, '', ''
    for part in parts(page):
        word, _, rest = part.text.partition('\n' if part.text.startswith('setup\n') else ' ')
        if part.kind == 'python' and before == 'process':
            run = subprocess.run([sys.executable, '-c', part.text], capture_output=True, text=True)
            assert run.returncode == 0, f'{page}:{part.line}\n{run.stderr}'
            printed = run.stdout
        elif (part.kind == 'python' and before != 'skip:') or (part.kind == 'test' and word == 'setup'):
            code = part.text if part.kind == 'python' else rest
            exec(compile('\n' * part.line + code, page, 'exec'), space)
            printed = capsys.readouterr().out
        elif part.kind == 'test' and word == 'needs':
            pytest.importorskip(rest)
        elif part.kind == 'text' and before == 'output':
            assert loose(part.text) == loose(printed), f'{page}:{part.line}'
        before = word if part.kind == 'test' else ''


@pytest.mark.parametrize('page', PAGES)
def test_it_imports_what_it_uses(page):
    """Where a reader sees it, not in the setup of the test above."""
    code = '\n'.join(part.text for part in parts(page) if part.kind == 'python')
    for name in ('timm', 'timm_asr', 'torch'):
        used = re.search(rf'(?<![\w.\'/-]){name}\.\w', re.sub(r'(?m)^\s*(from|import) .*$', '', code))
        assert not used or re.search(rf'(?m)^\s*import (.*, )?{name}\b', code), name


@pytest.mark.parametrize('page', PAGES)
def test_its_links_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition('#')
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), link
        if anchor and target.suffix == '.md':
            assert anchor in anchors(str(target.relative_to(ROOT))), link


@pytest.mark.parametrize(('page', 'command'), COMMANDS, ids=[f'{page}:{command[:60]}' for page, command in COMMANDS])
def test_its_commands_are_understood(page, command, monkeypatch):
    line = re.search(r'(?:timm-asr|-m timm_asr) ([\w-]+)(.*)|python (train|validate|benchmark)\.py(.*)',
                     command.split('&&')[-1])
    if not line or line[1] == 'run':
        return  # not a command of this package, or one whose options belong to another program
    name, rest = (word for word in line.groups() if word is not None)
    module = importlib.import_module(f'timm_asr.engine.commands.{name.replace("-", "_")}')

    def parse_only(*args, _parse=options.parse, **kwargs):
        _parse(*args, **kwargs)
        raise SystemExit('understood')

    for place in list(sys.modules.values()):
        if getattr(place, 'parse', None) is options.parse and place is not options:
            monkeypatch.setattr(place, 'parse', parse_only)
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match='understood'):
        module.main(shlex.split(rest))


def test_readme_opens_with_the_two_commands_that_ci_runs():
    first, second = [part.text for part in parts('README.md') if part.kind == 'bash'][:2]
    assert first.count('\n') == second.count('\n') == 1
    assert first.rstrip().endswith('python train.py')
    assert second.rstrip().endswith('pytest')
    assert 'README.md' in (ROOT / '.ci' / 'run').read_text()


def test_comments_for_the_tests_are_spelt_right():
    words = {part.text.split()[0] for page in PAGES for part in parts(page) if part.kind == 'test'}
    assert words <= {'setup', 'skip:', 'process', 'needs', 'output', 'slow'}


def test_navigation_has_every_page():
    listed = re.findall(r'^ +- .*?(\S+\.md)$', (ROOT / 'mkdocs.yml').read_text(), re.MULTILINE)
    pages = {page.removeprefix('docs/') for page in PAGES if page.startswith('docs/')}
    assert len(listed) == len(set(listed))
    assert {name for name in listed if '/' not in name and name != 'CONTRIBUTING.md'} == pages


@pytest.mark.parametrize(('page', 'row', 'names'), [
    ('reference', r'^::: timm_asr\.(\w+)$', set(timm_asr.__all__) - {'__version__'}),
    ('commands', r'^\| `([\w-]+)` \|', command_names()),
    ('model_table', r'^\| `(\w+)` \|', zoo_names())], ids=['reference', 'commands', 'model_table'])
def test_a_page_lists_every_name(page, row, names):
    """The table of models is written by `python results/model_table.py`."""
    listed = re.findall(row, (ROOT / 'docs' / f'{page}.md').read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(names)


def test_every_recipe_is_on_its_page():
    rows = re.findall(r'^\| `(\w+)` \| `(\w+)` \|', (ROOT / 'docs' / 'recipes.md').read_text(), re.MULTILINE)
    models = {name: yaml.safe_load(find_recipe(name).read_text())['model'] for name in list_recipes()}
    assert dict(rows) == models
