"""push_to_hub and `timm-asr publish`, with the real client, against a Hub on loopback."""

import hashlib
import json
import os
import re
import shutil

import pytest
import timm
from export_helpers import command
from hub import OTHER, READ, WRITE
from hub_helpers import change_section, contents, make_folder
from huggingface_hub import HfApi

import timm_asr
from timm_asr.errors import BadInput

REPO = 'alice/resnet20_asr_se'
PUBLISHED = ['README.md', 'args.yaml', 'attention.png', 'config.json', 'metrics.json', 'model.safetensors',
             'modeling_timm_asr.py', 'summary.csv', 'trainable/config.json', 'trainable/model.safetensors']


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp('run') / 'run', extras=True)


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / 'run')


@pytest.fixture
def publish(hub, capsys, monkeypatch):
    """The command; gives its standard output, or checks that it is refused with these parts of one sentence."""
    def run(folder, *words, token=WRITE, repo=REPO, refused=(), status=None):
        monkeypatch.setenv('HF_TOKEN', token)
        found, out, err = command(capsys, 'publish', folder, '--repo-id', repo, *words)
        assert not any(secret in out + err for secret in (WRITE, READ, OTHER))
        assert not [line for line in hub.log if line.startswith(('DELETE', 'PUT'))]
        if not refused:
            assert (found, err) == (0, '')
            return out
        assert found == status if status else found in (1, 2)
        assert (err.count('\n'), out) == (1, '')
        assert not [part for part in refused if part not in err], err
        return ''
    return run


def test_one_commit_holds_everything_and_a_second_one_is_not_made(hub, publish, folder):
    out = publish(folder)
    assert [title for title, _ in hub.repos[REPO].commits.values()] == ['initial commit', 'Weights by timm_asr']
    assert not hub.repos[REPO].private
    held, here = hub.files(REPO), contents(folder)
    assert sorted(held) == PUBLISHED
    for name in set(PUBLISHED) - {'README.md', 'args.yaml', 'config.json'}:
        assert held[name] == here[name]
    assert held['args.yaml'] == b'lr: 0.1\nmodel: resnet20_asr_se\n'
    for name, expected in json.loads(held['config.json'])['timm_asr']['files'].items():
        assert hashlib.sha256(held[name]).hexdigest() == expected
    assert not any(text in b''.join(held.values()) for text in (WRITE.encode(), b'/home/me', b'pickle', b'a key'))
    for name in PUBLISHED:
        assert re.search(rf'^{re.escape(name)} +{len(held[name]):,} bytes$', out, re.MULTILINE), out
    assert 'not published: last.pth.tar, other.png, pytorch_model.bin' in out
    assert f'published at {hub.url}/{REPO}' in out
    assert 'has all of this already; nothing was changed' in publish(folder)
    assert len(hub.repos[REPO].commits) == 2


def test_a_dry_run_shows_the_card_and_needs_neither_hub_nor_token(hub, publish, folder):
    out = publish(folder, '--dry-run', '--dataset-name', 'uoft-cs/cifar10', token='')
    assert [line.split()[0] for line in out.splitlines()[:len(PUBLISHED)]] == PUBLISHED
    for text in (f'{(folder / "model.safetensors").stat().st_size:,} bytes', 'nothing was sent', '\n---\n',
                 '\n# resnet20_asr_se\n', 'datasets:\n- uoft-cs/cifar10\n', 'model-index:'):
        assert text in out
    assert not hub.log


def test_a_model_is_folded_first(hub):
    model = timm.create_model('resnet20_asr_ie', num_classes=3, layers=(1, 1, 1))
    first, second = [timm_asr.push_to_hub(model, 'alice/three', token=WRITE, private=True, keep_trainable=True,
                                          license='mit') for _ in range(2)]
    assert (first.changed, first.url, first.commit) == (True, f'{hub.url}/alice/three', hub.repos['alice/three'].head)
    assert (second.changed, second.commit) == (False, first.commit)
    assert timm_asr.has_asr(model)
    assert hub.repos['alice/three'].private
    held = hub.files('alice/three')
    assert sorted(held) == [name for name in PUBLISHED if name.startswith(('READ', 'config', 'model', 'trainable'))]
    assert b'license: mit\n' in held['README.md']
    assert WRITE.encode() not in b''.join(held.values())


EMPTY = f'{REPO} is there, without files; publishing again fills it'


@pytest.mark.parametrize(('token', 'faults', 'parts', 'there'), [
    ('', {}, ['there is no token for the Hub: log in by `hf auth login`, or set HF_TOKEN'], False),
    (READ, {}, ['the token may not do that (403', 'it needs permission to write to', 'could not be read'], False),
    ('hf_nosuchtoken', {}, ['does not accept the token (401', 'log in again'], False),
    (WRITE, {'/preupload/': 'cut'}, ['the connection broke', EMPTY], True),
    (WRITE, {'/commit/': 503}, ['answered 503', EMPTY], True)])
