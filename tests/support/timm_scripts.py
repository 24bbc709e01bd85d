"""timm's own train.py, validate.py and benchmark.py, which neither its wheel nor its source distribution has.

    python tests/support/timm_scripts.py FOLDER      # puts the scripts of the installed version there

A test takes the fixture ``timm_scripts``: the folder ``TIMM_SCRIPTS``, else the archive of the version's tag, else
a skip that says what failed.
"""

import io
import os
import sys
import tarfile
import urllib.request
from pathlib import Path

import pytest
import timm

SCRIPTS = ('train.py', 'validate.py', 'benchmark.py')
ARCHIVE = 'https://github.com/huggingface/pytorch-image-models/archive/refs/tags/v{}.tar.gz'


def fetch(folder: Path) -> Path:
    """Download the archive of timm's tag, and take its scripts out.

    Raises:
        OSError: It cannot be reached, or has no such scripts.
    """
    with urllib.request.urlopen(ARCHIVE.format(timm.__version__), timeout=60) as answer:
        content = answer.read()
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive.getmembers():
            name = member.name.partition('/')[2]
            if name in SCRIPTS and member.isfile():
                (folder / name).write_bytes(archive.extractfile(member).read())  # type: ignore[union-attr]
    missing = [name for name in SCRIPTS if not (folder / name).is_file()]
    if missing:
        raise OSError(f'it has no {", ".join(missing)}')
    return folder


@pytest.fixture(scope='session')
def timm_scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with timm's scripts."""
    if os.environ.get('TIMM_SCRIPTS'):
        return Path(os.environ['TIMM_SCRIPTS'])
    try:
        return fetch(tmp_path_factory.mktemp('timm'))
    except (OSError, tarfile.TarError) as error:
        pytest.skip(f"NOT TESTED with timm's own scripts, which cannot be downloaded: {error}")


if __name__ == '__main__':
    print(fetch(Path(sys.argv[1])))
