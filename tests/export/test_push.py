"""push_to_hub and `python -m timm_asr publish`, with the real client, against a Hub on loopback."""

import json
import os
import re
import shutil

import pytest
from hub_helpers import contents, make_folder
from hub_server import OTHER, READ, WRITE

REPO = 'alice/resnet20_asr_se'
PUBLISHED = ['README.md', 'args.yaml', 'attention.png', 'config.json', 'metrics.json', 'model.safetensors',
             'modeling_timm_asr.py', 'summary.csv', 'trainable/config.json', 'trainable/model.safetensors']
NO_WAITING = 'import time\ntime.sleep = lambda seconds: None\n'  # between the client's own retries


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp('run') / 'run', extras=True)


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / 'run')
    return tmp_path / 'run'


def publish(client, *words, token=WRITE, code=''):
    ran = client.run(f'{code}\nimport sys, timm_asr.__main__ as m\n'
                     f'sys.argv = {["timm_asr", "publish", *map(str, words)]!r}\nsys.exit(m.main())',
                     **({'HF_TOKEN': token} if token else {}))
    assert not any(secret in ran.out + ran.err for secret in (WRITE, READ, OTHER))
    return ran


def refused(ran, *parts, rc=None):
    assert ran.rc == rc if rc else ran.rc in (1, 2)
    assert ran.err.count('\n') == 1, ran.err
    for part in parts:
        assert part in ran.err, ran.err
    assert not ran.out


def test_one_commit_holds_everything_and_a_second_one_is_not_made(hub, hub_client, folder):
    ran = publish(hub_client, folder, '--repo-id', REPO)
    assert ran.rc == 0, ran.err
    assert hub.repos[REPO].history == [('main', 'initial commit'), ('main', 'Weights by timm_asr')]
    assert not hub.repos[REPO].private
    held, here = hub.files(REPO), contents(folder)
    assert sorted(held) == PUBLISHED
    for name in set(PUBLISHED) - {'README.md', 'args.yaml'}:
        assert held[name] == here[name]
    assert held['args.yaml'] == b'lr: 0.1\nmodel: resnet20_asr_se\n'
    assert not any(text in b''.join(held.values()) for text in (WRITE.encode(), b'/home/me', b'pickle', b'a key'))
    for name in PUBLISHED:
        assert re.search(rf'^{re.escape(name)} +{len(held[name]):,} bytes$', ran.out, re.MULTILINE), ran.out
    assert 'not published: last.pth.tar, other.png, pytorch_model.bin' in ran.out
    assert f'published at {hub.url}/{REPO}' in ran.out
    assert not ran.err

    again = publish(hub_client, folder, '--repo-id', REPO)
    assert again.rc == 0, again.err
    assert 'has all of this already; nothing was changed' in again.out
    assert len(hub.repos[REPO].history) == 2
    assert not hub.requests('DELETE')


def test_a_dry_run_shows_the_card_and_needs_neither_hub_nor_token(hub, hub_client, folder):
    ran = publish(hub_client, folder, '--repo-id', REPO, '--dry-run', '--dataset-name', 'uoft-cs/cifar10', token='')
    assert ran.rc == 0, ran.err
    assert [line.split()[0] for line in ran.out.splitlines()[:len(PUBLISHED)]] == PUBLISHED
    size = (folder / 'model.safetensors').stat().st_size
    assert f'{size:,} bytes' in ran.out
    assert 'nothing was sent' in ran.out
    assert '\n---\n' in ran.out
    assert '\n# resnet20_asr_se\n' in ran.out
    assert 'datasets:\n- uoft-cs/cifar10\n' in ran.out
    assert 'model-index:' in ran.out
    assert not hub.log


