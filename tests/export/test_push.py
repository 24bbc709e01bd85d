"""push_to_hub and `python -m timm_asr publish`, with the real client, against a Hub on loopback."""

import json
import os
import re
import shutil
import signal
import threading
import time

import pytest
from hub_client import Client
from hub_helpers import contents, make_folder
from hub_server import OTHER, READ, WRITE

REPO = 'alice/resnet20_asr_se'
PUBLISHED = ['README.md', 'args.yaml', 'attention.png', 'config.json', 'metrics.json', 'model.safetensors',
             'summary.csv', 'trainable/config.json', 'trainable/model.safetensors']
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
    for name in set(PUBLISHED) - {'README.md', 'args.yaml', 'metrics.json'}:
        assert held[name] == here[name]
    assert b'data_dir: cifar10\n' in held['args.yaml']
    assert json.loads(held['metrics.json'])['dataset'] == 'cifar10'
    assert not any(text in b''.join(held.values()) for text in (WRITE.encode(), b'/home/me', b'pickle'))
    for name in PUBLISHED:
        assert re.search(rf'^{re.escape(name)} +{len(held[name]):,} bytes$', ran.out, re.MULTILINE), ran.out
    assert 'not published: last.pth.tar, pytorch_model.bin, logs/' in ran.out
    assert f'published at {hub.url}/{REPO}' in ran.out
    assert not ran.err

    hub.log.clear()
    again = publish(hub_client, folder, '--repo-id', REPO)
    assert again.rc == 0
    assert 'has all of this already; nothing was changed' in again.out
    assert len(hub.repos[REPO].history) == 2
    assert {method for method, _ in hub.log} == {'GET'}


def test_writing_the_folder_again_changes_nothing_there(hub, hub_client, tmp_path):
    first = make_folder(tmp_path / 'a' / 'run')
    second = shutil.copytree(first, tmp_path / 'b' / 'run')
    config = json.loads((second / 'config.json').read_text())
    config['timm_asr']['created'] = '2001-01-01T00:00:00+00:00'
    (second / 'config.json').write_text(json.dumps(config, indent=2))
    assert publish(hub_client, first, '--repo-id', REPO).rc == 0
    assert contents(first)['config.json'] != contents(second)['config.json']
    ran = publish(hub_client, second, '--repo-id', REPO)
    assert 'nothing was changed' in ran.out
    assert len(hub.repos[REPO].history) == 2


def test_a_dry_run_needs_neither_hub_nor_token(hub, hub_client, folder):
    ran = publish(hub_client, folder, '--repo-id', REPO, '--dry-run', token='')
    assert ran.rc == 0, ran.err
    assert [line.split()[0] for line in ran.out.splitlines()[:len(PUBLISHED)]] == PUBLISHED
    size = (folder / 'model.safetensors').stat().st_size
    assert f'{size:,} bytes' in ran.out
    assert 'nothing was sent' in ran.out
    assert not hub.log


def test_a_model_is_fused_first(hub, hub_client):
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


@pytest.mark.parametrize(('token', 'fault', 'parts'), [
    ('', None, ['there is no token for the Hub: log in by `hf auth login`, or set HF_TOKEN']),
    (READ, None, ['the token may not do that (403', 'it needs permission to write to', 'nothing was changed there']),
    (OTHER, None, ['the token may not do that (403', 'nothing was changed there']),
    ('hf_nosuchtoken', None, ['does not accept the token (401', 'log in again']),
    (WRITE, {'method': 'POST', 'path': '/repos/create', 'status': 409}, ['refused it (409']),
    (WRITE, {'method': 'POST', 'path': '/preupload/', 'status': 403}, ['(403', 'was removed again']),
    (WRITE, {'method': 'POST', 'path': '/objects/batch', 'status': 503}, ['answered 503', 'was removed again']),
    (WRITE, {'method': 'PUT', 'path': '/lfs/', 'status': 403}, ['(403', 'was removed again']),
    (WRITE, {'method': 'PUT', 'path': '/lfs/', 'how': 'cut'}, ['the connection broke', 'was removed again']),
    (WRITE, {'method': 'POST', 'path': '/commit/', 'status': 401}, ['(401', 'was removed again']),
    (WRITE, {'method': 'POST', 'path': '/commit/', 'status': 503}, ['answered 503', 'was removed again']),
    (WRITE, {'method': 'POST', 'path': '/commit/', 'how': 'cut'}, ['the connection broke', 'was removed again']),
])
def test_a_failure_is_one_sentence_and_leaves_no_repository(hub, hub_client, folder, token, fault, parts):
    if fault:
        hub.fail(**fault)
    refused(publish(hub_client, folder, '--repo-id', REPO, token=token, code=NO_WAITING), *parts)
    assert not hub.repos
    assert token == '' or hub.log


