"""What the small Hub on loopback remembers, and its answers: one method a kind of request."""

import base64
import hashlib
import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = ('.safetensors', '.bin', '.pt', '.pth')
ATTRIBUTES = b'*.safetensors filter=lfs diff=lfs merge=lfs -text\n'


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


def is_large(path: str, content: bytes) -> bool:
    return path.endswith(LARGE) or b'\0' in content[:512]


def front_matter(readme: bytes) -> dict[str, Any]:
    match = re.match(r'---\n(.*?)\n---\n', readme.decode(), re.DOTALL)
    return yaml.safe_load(match[1]) or {} if match else {}


@dataclass
class Repo:
    """A model repository: commits by id, each a whole tree, and refs that name them."""

    owner: str
    private: bool = False
    trees: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    history: list[tuple[str, str]] = field(default_factory=list)  # (ref, title) of every commit

    def commit(self, ref: str, tree: dict[str, bytes], title: str) -> str:
        named = sorted((path, git_hash(content)) for path, content in tree.items())
        oid = hashlib.sha1(f'{ref} {title} {len(self.trees)} {named}'.encode()).hexdigest()
        self.trees[oid], self.refs[ref] = tree, oid
        self.history.append((ref, title))
        return oid

    def tree(self, revision: str = 'main') -> dict[str, bytes]:
        return self.trees[self.refs.get(revision, revision)]


