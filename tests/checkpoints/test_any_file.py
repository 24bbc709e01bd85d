"""Whatever a checkpoint or an exported folder holds: it is opened, or refused with one sentence."""

import io
import json
import shutil

import pytest
import torch
from export_helpers import digits_model, our_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import timm_asr
from timm_asr.checkpoints.open import create_trainable, open_source
from timm_asr.errors import BadInput, Stopped

PLAIN = st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=8)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner,
                                                                                       max_size=3), max_leaves=4)
ANYTHING = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check_opening(what, opening=open_source):
    """Whether something is opened; what refuses it is one sentence."""
    try:
        opened = opening(what)
    except (BadInput, Stopped) as error:
        sentence = str(error)
    else:
        return isinstance(getattr(opened, 'model', opened), torch.nn.Module)
    assert sentence.strip()
    assert '\n' not in sentence
    return False


def paths_of(content, depth=3):
    """Every place in nested dictionaries, as tuples of keys."""
    for key, value in content.items():
        yield (key,)
        if isinstance(value, dict) and depth > 1:
            yield from ((key, *rest) for rest in paths_of(value, depth - 1))


def replaced(content, path, value):
    """A copy with another value at a place; the value None removes it."""
    content = {**content}
    if len(path) > 1:
        content[path[0]] = replaced(content[path[0]], path[1:], value)
    elif value is None:
        del content[path[0]]
    else:
        content[path[0]] = value
    return content


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    path = our_checkpoint(tmp_path_factory.mktemp('run') / 'last.pth.tar', digits_model())
    assert check_opening(path)
    return path.read_bytes()


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp('exported') / 'folder'
    timm_asr.save_fused(digits_model(), folder)
    assert check_opening(folder)
    return folder


@ANYTHING
@given(content=st.binary(max_size=200))
def test_any_bytes_as_a_checkpoint(content, tmp_path):
    (tmp_path / 'x.pth.tar').write_bytes(content)
    assert not check_opening(tmp_path / 'x.pth.tar')


@ANYTHING
@given(data=st.data())
def test_a_checkpoint_with_other_bytes(data, checkpoint, tmp_path):
    content = bytearray(checkpoint)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / 'x.pth.tar').write_bytes(content[:data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    check_opening(tmp_path / 'x.pth.tar')


@ANYTHING
@given(data=st.data())
def test_a_checkpoint_with_another_field(data, checkpoint, tmp_path):
    content = torch.load(io.BytesIO(checkpoint), weights_only=True)
    places = [path for path in paths_of(content, 2) if path[0] != 'state_dict']
    torch.save(replaced(content, data.draw(st.sampled_from(places)), data.draw(VALUES)), tmp_path / 'x.pth.tar')
    check_opening(tmp_path / 'x.pth.tar')


@ANYTHING
@given(data=st.data())
def test_a_configuration_with_another_field(data, exported, tmp_path):
    folder = tmp_path / 'folder'
    shutil.copytree(exported, folder, dirs_exist_ok=True)
    content = json.loads((exported / 'config.json').read_text())
    content = replaced(content, data.draw(st.sampled_from(list(paths_of(content)))), data.draw(VALUES))
    (folder / 'config.json').write_text(json.dumps(content))
    check_opening(folder)
    check_opening(folder, create_trainable)


@ANYTHING
@given(content=st.binary(max_size=80) | st.text(max_size=80).map(lambda text: text.encode('utf-8', 'surrogatepass')))
def test_any_bytes_as_a_configuration(content, exported, tmp_path):
    folder = tmp_path / 'folder'
    shutil.copytree(exported, folder, dirs_exist_ok=True)
    (folder / 'config.json').write_bytes(content)
    assert not check_opening(folder)