def test_a_short_break_is_bridged(hub, hub_client, folder):
    hub.fail('PUT', '/lfs/', how='cut', times=2)
    assert publish(hub_client, folder, '--repo-id', REPO, code=NO_WAITING).rc == 0
    assert hub.files(REPO)['model.safetensors'] == contents(folder)['model.safetensors']


def test_a_lost_answer_to_a_commit_is_no_failure(hub, hub_client, folder):
    hub.fail('POST', '/commit/', how='lost')
    assert publish(hub_client, folder, '--repo-id', REPO).rc == 0
    assert len(hub.repos[REPO].history) == 2


def test_a_lost_answer_to_the_creation_leaves_nothing(hub, hub_client, folder):
    hub.fail('POST', '/repos/create', how='lost')
    refused(publish(hub_client, folder, '--repo-id', REPO), 'the connection broke', 'was removed again')
    assert not hub.repos


def test_what_cannot_be_removed_is_named(hub, hub_client, folder):
    hub.fail('POST', '/commit/', status=503)
    hub.fail('DELETE', '/repos/delete', status=503)
    refused(publish(hub_client, folder, '--repo-id', REPO), 'is still there, empty', f'{hub.url}/{REPO}/settings', rc=1)


def _interrupt_in_put(hub, process):
    until = time.monotonic() + 60
    while not hub.requests('PUT') and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process, signal.SIGINT)
    hub.faults[-1].over.set()


def test_ctrl_c_in_an_upload_leaves_nothing(hub, hub_client, folder):
    hub.fail('PUT', '/lfs/', how='hang', times=1)
    interrupted = threading.Thread(target=_interrupt_in_put, args=(hub, hub_client.process.pid))
    interrupted.start()
    ran = publish(hub_client, folder, '--repo-id', REPO)
    interrupted.join()
    assert ran.rc == 130, ran.err
    assert hub.requests('PUT')
    assert not hub.requests('POST', '/commit/')
    assert not hub.repos


def test_other_weights_on_the_server_are_noticed(hub, hub_client, folder):
    hub.fail('POST', '/commit/', how='spoil')
    refused(publish(hub_client, folder, '--repo-id', REPO),
            'does not have what was uploaded (attention.png, model.safetensors, trainable/model.safetensors)',
            f'see what is there at {hub.url}/{REPO}', rc=1)


def test_a_repository_with_other_content_is_left_alone(hub, hub_client, folder):
    theirs = {'README.md': b'# mine', 'config.json': b'{}', 'trainable/config.json': b'{}', 'notes.txt': b'kept'}
    hub.create(REPO, theirs)
    refused(publish(hub_client, folder, '--repo-id', REPO),
            f'{REPO} has other content (README.md, config.json, trainable/config.json)', '--overwrite', '--create-pr',
            rc=2)
    assert hub.files(REPO) == theirs

    hub.fail('POST', '/commit/', status=503)
    refused(publish(hub_client, folder, '--repo-id', REPO, '--overwrite'), 'answered 503', 'nothing was changed there')
    assert hub.files(REPO) == theirs
    hub.faults.clear()

    before = dict(hub.repos[REPO].refs)
    ran = publish(hub_client, folder, '--repo-id', REPO, '--create-pr')
    assert f'published at {hub.url}/{REPO}/discussions/1' in ran.out, ran.err
    assert hub.files(REPO) == theirs
    assert hub.files(REPO, 'refs/pr/1')['model.safetensors'] == contents(folder)['model.safetensors']
    ran = publish(hub_client, folder, '--repo-id', REPO, '--create-pr')
    assert 'discussions/1 has all of this already' in ran.out, ran.err
    assert before == {'main': hub.repos[REPO].refs['main']}
    assert len(hub.repos[REPO].proposals) == 1

    (folder / 'trainable' / 'config.json').unlink()
    (folder / 'trainable' / 'model.safetensors').unlink()
    (folder / 'trainable').rmdir()
    assert publish(hub_client, folder, '--repo-id', REPO, '--overwrite').rc == 0
    held = hub.files(REPO)
    assert held['config.json'] == contents(folder)['config.json']
    assert held['notes.txt'] == b'kept'
    assert 'trainable/config.json' not in held  # it belonged to other weights


