"""The order of the rooms: what each file imports, read from its source, lazy imports included."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'timm_asr'
# A room imports from its own row and from rows above it. Rooms in one row do not import each other in a circle.
ORDER = [
    {'errors', 'version', '_requirements', 'gates'}, {'asr'}, {'inference'}, {'models'},
    {'freeze', 'checkpoints', 'analysis', 'data'}, {'figures', 'export', 'detection'}, {'engine', 'experiment'},
    {'engine.commands'}, {'__init__', '__main__'}]


def name_of(file: Path) -> str:
    """`gates/se.py` is `gates.se`; a folder's `__init__.py` has the name of the folder."""
    parts = file.relative_to(PACKAGE).with_suffix('').parts
    return '.'.join(parts[:-1]) if parts[-1] == '__init__' and len(parts) > 1 else '.'.join(parts)


def targets(node: ast.AST, package: list[str]) -> list[str]:
    """Dotted names below `timm_asr` that an import statement mentions."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level:
        base = ['timm_asr', *package[:len(package) - node.level + 1], *(node.module or '').split('.')]
        names = ['.'.join([*filter(None, base), alias.name]) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [f'{node.module}.{alias.name}' for alias in node.names]
    else:
        return []
    return [name.removeprefix('timm_asr').lstrip('.') for name in names if name.split('.')[0] == 'timm_asr']


def import_graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """The files that each file imports; what is no file is a name that the file or folder before it defines."""
    graph = {}
    for name, file in files.items():
        package = name.split('.') if file.name == '__init__.py' else name.split('.')[:-1]
        package = [] if name == '__init__' else package
        graph[name] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            for target in targets(node, package):
                while target and target not in files:
                    target = target.rpartition('.')[0]
                graph[name].add(target or '__init__')
        graph[name].discard(name)
    return graph


def room(name: str) -> str:
    return 'engine.commands' if name.startswith('engine.commands') else name.split('.')[0]


def rank(name: str) -> int:
    return next(i for i, row in enumerate(ORDER) if room(name) in row)


FILES = {name_of(file): file for file in sorted(PACKAGE.rglob('*.py'))}
GRAPH = import_graph(FILES)


def test_imports_are_read_as_python_reads_them(tmp_path):
    source = tmp_path / 'a.py'
    source.write_text('from ..gates.se import SE\nfrom . import b\nimport torch\n'
                      'def f():\n    from timm_asr import errors\n')
    files = {'asr.a': source, 'asr.b': source, 'asr': source, 'gates.se': source, 'errors': source}
    assert import_graph(files)['asr.a'] == {'gates.se', 'asr.b', 'errors'}
    assert GRAPH['__init__'] > {'asr.attach', 'version'}
    assert 'gates.bottleneck' in GRAPH['gates.se']


def test_every_file_stands_in_a_room():
    assert {room(name) for name in FILES} <= set().union(*ORDER)


def test_no_room_imports_from_one_above_it():
    upward = [f'{a} imports {b}' for a in GRAPH for b in GRAPH[a] if rank(b) > rank(a)]
    assert sorted(upward) == []


@pytest.mark.parametrize('graph', [GRAPH, {
    room(a): {room(b) for a2 in GRAPH if room(a2) == room(a) for b in GRAPH[a2]} - {room(a)} for a in GRAPH}],
    ids=['files', 'rooms'])
def test_no_circle(graph):
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_no_file_of_more_than_350_lines():
    files = [*PACKAGE.rglob('*.py'), *(ROOT / 'tests').rglob('*.py'), *(ROOT / 'results').glob('*.py'),
             *(ROOT / 'examples').rglob('*.py'), *ROOT.glob('*.py')]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert {name: lines for name, lines in lengths.items() if lines > 350} == {}
