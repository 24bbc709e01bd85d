"""Recipes: YAML files of options that come with the package, found by name from anywhere."""

from pathlib import Path

from ..errors import BadInput, nearest

FOLDER = Path(__file__).resolve().parent.parent / 'recipes'


def list_recipes() -> list[str]:
    """Names of the recipes, without ``.yaml``."""
    return sorted(path.stem for path in FOLDER.glob('*.yaml'))


def find_recipe(name: str) -> Path:
    """The file that ``--config`` names: an existing file, or a recipe as ``digits`` or ``recipes/digits.yaml``.

    Raises:
        BadInput: If there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    bundled = FOLDER / f'{path.name.removesuffix(".yaml")}.yaml'
    if bundled.is_file() and (path.parent == Path('.') or path.parent.name == 'recipes'):
        return bundled
    near = nearest(path.stem, list_recipes())
    hint = f', and no such recipe; the nearest is {near[0]!r}' if near else ''
    raise BadInput(f'--config {name}: no such file{hint}')
