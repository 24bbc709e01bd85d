"""Markdown pages as the tests read them: fenced blocks, links, and what comments say about a block.

A comment tells the tests how to run a page, and no reader sees it:

* ``<!-- test: setup`` code ``-->`` runs code that the page takes for granted (``loader = ...``).
* ``<!-- test: skip: REASON -->`` leaves out the next Python block: it needs ImageNet, a GPU, the Hub.
* ``<!-- test: process -->`` runs the next block in a process of its own, which has not imported this package.
* ``<!-- test: needs PACKAGE -->`` skips the rest of the page where an optional package is not installed.
* ``<!-- test: output -->`` compares the next ``text`` block with what the Python before it printed; numbers may differ.
* ``<!-- test: slow -->`` marks a page that takes more than ten seconds.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(str(page.relative_to(ROOT)) for page in [
    *ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md'), *(ROOT / 'results').glob('*.md'),
    *(ROOT / 'examples').rglob('*.md'), *(ROOT / 'timm_asr').rglob('*.md')])
_FENCE = r'^(?P<indent> *)(?P<fence>`{3,})(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *(?P=fence)$'
_PARTS = re.compile(rf'^<!-- test: (?P<comment>.*?)-->|{_FENCE}', re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Part:
    """A fenced block (kind ``python``, ``sh``, ``text``, ...) or a comment for the tests (kind ``test``)."""

    kind: str
    text: str
    line: int


def parts(page: str) -> list[Part]:
    """The blocks and test comments of a page, from top to bottom."""
    text = (ROOT / page).read_text(encoding='utf-8')
    found = []
    for match in _PARTS.finditer(text):
        line = text.count('\n', 0, match.start()) + 1
        if match['comment'] is not None:
            found.append(Part('test', match['comment'].strip(), line))
        else:
            code = re.sub(f'^{match["indent"]}', '', match['code'], flags=re.MULTILINE)
            found.append(Part(match['language'], code, line))
    return found


def commands(page: str) -> list[str]:
    """The command lines in ``sh`` and ``bash`` blocks, continued lines joined and comments removed."""
    text = '\n'.join(part.text for part in parts(page) if part.kind in ('sh', 'bash'))
    lines = re.sub(r'(^|\s)#.*', r'\1', text.replace('\\\n', ' '), flags=re.MULTILINE).splitlines()
    return [line.strip() for line in lines if line.strip()]


def _without_code(page: str) -> str:
    return re.sub(_FENCE, '', (ROOT / page).read_text(encoding='utf-8'), flags=re.DOTALL | re.MULTILINE)


def links(page: str) -> list[str]:
    """Targets of links and pictures that do not lead to another site."""
    text = re.sub(r'`[^`\n]*`', '', _without_code(page))
    return [link for link in re.findall(r'\]\(<?([^)\s>]+)', text) + re.findall(r'(?:src|href)="([^"]+)"', text)
            if not re.match(r'[a-z]+:', link)]


def anchors(page: str) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r'^#+ +(.*?) *$', _without_code(page), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}