def test_a_model_is_folded_first(hub, hub_client):
    ran = hub_client.run(f'''
import timm, timm_asr
model = timm.create_model('resnet20_asr_ie', num_classes=3)
call = lambda **kwargs: timm_asr.push_to_hub(model, 'alice/three', token={WRITE!r}, private=True, **kwargs)
first, second = call(keep_trainable=True, license='mit'), call(keep_trainable=True, license='mit')
result = [first.changed, first.url, first.commit, second.changed, second.commit, timm_asr.has_asr(model)]
''')
    assert ran.rc == 0, ran.err
    commit = hub.repos['alice/three'].refs['main']
    assert ran.result == [True, f'{hub.url}/alice/three', commit, False, commit, True]
    assert hub.repos['alice/three'].private
    held = hub.files('alice/three')
    assert sorted(held) == [name for name in PUBLISHED if name.startswith(('READ', 'config', 'model', 'trainable'))]
    assert b'license: mit\n' in held['README.md']
    assert WRITE.encode() not in b''.join(held.values())


EMPTY = f'{REPO} is there, without files; publishing again fills it'


@pytest.mark.parametrize(('token', 'fault', 'parts', 'there'), [
    ('', None, ['there is no token for the Hub: log in by `hf auth login`, or set HF_TOKEN'], False),
    (READ, None, ['the token may not do that (403', 'it needs permission to write to', 'could not be read'], False),
    ('hf_nosuchtoken', None, ['does not accept the token (401', 'log in again'], False),
    (WRITE, {'method': 'PUT', 'path': '/lfs/', 'how': 'cut'}, ['the connection broke', EMPTY], True),
    (WRITE, {'method': 'POST', 'path': '/commit/', 'status': 503}, ['answered 503', EMPTY], True)])
def test_a_failure_is_one_sentence_that_says_what_is_there(hub, hub_client, folder, token, fault, parts, there):
    if fault:
        hub.fail(**fault)
    refused(publish(hub_client, folder, '--repo-id', REPO, token=token, code=NO_WAITING), *parts)
    assert bool(hub.repos) == there
    assert not hub.requests('DELETE')
    hub.faults.clear()
    if there:
        assert publish(hub_client, folder, '--repo-id', REPO).rc == 0
        assert sorted(hub.files(REPO)) == PUBLISHED


def test_a_repository_with_other_content_is_left_alone(hub, hub_client, folder):
    theirs = {'README.md': b'# mine', 'config.json': b'{}', 'trainable/config.json': b'{}', 'notes.txt': b'kept'}
    hub.create(REPO, theirs)
    refused(publish(hub_client, folder, '--repo-id', REPO),
            f'{REPO} has other content (README.md, config.json, notes.txt and 1 more)', '--overwrite', rc=2)
    hub.fail('POST', '/commit/', status=503)
    refused(publish(hub_client, folder, '--repo-id', REPO, '--overwrite'), 'answered 503',
            f'{REPO} has README.md, config.json, notes.txt and 1 more (commit ')
    assert hub.files(REPO) == theirs
    hub.faults.clear()

    ran = publish(hub_client, folder, '--repo-id', REPO, '--overwrite')
    assert 'there from before, and still there: notes.txt' in ran.out, ran.err
    assert hub.files(REPO) | contents(folder) != theirs
    assert hub.files(REPO)['notes.txt'] == b'kept'
    assert not hub.requests('DELETE')


def test_the_trainable_form_of_other_weights_is_not_taken_for_that_of_these(hub, hub_client, folder, tmp_path):
    """It stays in the repository, where nothing is deleted, and is on no list."""
    assert publish(hub_client, folder, '--repo-id', REPO).rc == 0
    other = make_folder(tmp_path / 'other', trainable=False, seed=1)
    ran = publish(hub_client, other, '--repo-id', REPO, '--overwrite')
    assert 'trainable/model.safetensors' in ran.out.split('still there: ')[1], ran.err
    ran = hub_client.run(f'''
import timm_asr
try:
    timm_asr.load_trainable('{REPO}', cache_dir={str(tmp_path / "cache")!r})
except timm_asr.errors.BadInput as error:
    result = str(error)
''')
    assert 'is the folded network alone, without its trainable form' in ran.result, ran.err


