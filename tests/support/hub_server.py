"""A small Hub on loopback: enough of the Hugging Face Hub's HTTP interface for its real client, and it fails on demand.

Repositories live in memory as lists of commits. Large files go by LFS, and are fetched through a redirect to a second
host name that must not see a token, as on the Hub.
"""

import re
import threading
from http.server import ThreadingHTTPServer

from hub_handler import ATTRIBUTES, Handler, Repo

WRITE, READ, OTHER = 'hf_testwritetoken', 'hf_testreadtoken', 'hf_testothertoken'


class Hub(ThreadingHTTPServer):
    """The server; ``with`` starts and stops it.

    ``repos``, ``log`` (method and path of every request) and ``fail`` are for tests.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.port = self.server_address[1]
        self.url = f'http://127.0.0.1:{self.port}'
        self.tokens = {WRITE: ('alice', 'write'), READ: ('alice', 'read'), OTHER: ('bob', 'write')}
        self.lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[tuple[str, str, int, str]] = []
        self.log: list[tuple[str, str]] = []

    def __enter__(self) -> 'Hub':
        threading.Thread(target=self.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that went away is nothing to report."""

    def fail(self, method: str, path: str, status: int = 0, how: str = '') -> None:
        """Let requests of ``method`` whose path has ``path`` (a regular expression) in it go wrong.

        They are answered by ``status``, or ``how`` is 'cut' (the connection breaks in the body), 'alter' (a byte of the
        answer is another) or 'meanwhile' (somebody else commits).
        """
        self.faults.append((method, path, status, how))

    def create(self, repo_id: str, files: dict[str, bytes] | None = None, private: bool = False) -> Repo:
        repo = self.repos[repo_id] = Repo(repo_id.split('/')[0], private)
        repo.commit('main', {'.gitattributes': ATTRIBUTES}, 'initial commit')
        if files:
            repo.commit('main', {**repo.tree(), **files}, 'files')
        return repo

    def files(self, repo_id: str, revision: str = 'main') -> dict[str, bytes]:
        return {path: content for path, content in self.repos[repo_id].tree(revision).items()
                if path != '.gitattributes'}

    def requests(self, method: str, path: str = '') -> list[str]:
        return [seen for verb, seen in self.log if verb == method and re.search(path, seen)]
