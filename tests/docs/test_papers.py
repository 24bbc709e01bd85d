"""docs/papers.md: everything that the four papers print is listed, and its commands and names exist."""

import importlib
import re
import shlex

import pytest
import timm
import torch
from pages import ROOT

import timm_asr  # noqa: F401 - registers the models
from timm_asr.engine.options import parse
from timm_asr.experiment.plan import find_plan

PAGE = (ROOT / 'docs' / 'papers.md').read_text()
PRINTED = {'ASR': (9, 6, 0), 'DIA': (15, 11, 1), 'SPENet': (4, 4, 1), 'RAS': (3, 2, 0)}  # tables, figures, algorithms
COMMANDS = sorted(set(re.findall(r'\| `([^`]+)` \|', PAGE)))


def numbers(word, text):
    """What `Table 4`, `Figures 1, 3` and `Tables 1, 2, 5` stand for; `Figures 1 to 4` too."""
    found = set()
    for part in re.findall(rf'{word}s? ((?:\d+[ab]?(?:, | to )?)+)', text):
        for first, last in re.findall(r'(\d+)[ab]?(?: to (\d+))?', part):
            found |= set(range(int(first), int(last or first) + 1))
    return found


@pytest.mark.parametrize('paper', PRINTED)
def test_everything_printed_is_listed(paper):
    section = next(part for part in PAGE.split('\n## ') if part.startswith(paper))
    items = '; '.join(re.findall(r'^\| ([^|]+) \|', section, re.MULTILINE))
    for word, count in zip(('Table', 'Figure', 'Algorithm'), PRINTED[paper], strict=True):
        assert numbers(word, items) == set(range(1, count + 1)), word
    rows = re.findall(r'^\| (?!item|---)[^|]+\|[^|]*\|([^|]*)\|([^|]*)\|$', section, re.MULTILINE)
    assert all('run here' in said or 'needs' in said for command, said in rows if '`' in command)


@pytest.mark.parametrize('command', COMMANDS)
def test_the_command_is_understood_and_its_names_build(command):
    first, *words = shlex.split(command)
    if first == 'python':
        assert (ROOT / words[0]).is_file()
        assert set(re.findall('--[a-z]+', command)) <= set(re.findall('--[a-z]+', (ROOT / words[0]).read_text()))
        return
    name, *words = words
    module = importlib.import_module(f'timm_asr.engine.commands.{name.replace("-", "_")}')
    args = parse(module.OPTIONS, getattr(module, 'REFUSED', {}), words, 'timm-asr')
    if name == 'experiment':
        assert find_plan(words[0]).is_file()
    named = [getattr(args, key, None) for key in ('model', 'versus', 'backbone')] if name != 'models' else []
    for model in {m for value in named if value for m in ([value] if isinstance(value, str) else value)}:
        with torch.device('meta'):
            timm.create_model(model.split('+')[0], **(getattr(args, 'model_kwargs', None) or {}))