class _Refused(Exception):  # noqa: N818 - an answer, not an error of the server
    def __init__(self, status: int, message: str, code: str = '', **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


class Handler(BaseHTTPRequestHandler):
    """Answers requests from the state of the server it belongs to."""

    protocol_version = 'HTTP/1.1'
    server: Any  # the Hub

    def log_message(self, *_: object) -> None:
        """Tests read ``Hub.log``."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        path = parts.path
        with self.server.lock:
            self.server.log.append((self.command, unquote(path)))
            status, self.how = next(((status, how) for method, pattern, status, how in self.server.faults
                                     if method == self.command and re.search(pattern, path)), (0, ''))
        if self.how == 'cut':
            if self.command in ('POST', 'PUT'):
                self.rfile.read1(1024)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.body = self._read_body()
        try:
            if status:
                raise _Refused(status, f'failing on demand with {status}')
            with self.server.lock:
                handler, arguments = self._route(path)
                handler(*map(unquote, arguments))
        except _Refused as refused:
            headers = {'X-Error-Message': refused.message}
            if refused.code:
                headers['X-Error-Code'] = refused.code
            self._send(refused.status, json.dumps({'error': refused.message, **refused.body}).encode(), headers)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _read_body(self) -> bytes:
        if self.headers.get('Transfer-Encoding') == 'chunked':
            body = b''
            while size := int(self.rfile.readline().split(b';')[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get('Content-Length') or 0))

    def _send(self, status: int, body: bytes = b'', headers: dict[str, str] | None = None) -> None:
        if self.how == 'alter' and self.command == 'GET':
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(status)
        for name, value in {'Content-Type': 'application/json', 'Content-Length': str(len(body)),
                            **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == 'HEAD':
            return
        self.wfile.write(body)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode())

    # Who asks

    def _user(self, required: bool = False) -> tuple[str, str]:
        token = self.headers.get('Authorization', '').removeprefix('Bearer ')
        if not token:
            if required:
                raise _Refused(401, 'Invalid username or password.')
            return '', ''
        if token not in self.server.tokens:
            raise _Refused(401, 'Invalid credentials in Authorization header')
        return self.server.tokens[token]

    def _repo(self, repo_id: str) -> Repo:
        user, _ = self._user()
        repo = self.server.repos.get(repo_id)
        if repo is None or (repo.private and user != repo.owner):
            raise _Refused(404 if user else 401, 'Repository not found', 'RepoNotFound')
        return repo

    def _may_write(self, owner: str, what: str) -> None:
        user, role = self._user(required=True)
        if role != 'write' or user != owner:
            raise _Refused(403, f"You don't have the rights to {what} under the namespace \"{owner}\"")

    def _tree(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        oid = repo.refs.get(revision, revision)
        if oid not in repo.trees:
            raise _Refused(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return oid, repo.trees[oid]

    # What is asked

    def _route(self, path: str) -> tuple[Callable[..., None], tuple[str, ...]]:
        model = r'/api/models/([^/]+/[^/]+)'
        for method, pattern, handler in (('POST', r'/api/repos/create', self._create),
                                         ('POST', r'/api/validate-yaml', self._validate),
                                         ('GET', r'/api/models', self._list), ('GET', model, self._info),
                                         ('GET', model + r'/revision/(.+)', self._info),
                                         ('POST', model + r'/preupload/([^/]+)', self._preupload),
                                         ('POST', model + r'/commit/([^/]+)', self._commit),
                                         ('POST', r'/([^/]+/[^/]+)\.git/info/lfs/objects/batch', self._batch),
                                         ('PUT', r'/lfs/([0-9a-f]+)', self._put),
                                         ('GET', r'/([^/]+/[^/]+)/resolve/([^/]+)/(.+)', self._resolve),
                                         ('GET', r'/cdn/([0-9a-f]+)', self._cdn)):
            match = re.fullmatch(pattern, path)
            if match and method == self.command.replace('HEAD', 'GET'):
                return handler, match.groups()
        raise _Refused(404, f'no such endpoint: {self.command} {path}')

    def _create(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get('organization') or self._user(required=True)[0]
        self._may_write(owner, 'create a model')
        repo_id = f'{owner}/{asked["name"]}'
        url = f'{self.server.url}/{repo_id}'
        if repo_id in self.server.repos:
            raise _Refused(409, 'You already created this model repo', url=url)
        self.server.create(repo_id, private=asked.get('visibility') == 'private' or bool(asked.get('private')))
        self._json({'url': url, 'name': repo_id})

    def _validate(self) -> None:
        self._json({'errors': [], 'warnings': []})

    def _describe(self, repo_id: str, repo: Repo, oid: str, blobs: bool) -> dict[str, Any]:
        tree = repo.trees[oid]
        matter = front_matter(tree.get('README.md', b''))
        siblings = []
        for path, content in sorted(tree.items()):
            entry: dict[str, Any] = {'rfilename': path}
            if blobs:
                entry |= {'size': len(content), 'blobId': git_hash(content)}
                if is_large(path, content):
                    digest = hashlib.sha256(content).hexdigest()
                    entry |= {'blobId': git_hash(digest.encode()),
                              'lfs': {'sha256': digest, 'size': len(content), 'pointerSize': 130}}
            siblings.append(entry)
        return {'id': repo_id, 'modelId': repo_id, 'author': repo.owner, 'sha': oid, 'private': repo.private,
                'tags': matter.get('tags', []), 'library_name': matter.get('library_name'), 'cardData': matter,
                'siblings': siblings}

    def _list(self) -> None:
        user, _ = self._user()
        author = self.query.get('author', [''])[0]
        found = [self._describe(repo_id, repo, repo.refs['main'], False)
                 for repo_id, repo in self.server.repos.items()
                 if repo.owner == author and (not repo.private or user == repo.owner)]
        self._json([one for one in found if set(self.query.get('filter', [])) <= set(one['tags'])])

    def _info(self, repo_id: str, revision: str = 'main') -> None:
        repo = self._repo(repo_id)
        oid, _ = self._tree(repo, revision)
        self._json(self._describe(repo_id, repo, oid, 'blobs' in self.query))

    def _preupload(self, repo_id: str, revision: str) -> None:
        repo = self._repo(repo_id)
        self._may_write(repo.owner, 'write')
        _, tree = self._tree(repo, revision)
        answer = []
        for file in json.loads(self.body)['files']:
            large = is_large(file['path'], base64.b64decode(file['sample']))
            old = tree.get(file['path'])
            oid = None if old is None else hashlib.sha256(old).hexdigest() if large else git_hash(old)
            answer.append({'path': file['path'], 'uploadMode': 'lfs' if large else 'regular', 'shouldIgnore': False,
                           'oid': oid})
        if self.how == 'meanwhile':
            repo.commit(revision, {**tree, 'other.txt': b'other'}, 'by somebody else')
        self._json({'files': answer})

    def _batch(self, repo_id: str) -> None:
        self._repo(repo_id)
        self._user(required=True)
        objects = []
        for one in json.loads(self.body)['objects']:
            entry = {'oid': one['oid'], 'size': one['size']}
            if one['oid'] not in self.server.large:
                entry['actions'] = {'upload': {'href': f'{self.server.url}/lfs/{one["oid"]}', 'header': {}}}
            objects.append(entry)
        self._json({'transfer': 'basic', 'objects': objects})

    def _put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, 'the content does not have this hash')
        self.server.large[oid] = self.body
        self._send(200)

    def _commit(self, repo_id: str, revision: str) -> None:
        repo = self._repo(repo_id)
        self._may_write(repo.owner, 'write')
        parent, tree = self._tree(repo, revision)
        tree, title = dict(tree), ''
        for line in self.body.splitlines():
            key, value = (item := json.loads(line))['key'], item['value']
            if key == 'header':
                title = value['summary']
                if value.get('parentCommit', parent) != parent:
                    raise _Refused(412, 'A commit has happened since')
            elif key == 'file':
                tree[value['path']] = base64.b64decode(value['content'])
            elif key == 'lfsFile':
                if value['oid'] not in self.server.large:
                    raise _Refused(400, f'LFS object {value["oid"]} is not there')
                tree[value['path']] = self.server.large[value['oid']]
        oid = repo.commit(revision, tree, title)
        self._json({'success': True, 'hookOutput': '', 'commitOid': oid,
                    'commitUrl': f'{self.server.url}/{repo_id}/commit/{oid}'})

    def _resolve(self, repo_id: str, revision: str, path: str) -> None:
        oid, tree = self._tree(self._repo(repo_id), revision)
        if path not in tree:
            self._send(404, b'', {'X-Error-Code': 'EntryNotFound', 'X-Error-Message': 'Entry not found',
                                  'X-Repo-Commit': oid})
            return
        content = tree[path]
        headers = {'X-Repo-Commit': oid, 'ETag': f'"{git_hash(content)}"', 'Accept-Ranges': 'bytes'}
        if not is_large(path, content):
            self._send(200, content, headers)
            return
        digest = hashlib.sha256(content).hexdigest()
        self.server.large[digest] = content
        self._send(302, b'', {'X-Repo-Commit': oid, 'X-Linked-ETag': f'"{digest}"', 'X-Linked-Size': str(len(content)),
                              'Location': f'http://localhost:{self.server.port}/cdn/{digest}'})

    def _cdn(self, digest: str) -> None:
        self._send(200, self.server.large[digest], {'ETag': f'"{digest}"'})
