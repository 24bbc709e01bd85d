"""A small Hub on loopback: as much of the Hugging Face Hub's HTTP interface as its real client asks for here.

It runs in the process of the tests. Imported before huggingface_hub, it takes the place of the real one, which no test
reaches. Repositories live in memory as lists of commits.
"""

import base64
import hashlib
import json
import os
import re
import socket
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

WRITE, READ, OTHER = 'hf_testwritetoken', 'hf_testreadtoken', 'hf_testothertoken'
USERS = {WRITE: ('alice', 'write'), READ: ('alice', 'read'), OTHER: ('bob', 'write')}


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


class Repo:
    """Commits, each a title and a whole tree; ``tags`` name them."""

    def __init__(self, owner: str, private: bool = False) -> None:
        self.owner, self.private, self.tags = owner, private, {}
        self.commits: dict[str, tuple[str, dict[str, bytes]]] = {}
        self.commit('initial commit', {'.gitattributes': b''})

    def commit(self, title: str, tree: dict[str, bytes]) -> None:
        named = sorted((path, git_hash(content)) for path, content in tree.items())
        self.head = hashlib.sha1(f'{title} {len(self.commits)} {named}'.encode()).hexdigest()
        self.commits[self.head] = title, tree

    @property
    def tree(self) -> dict[str, bytes]:
        return self.commits[self.head][1]