def test_a_repository_that_was_left_empty_is_filled(hub, hub_client, folder):
    hub.create(REPO)
    assert publish(hub_client, folder, '--repo-id', REPO).rc == 0
    assert sorted(hub.files(REPO)) == PUBLISHED


def test_an_empty_repository_that_was_there_is_not_removed(hub, hub_client, folder):
    hub.create(REPO)
    hub.fail('POST', '/commit/', status=503)
    refused(publish(hub_client, folder, '--repo-id', REPO), 'nothing was changed there')
    assert REPO in hub.repos


def test_somebody_commits_meanwhile(hub, hub_client, folder):
    hub.create(REPO)
    hub.fail('POST', '/preupload/', how='meanwhile')
    refused(publish(hub_client, folder, '--repo-id', REPO), 'refused it (412: A commit has happened since)')
    assert hub.files(REPO) == {'other.txt': b'other'}


def test_a_branch_of_its_own(hub, hub_client, folder):
    refused(publish(hub_client, folder, '--repo-id', REPO, '--revision', 'v2'), 'publish to main first', rc=2)
    hub.create(REPO, {'README.md': b'# mine'})
    hub.fail('POST', '/commit/', status=503, times=1)
    refused(publish(hub_client, folder, '--repo-id', REPO, '--revision', 'v2'), 'the branch v2', 'was removed again')
    assert set(hub.repos[REPO].refs) == {'main'}
    assert publish(hub_client, folder, '--repo-id', REPO, '--revision', 'v2').rc == 0
    assert sorted(hub.files(REPO, 'v2')) == PUBLISHED
    assert hub.files(REPO) == {'README.md': b'# mine'}
    ran = publish(hub_client, folder, '--repo-id', REPO, '--revision', 'v2')
    assert 'nothing was changed' in ran.out


def test_private(hub, hub_client, folder):
    assert publish(hub_client, folder, '--repo-id', REPO, '--private').rc == 0
    assert hub.repos[REPO].private
    hub.create('alice/open')
    refused(publish(hub_client, folder, '--repo-id', 'alice/open', '--private'), 'exists and is public', rc=2)
    refused(publish(hub_client, folder, '--repo-id', REPO, token=OTHER), '(403')
    assert len(hub.repos[REPO].history) == 2


@pytest.mark.parametrize(('words', 'spoil', 'sentence'), [
    (['--repo-id', 'resnet20'], None, "'resnet20' does not name a repository: it takes OWNER/NAME"),
    (['--repo-id', 'a/b c'], None, "'a/b c' does not name a repository"),
    ([], None, '--repo-id OWNER/NAME says where to publish'),
    (['--repo-id', REPO, '--create-pr', '--revision', 'v2'], None, 'a pull request is made against main'),
    (['--repo-id', REPO, '--create-pr'], None, 'does not exist, so a pull request has nothing to change'),
    (['--repo-id', REPO], lambda f: (f / 'config.json').unlink(), 'is not a folder of weights: it has no config.json'),
    (['--repo-id', REPO], lambda f: (f / 'model.safetensors').unlink(), 'has no model.safetensors'),
    (['--repo-id', REPO], lambda f: (f / 'model.safetensors').write_bytes(
        (f / 'model.safetensors').read_bytes()[:-1] + b'!'), 'was altered: its SHA-256 is'),
    (['--repo-id', REPO], lambda f: (f / 'trainable' / 'model.safetensors').write_bytes(b'short'),
     'trainable/model.safetensors is truncated or damaged'),
    (['--repo-id', REPO, '--license', 'mit'], lambda f: (f / 'README.md').write_text('# Mine'),
     'is published as it stands, so --license and --plain have no place to go'),
])
def test_what_cannot_work_is_said_before_anything_is_sent(hub, hub_client, folder, words, spoil, sentence):
    if spoil:
        spoil(folder)
    refused(publish(hub_client, folder, *words), sentence, rc=2)
    assert not hub.repos
    assert not hub.requests('POST')


