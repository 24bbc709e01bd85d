"""Build the documentation site into `site/`: ``python docs/build_site.py``; the extra `docs` has what it needs.

The pages are those that GitHub shows. They are copied to `build/pages` with everything they link to, so that
`docs/x.md` becomes `x.md` and `../results/y.md` becomes `results/y.md`. Then zensical builds them. A warning is an
error: a link or an anchor that leads nowhere, a name without a docstring.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / 'build' / 'pages'
# Code is matched first, and left as it is; then the target of a link or picture, without its anchor.
CODE_OR_LINK = re.compile(
    r'^ *(?P<fence>`{3,}).*?^ *(?P=fence)$|`[^`\n]*`|(?P<start>\]\(<?|(?:src|href)=")(?P<link>[^)#"\s>:]+)(?=[)#"\s>])',
    re.DOTALL | re.MULTILINE)


def place(file: Path) -> Path:
    """Where a file of the repository lies on the site; the README's place is that of the landing page."""
    inside = file.relative_to(ROOT)
    if str(inside) == 'README.md':
        return Path('index.md')
    return inside.relative_to('docs') if inside.parts[0] == 'docs' else inside


def copy_pages() -> None:
    """Copy each page of `docs/`, and what it links to, and what that links to."""
    shutil.rmtree(PAGES, ignore_errors=True)
    found = [*sorted((ROOT / 'docs').rglob('*.md')), ROOT / 'CONTRIBUTING.md']
    for file in found:  # grows while it is read
        target = PAGES / place(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix != '.md':
            shutil.copyfile(file, target)
            continue

        def moved(match: re.Match[str], file: Path = file) -> str:
            if not match['link']:
                return match[0]
            linked = (file.parent / match['link']).resolve()
            if not linked.is_file():
                sys.exit(f'{file.relative_to(ROOT)} links to {match["link"]}, which is no file.')
            if linked not in found and linked != ROOT / 'README.md':
                found.append(linked)
            return match['start'] + os.path.relpath(place(linked), place(file).parent)

        target.write_text(CODE_OR_LINK.sub(moved, file.read_text(encoding='utf-8')), encoding='utf-8')


if __name__ == '__main__':
    copy_pages()
    sys.exit(subprocess.run(['zensical', 'build', '--clean', '--strict'], cwd=ROOT).returncode)