class Hub(ThreadingHTTPServer):
    """The server. ``log`` has the method and path of every request.

    ``faults`` says by a pattern of these what goes wrong: a status that is answered, a function that is called before
    the answer, or 'cut' for a connection that breaks.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server_address[1]}'
        self.reset()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def reset(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: dict[str, int | str | Callable[[], None]] = {}
        self.log: list[str] = []

    def handle_error(self, *_: object) -> None:
        """A client that went away is nothing to report."""

    def create(self, repo_id: str, files: dict[str, bytes] | None = None, private: bool = False) -> Repo:
        repo = self.repos[repo_id] = Repo(repo_id.split('/')[0], private)
        if files:
            repo.commit('files', {**repo.tree, **files})
        return repo

    def files(self, repo_id: str) -> dict[str, bytes]:
        return {path: content for path, content in self.repos[repo_id].tree.items() if path != '.gitattributes'}


class _Refused(Exception):  # noqa: N818 - an answer, not an error of the server
    def __init__(self, status: int, message: str, code: str = '', **body: Any) -> None:
        super().__init__(message)
        self.status, self.body = status, {'error': message, **body}
        self.headers = {'X-Error-Message': message, **({'X-Error-Code': code} if code else {})}


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    server: Hub

    def log_message(self, *_: object) -> None:
        """Tests read ``Hub.log``."""

    def do_GET(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._read_body()
        self.server.log.append(f'{self.command} {path}')
        fault = next((fault for pattern, fault in self.server.faults.items()
                      if re.search(pattern, self.server.log[-1])), None)
        if fault == 'cut':
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        status, headers = 200, {'Content-Type': 'application/json'}
        try:
            if callable(fault):
                fault()
            elif fault:
                raise _Refused(fault, f'failing on demand with {fault}')
            answer = self._route(path, body)
        except _Refused as refused:
            status, answer, headers = refused.status, refused.body, refused.headers
        if isinstance(answer, tuple):
            headers, answer = answer
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {'Content-Length': str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(content)

    do_HEAD = do_POST = do_GET  # noqa: N815

    def _read_body(self) -> bytes:
        if self.headers.get('Transfer-Encoding') != 'chunked':
            return self.rfile.read(int(self.headers.get('Content-Length') or 0))
        body = b''
        while size := int(self.rfile.readline().split(b';')[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _route(self, path: str, body: bytes) -> Any:
        model = r'/api/models/([^/]+/[^/]+)'
        for pattern, answer in ((r'/api/repos/create', self._create), (r'/api/validate-yaml', lambda _: {}),
                                (r'/api/models', self._list), (model + r'(?:/revision/main)?', self._info),
                                (model + r'/preupload/main', self._preupload), (model + r'/commit/main', self._commit),
                                (r'/([^/]+/[^/]+)/resolve/([^/]+)/(.+)', self._file)):
            if match := re.fullmatch(pattern, path):
                return answer(body, *match.groups())
        raise _Refused(404, f'no such endpoint: {path}')

    def _user(self) -> tuple[str, str]:
        token = self.headers.get('Authorization', '').removeprefix('Bearer ')
        if token and token not in USERS:
            raise _Refused(401, 'Invalid credentials in Authorization header')
        return USERS.get(token, ('', ''))

    def _repo(self, repo_id: str) -> Repo:
        user, repo = self._user()[0], self.server.repos.get(repo_id)
        if repo is None or (repo.private and user != repo.owner):
            raise _Refused(404 if user else 401, 'Repository not found', 'RepoNotFound')
        return repo

    def _check_rights(self, owner: str) -> None:
        if self._user() != (owner, 'write'):
            raise _Refused(403, f"You don't have the rights to write under the namespace \"{owner}\"")

    def _create(self, body: bytes) -> Any:
        asked = json.loads(body)
        owner = asked.get('organization') or self._user()[0]
        self._check_rights(owner)
        repo_id, url = f'{owner}/{asked["name"]}', f'{self.server.url}/{owner}/{asked["name"]}'
        if repo_id in self.server.repos:
            raise _Refused(409, 'You already created this model repo', url=url)
        self.server.create(repo_id, private=asked.get('visibility') == 'private' or bool(asked.get('private')))
        return {'url': url, 'name': repo_id}

    def _info(self, _: bytes, repo_id: str) -> Any:
        """Safetensors are large files, of which the Hub says another hash."""
        repo, siblings = self._repo(repo_id), []
        for path, content in sorted(repo.tree.items()):
            large = {'sha256': hashlib.sha256(content).hexdigest(), 'size': len(content), 'pointerSize': 130}
            siblings.append({'rfilename': path, 'size': len(content), 'blobId': git_hash(content),
                             **({'lfs': large} if path.endswith('.safetensors') else {})})
        head = re.match(r'---\n(.*?)\n---\n', repo.tree.get('README.md', b'').decode(), re.DOTALL)
        return {'id': repo_id, 'sha': repo.head, 'private': repo.private, 'siblings': siblings,
                'tags': yaml.safe_load(head[1])['tags'] if head else []}

    def _list(self, _: bytes) -> Any:
        asked, user = parse_qs(urlsplit(self.path).query), self._user()[0]
        found = [self._info(b'', repo_id) for repo_id, repo in self.server.repos.items()
                 if repo.owner == asked['author'][0] and (not repo.private or user == repo.owner)]
        return [one for one in found if set(asked['filter']) <= set(one['tags'])]

    def _preupload(self, body: bytes, repo_id: str) -> Any:
        self._check_rights(self._repo(repo_id).owner)
        return {'files': [{'path': file['path'], 'uploadMode': 'regular', 'shouldIgnore': False}
                          for file in json.loads(body)['files']]}

    def _commit(self, body: bytes, repo_id: str) -> Any:
        repo = self._repo(repo_id)
        self._check_rights(repo.owner)
        header, *files = [json.loads(line) for line in body.splitlines()]
        assert all(file['key'] == 'file' for file in files), 'nothing is deleted'
        if header['value'].get('parentCommit') != repo.head:
            raise _Refused(412, 'A commit has happened since')
        new = {file['value']['path']: base64.b64decode(file['value']['content']) for file in files}
        repo.commit(header['value']['summary'], {**repo.tree, **new})
        return {'commitOid': repo.head, 'commitUrl': f'{self.server.url}/{repo_id}/commit/{repo.head}'}

    def _file(self, _: bytes, repo_id: str, revision: str, path: str) -> Any:
        repo = self._repo(repo_id)
        oid = {'main': repo.head, **repo.tags}.get(revision, revision)
        if oid not in repo.commits:
            raise _Refused(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        tree = repo.commits[oid][1]
        if path not in tree:
            raise _Refused(404, 'Entry not found', 'EntryNotFound')
        return {'X-Repo-Commit': oid, 'ETag': f'"{git_hash(tree[path])}"', 'Accept-Ranges': 'bytes'}, tree[path]


HUB, _HOME = Hub(), tempfile.TemporaryDirectory()
os.environ |= {
    'HF_ENDPOINT': HUB.url, 'HF_HOME': _HOME.name, 'HF_HUB_DISABLE_XET': '1', 'HF_HUB_DISABLE_TELEMETRY': '1',
    'HF_HUB_DISABLE_PROGRESS_BARS': '1', 'NO_PROXY': '127.0.0.1,localhost'}
