"""What the Hub on loopback remembers: repositories."""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

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
