"""Recipes: YAML files of options that come with the package, found by name from anywhere."""

from pathlib import Path

from ..errors import BadInput, nearest

FOLDER = Path(__file__).resolve().parent.parent / 'recipes'


def list_recipes(command: str = 'train') -> list[str]:
    """Names of the recipes of ``train`` or ``detect``, without ``.yaml``."""
    return sorted(path.stem for path in (FOLDER if command == 'train' else FOLDER / command).glob('*.yaml'))


def find_recipe(name: str) -> Path:
    """The file that ``--config`` names: an existing file, or a recipe as ``digits`` or ``recipes/digits.yaml``; else
    ``BadInput``.
    """
    path = Path(name)
    if path.is_file():
        return path
    bundled = {file.stem: file for file in FOLDER.rglob('*.yaml')}
    stem = path.name.removesuffix('.yaml')
    if stem in bundled and path.parent.name in ('', 'recipes', 'detect'):
        return bundled[stem]
    near = nearest(path.stem, list(bundled))
    raise BadInput(f'--config {name}: no such file, and no such recipe; the nearest is {near[0]!r}')