def test_somebody_commits_meanwhile(hub, hub_client, folder):
    hub.create(REPO)
    hub.fail('POST', '/preupload/', how='meanwhile')
    refused(publish(hub_client, folder, '--repo-id', REPO), 'refused it (412: A commit has happened since)',
            f'{REPO} has other.txt (commit ')
    assert hub.files(REPO) == {'other.txt': b'other'}


def test_private(hub, hub_client, folder):
    assert publish(hub_client, folder, '--repo-id', REPO, '--private').rc == 0
    assert hub.repos[REPO].private
    hub.create('alice/open')
    refused(publish(hub_client, folder, '--repo-id', 'alice/open', '--private'), 'exists and is public', rc=2)
    refused(publish(hub_client, folder, '--repo-id', REPO, token=OTHER), '(403')
    assert len(hub.repos[REPO].history) == 2


def _link(path):
    path.with_suffix('.secret').write_bytes(path.read_bytes())
    path.unlink()
    os.symlink(path.with_suffix('.secret'), path)


def _list(folder, name):
    """Put a name on the list as somebody who wants a file of this machine would."""
    config = json.loads((folder / 'config.json').read_text())
    config['timm_asr']['files'][name] = 'ab' * 32
    (folder / 'config.json').write_text(json.dumps(config))


@pytest.mark.parametrize(('words', 'spoil', 'sentence'), [
    (['--repo-id', 'resnet20'], None, "'resnet20' does not name a repository: it takes OWNER/NAME"),
    ([], None, '--repo-id OWNER/NAME says where to publish'),
    (['--repo-id', f'{REPO}@v2'], None, 'everything is published on main; leave out @v2'),
    (['--repo-id', REPO], lambda f: (f / 'config.json').unlink(), 'is not a folder of weights: it has no config.json'),
    (['--repo-id', REPO], lambda f: (f / 'model.safetensors').unlink(), 'has no model.safetensors'),
    (['--repo-id', REPO], lambda f: (f / 'model.safetensors').write_bytes(
        (f / 'model.safetensors').read_bytes()[:-1] + b'!'), 'was altered: its SHA-256 is'),
    (['--repo-id', REPO], lambda f: (f / 'trainable' / 'model.safetensors').write_bytes(b'short'),
     'trainable/model.safetensors was altered since the folder was written'),
    (['--repo-id', REPO], lambda f: (f / 'summary.csv').write_text('other'), 'summary.csv was altered since'),
    (['--repo-id', REPO], lambda f: _link(f / 'attention.png'), 'attention.png is to be published, and is no regular'),
    (['--repo-id', REPO], lambda f: _link(f / 'model.safetensors'), 'is no regular file'),
    (['--repo-id', REPO], lambda f: _list(f, '../../secret'), 'is no regular file in this folder'),
    (['--repo-id', REPO], lambda f: _list(f, '/etc/passwd'), 'is no regular file in this folder'),
    (['--repo-id', REPO, '--license', 'mit'], lambda f: (f / 'README.md').write_text('# Mine'),
     'is published as it stands, so --license'),
])
def test_what_cannot_work_is_said_before_anything_is_sent(hub, hub_client, folder, words, spoil, sentence):
    if spoil:
        spoil(folder)
    refused(publish(hub_client, folder, *words), sentence, rc=2)
    assert not hub.repos
    assert not hub.requests('POST')


def test_a_folder_from_before_there_was_a_list_gives_its_weights_alone(hub, hub_client, folder):
    config = json.loads((folder / 'config.json').read_text())
    del config['timm_asr']['files']
    (folder / 'config.json').write_text(json.dumps(config))
    ran = publish(hub_client, folder, '--repo-id', REPO)
    assert ran.rc == 0, ran.err
    assert sorted(hub.files(REPO)) == ['README.md', 'config.json', 'model.safetensors', 'trainable/config.json',
                                       'trainable/model.safetensors']


def test_a_card_of_ones_own_is_published_as_it_stands(hub, hub_client, folder):
    (folder / 'README.md').write_text('# By hand\n')
    assert publish(hub_client, folder, '--repo-id', REPO).rc == 0
    assert hub.files(REPO)['README.md'] == b'# By hand\n'