def test_a_failure_is_one_sentence_that_says_what_is_there(hub, publish, folder, token, faults, parts, there):
    hub.faults |= faults
    publish(folder, token=token, refused=parts)
    assert bool(hub.repos) == there
    hub.faults.clear()
    if there:
        publish(folder)
        assert sorted(hub.files(REPO)) == PUBLISHED


def test_a_repository_with_other_content_is_left_alone(hub, publish, folder):
    theirs = {'README.md': b'# mine', 'config.json': b'{}', 'trainable/config.json': b'{}', 'notes.txt': b'kept'}
    hub.create(REPO, theirs)
    publish(folder, status=2, refused=[
        f'{REPO} has other content (README.md, config.json, notes.txt and 1 more)', '--overwrite'])
    hub.faults['/commit/'] = 503
    publish(folder, '--overwrite', refused=[
        'answered 503', f'{REPO} has README.md, config.json, notes.txt and 1 more (commit '])
    assert hub.files(REPO) == theirs
    hub.faults.clear()
    assert 'there from before, and still there: notes.txt' in publish(folder, '--overwrite')
    assert hub.files(REPO)['notes.txt'] == b'kept'
    assert hub.files(REPO)['model.safetensors'] == contents(folder)['model.safetensors']


def test_the_trainable_form_of_other_weights_is_not_taken_for_that_of_these(publish, folder, tmp_path):
    """It stays in the repository, where nothing is deleted, and is on no list."""
    publish(folder)
    other = make_folder(tmp_path / 'other', trainable=False, seed=1)
    assert 'trainable/model.safetensors' in publish(other, '--overwrite').split('still there: ')[1]
    with pytest.raises(BadInput, match='is the folded network alone, without its trainable form'):
        timm_asr.load_trainable(REPO)


def test_somebody_commits_meanwhile(hub, publish, folder):
    repo = hub.create(REPO)
    hub.faults['/preupload/'] = lambda: repo.commit('by somebody else', {'other.txt': b'other'})
    publish(folder, refused=['refused it (412: A commit has happened since)', f'{REPO} has other.txt (commit '])
    assert hub.files(REPO) == {'other.txt': b'other'}


def test_private(hub, publish, folder, tmp_path, monkeypatch):
    (tmp_path / 'link').symlink_to(folder)
    publish(tmp_path / 'link', '--private')
    assert hub.repos[REPO].private
    hub.create('alice/open')
    publish(folder, '--private', repo='alice/open', refused=['exists and is public'], status=2)
    publish(folder, token=OTHER, refused=['(403'])
    assert len(hub.repos[REPO].commits) == 2
    asked = []
    monkeypatch.setattr(HfApi, 'create_repo', lambda self, repo_id, **words: asked.append(words['private']))
    publish(folder)
    assert asked == [None]  # an organisation may make new repositories private by default


def _link(path):
    path.rename(path.with_suffix('.secret'))
    os.symlink(path.with_suffix('.secret'), path)


def _steal(folder, name):
    (folder.parent / 'home' / 'ssh').mkdir(parents=True)
    (folder.parent / 'home' / 'ssh' / 'key').write_text('secret')
    (folder / 'link').symlink_to(folder.parent / 'home')
    change_section(folder, files={name: None})


def _alter(path):
    path.write_bytes(path.read_bytes()[:-1] + b'!')


@pytest.mark.parametrize(('words', 'repo', 'spoil', 'sentence'), [
    ([], 'resnet20', None, "'resnet20' does not name a repository: it takes OWNER/NAME"),
    ([], '', None, '--repo-id OWNER/NAME says where to publish'),
    ([], f'{REPO}@v2', None, 'everything is published on main; leave out @v2'),
    ([], REPO, lambda f: (f / 'config.json').unlink(), 'is not a folder of weights: it has no config.json'),
    ([], REPO, lambda f: (f / 'model.safetensors').unlink(), 'has no model.safetensors'),
    ([], REPO, lambda f: _alter(f / 'model.safetensors'), 'was altered: its SHA-256 is'),
    ([], REPO, lambda f: _alter(f / 'trainable' / 'model.safetensors'), 'model.safetensors was altered since'),
    ([], REPO, lambda f: _link(f / 'attention.png'), 'attention.png is to be published, and is no regular'),
    ([], REPO, lambda f: change_section(f, files=None), 'has no list of its files: export it again (timm-asr export'),
    # As somebody who wants a file of this machine would.
    *(([], REPO, lambda f, name=name: _steal(f, name), 'is no regular file in this folder')
      for name in ('../home/ssh/key', '/etc/passwd', 'link/ssh/key')),
    (['--license', 'mit'], REPO, lambda f: (f / 'README.md').write_text('# Mine'),
     'is published as it stands, so --license')])
def test_what_cannot_work_is_said_before_anything_is_sent(hub, publish, folder, words, repo, spoil, sentence):
    if spoil:
        spoil(folder)
    publish(folder, *words, repo=repo, refused=[sentence], status=2)
    assert not hub.log


def test_a_card_of_ones_own_stays_as_it_is(hub, publish, folder):
    (folder / 'README.md').write_text('# By hand\n')
    publish(folder)
    assert hub.files(REPO)['README.md'] == b'# By hand\n'