def test_a_new_branch_keeps_nothing_of_other_weights(hub, hub_client, folder, tmp_path):
    assert publish(hub_client, folder, '--repo-id', REPO).rc == 0
    held = hub.repos[REPO]
    other = make_folder(tmp_path / 'other', trainable=False, seed=1)
    assert publish(hub_client, other, '--repo-id', REPO, '--revision', 'v2').rc == 0
    assert sorted(hub.files(REPO, 'v2')) == ['README.md', 'config.json', 'model.safetensors']
    assert sorted(hub.files(REPO)) == PUBLISHED
    assert held is hub.repos[REPO]


def test_what_may_have_been_changed_is_not_denied(hub, hub_client, folder, tmp_path):
    assert publish(hub_client, folder, '--repo-id', REPO).rc == 0
    before = hub.files(REPO)
    hub.fail('POST', '/commit/', how='spoil')
    other = make_folder(tmp_path / 'other', seed=1)
    ran = publish(hub_client, other, '--repo-id', REPO, '--overwrite')
    refused(ran, 'does not have what was uploaded', f'see what is there at {hub.url}/{REPO}', rc=1)
    assert 'nothing was changed' not in ran.err
    assert hub.files(REPO) != before


def test_a_token_with_a_line_end(hub, hub_client, folder):
    call = f'import timm_asr\ntimm_asr.push_to_hub({str(folder)!r}, {REPO!r}, token=TOKEN)'
    ran = hub_client.run(call.replace('TOKEN', repr(WRITE + '\n')))
    assert ran.rc == 0, ran.err
    ran = hub_client.run(call.replace('TOKEN', repr('a secret\nor two')))
    assert 'secret' not in ran.err.splitlines()[-1], ran.err


def test_a_licence_that_the_hub_does_not_know(hub, hub_client, folder):
    refused(publish(hub_client, folder, '--repo-id', REPO, '--license', 'no-such-licence'),
            'Invalid metadata in README.md: "license" must be one of', 'was removed again', rc=2)
    assert not hub.repos


def test_a_card_of_ones_own_is_published_as_it_stands(hub, hub_client, folder):
    (folder / 'README.md').write_text('# By hand\n')
    assert publish(hub_client, folder, '--repo-id', REPO).rc == 0
    assert hub.files(REPO)['README.md'] == b'# By hand\n'


def test_bars_are_for_terminals(hub, hub_client, folder):
    terminal = 'import io, sys\nclass Terminal(io.StringIO):\n    isatty = lambda self: True\n' \
               'sys.stderr = terminal = Terminal()\nimport atexit'
    code = f'''{terminal}
import timm_asr
timm_asr.push_to_hub({str(folder)!r}, {REPO!r}, token={WRITE!r}, progress=PROGRESS)
result = terminal.getvalue()
'''
    shown = hub_client.run(code.replace('PROGRESS', 'True'))
    assert 'model.safetensors: 100%' in shown.result, shown
    hub.reset()
    assert hub_client.run(code.replace('PROGRESS', 'False')).result == ''


@pytest.mark.slow
def test_no_network(hub, folder, tmp_path):
    client = Client(hub, tmp_path / 'home', env={'HF_ENDPOINT': 'http://127.0.0.1:9'})
    refused(publish(client, folder, '--repo-id', REPO), 'http://127.0.0.1:9 cannot be reached', rc=1)
    client.close()
