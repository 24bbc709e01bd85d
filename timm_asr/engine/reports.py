"""Result rows as CSV, JSON or a Markdown table."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BadInput

Row = Mapping[str, Any]


def as_markdown(rows: Sequence[Row]) -> str:
    """A table whose numbers are aligned to the right; an empty string for no rows."""
    if not rows:
        return ''
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[str(row.get(key, '')).replace('|', '\\|') for key in columns] for row in rows]
    widths = [max([len(key), 3, *(len(line[i]) for line in cells)]) for i, key in enumerate(columns)]
    numbers = [all(isinstance(row.get(key, 0), int | float) for row in rows) for key in columns]

    def line(values: Sequence[str]) -> str:
        padded = [value.rjust(w) if n else value.ljust(w) for value, w, n in zip(values, widths, numbers, strict=True)]
        return f'| {" | ".join(padded)} |'

    rule = ['-' * (w - 1) + ':' if n else '-' * w for w, n in zip(widths, numbers, strict=True)]
    return '\n'.join([line(columns), line(rule), *map(line, cells)]) + '\n'


def check_results_file(path: str) -> None:
    """Fail before the measurement, not after it, if the results could not be written."""
    if path and Path(path).is_dir():
        raise BadInput(f'--results-file {path} is a folder')
    if path and not Path(path).absolute().parent.is_dir():
        raise BadInput(f'--results-file {path}: there is no folder {Path(path).absolute().parent}')
    if path and not os.access(path if Path(path).exists() else Path(path).absolute().parent, os.W_OK):
        raise BadInput(f'--results-file {path}: no permission to write there')


def write_results(path: str | Path, results: Row | Sequence[Row], format: str = 'csv') -> None:
    """Write one row or several as ``csv``, ``json`` (which keeps that difference, as timm's scripts do) or ``md``."""
    rows = [results] if isinstance(results, Mapping) else list(results)
    with Path(path).open('w', encoding='utf-8', newline='') as file:
        if format == 'json':
            json.dump(results, file, indent=4)
            file.write('\n')
        elif format == 'md':
            file.write(as_markdown(rows))
        elif rows:
            writer = csv.DictWriter(file, dict.fromkeys(key for row in rows for key in row), lineterminator='\n')
            writer.writeheader()
            writer.writerows(rows)
