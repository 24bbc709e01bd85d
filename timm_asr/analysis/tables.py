"""Rows of results as text, as the commands print them."""

from collections.abc import Sequence
from typing import Any


def text_table(rows: Sequence[dict[str, Any]]) -> str:
    """Columns under the keys of the first row; numbers are to the right, with four digits after the point."""
    head = list(rows[0])
    numeric = [all(isinstance(row[key], int | float | None) for row in rows) for key in head]
    cells = [head, *([f'{value:.4f}' if isinstance(value, float) else '' if value is None else str(value)
                      for value in map(row.__getitem__, head)] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = ['  '.join(
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(line, widths, numeric, strict=True)).rstrip() for line in cells]
    return '\n'.join([lines[0], '-' * max(map(len, lines)), *lines[1:]])
