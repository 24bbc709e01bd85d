"""Processes that talk to the Hub on loopback: huggingface_hub reads its environment when it is imported."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub

_LOOP = '''
import contextlib, io, json, os, signal, sys, time, traceback, warnings
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by whatever a shell starts with &
warnings.simplefilter('ignore')
import timm
if sys.argv[1] == 'ours':
    import timm_asr
answers = os.dup(1)
os.dup2(2, 1)
for line in sys.stdin:
    task = json.loads(line)
    out, err, found, rc = io.StringIO(), io.StringIO(), {}, 0
    before = dict(os.environ)
    os.environ.update(task['env'])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            os.chdir(task['cwd'])
            exec(task['code'], found)
        except SystemExit as stop:
            rc = stop.code or 0
        except BaseException:
            traceback.print_exc()
            rc = 99
    os.environ.clear()
    os.environ.update(before)
    answer = {'out': out.getvalue(), 'err': err.getvalue(), 'rc': rc, 'result': found.get('result')}
    os.write(answers, (json.dumps(answer) + '\\n').encode())
'''


@dataclass
class Ran:
    """What a piece of code did: its exit status, what it printed, and its variable ``result``."""

    rc: int
    out: str
    err: str
    result: Any


class Client:
    """A process with timm (and this package, unless ``stock``) that runs code against a hub; it starts once."""

    def __init__(self, hub: Hub, home: Path, stock: bool = False) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        clean = {key: value for key, value in os.environ.items() if not key.startswith(('HF_', 'HUGGING'))}
        self.process = subprocess.Popen(
            [sys.executable, '-c', _LOOP, 'stock' if stock else 'ours'], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, cwd=home,
            env={**clean, 'HF_ENDPOINT': hub.url, 'HF_HUB_DISABLE_XET': '1', 'HF_HOME': str(home / 'hf'),
                 'HF_HUB_DISABLE_PROGRESS_BARS': '1', 'HF_HUB_DISABLE_TELEMETRY': '1',
                 'OMP_NUM_THREADS': '1', 'NO_PROXY': '127.0.0.1,localhost'})

    def run(self, code: str, cwd: Path | None = None, **env: str) -> Ran:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({'code': code, 'env': env, 'cwd': str(cwd or self.home)}) + '\n')
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], 300)[0]:
            self.process.kill()
            pytest.fail('the client does not end')
        return Ran(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope='session')
def _started_hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def hub(_started_hub: Hub) -> Hub:
    """The hub of this test process, empty."""
    _started_hub.reset()
    return _started_hub


@pytest.fixture(scope='session')
def hub_client(_started_hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A process with this package and the real huggingface_hub, which talks to the hub."""
    client = Client(_started_hub, tmp_path_factory.mktemp('client'))
    yield client
    client.close()


@pytest.fixture(scope='session')
def stock_client(_started_hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The same with timm alone: this package is never imported there."""
    client = Client(_started_hub, tmp_path_factory.mktemp('stock'), stock=True)
    yield client
    client.close()
