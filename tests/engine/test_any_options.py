"""Whatever stands in a YAML file of options or on a line: parsed, or refused with status 2 and one sentence."""

import contextlib
import io
import string
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from timm_asr.engine.commands import export, train, validate
from timm_asr.engine.options import as_yaml, parse
from timm_asr.engine.recipes import find_recipe, list_recipes
from timm_asr.errors import BadInput

KNOWN = {option.key: option for option in train.OPTIONS}
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
                                                                                       max_size=3), max_leaves=6)
KEYS = st.sampled_from(sorted(KNOWN)) | st.text(max_size=12)
OF_TYPE = {int: st.integers(-10**6, 10**6), float: st.floats(-1e6, 1e6),
           str: st.text(string.ascii_letters + string.digits + '._/', min_size=1, max_size=10)}


def outcome(call):
    """What a call returns, its exit status, and what it said or refused with."""
    said, status, result = io.StringIO(), None, None
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            result = call()
        except SystemExit as end:
            status = end.code
        except BadInput as error:
            status = 2
            said.write(f'x: error: {error}\n')
    return result, status, said.getvalue()


def read(text):
    """The options that a YAML file sets, or the sentence of the refusal."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'options.yaml'
        file.write_bytes(text if isinstance(text, bytes) else text.encode('utf-8', 'surrogatepass'))
        result, status, said = outcome(lambda: parse(train.OPTIONS, train.REFUSED, ['--config', str(file)], 'x'))
    if status is None:
        return result
    assert status == 2
    assert said.startswith('x: error: ')
    assert said.count('\n') == 1
    return said


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_mapping(content):
    result = read(yaml.safe_dump(content))
    assert isinstance(result, str) or all(hasattr(result, key.replace('-', '_')) for key in content)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=60) | st.text(max_size=60))
def test_any_bytes(content):
    result = read(content)
    assert isinstance(result, str) or set(vars(result)) > set(KNOWN)


@st.composite
def settings_of(draw):
    """Values of the right type for some of the options that take one."""
    simple = [option for option in train.OPTIONS if not {'choices', 'nargs'} & set(option.keywords)]
    chosen = draw(st.lists(st.sampled_from(simple), max_size=6, unique_by=lambda option: option.key))
    return {option.key: draw(OF_TYPE.get(option.keywords.get('type'), st.booleans())) for option in chosen}


@settings(deadline=None, max_examples=100)
@given(settings_of())
def test_options_come_back_from_the_file_that_a_run_leaves(content):
    first = read(yaml.safe_dump(content))
    assert not isinstance(first, str), first
    again = vars(read(as_yaml(vars(first))))
    assert {key: again[key] for key in vars(first) if key != 'config'} == {
        key: value for key, value in vars(first).items() if key != 'config'}
    assert all(again[key] == value for key, value in content.items())


@pytest.mark.parametrize('command', [train, validate, export], ids=lambda command: command.__name__.split('.')[-1])
@settings(deadline=None, max_examples=60)
@given(words=st.lists(st.text(max_size=8) | st.sampled_from(['--model', '--lr', '--data-dir', '--batch-size', '-b',
                                                            '--output', '3', 'x', '--', '-1', '--no-amp']), max_size=5))
def test_any_line(command, words):
    words = [word for word in words if word not in ('-h', '--help')]
    _, status, said = outcome(lambda: parse(command.OPTIONS, {}, words, 'x', print_config=False))
    assert status is None or (status == 2 and said.startswith('x: error: '))


@settings(deadline=None)
@given(st.text(max_size=20) | st.sampled_from(list_recipes()).map(lambda name: f'recipes/{name}.yaml'))
def test_any_recipe_name(name):
    file, status, said = outcome(lambda: find_recipe(name))
    assert file.is_file() if status is None else said.startswith(f'x: error: --config {name}: no such file')
