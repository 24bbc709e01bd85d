"""What the scripts share that measure: their settings, their rows by section, and what the machine is."""

import argparse
import csv
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from timm_asr.engine.reports import as_markdown, write_results
from timm_asr.engine.versus import Spread

#: glibc keeps memory instead of handing it back to the kernel, where every large feature map would be paid for in page
#: faults, and threads are pinned.
SETTINGS = {
    'MALLOC_MMAP_MAX_': '0',
    'MALLOC_TRIM_THRESHOLD_': '100000000000',
    'MALLOC_ARENA_MAX': '1',
    'GOMP_CPU_AFFINITY': '0-1',
    'OMP_NUM_THREADS': '2',
}
SETTINGS_TEXT = ' '.join(f'{key}={value}' for key, value in SETTINGS.items())


def restart() -> None:
    """Start the script anew where the settings were not in place before PyTorch was loaded."""
    if any(os.environ.get(key) != value for key, value in SETTINGS.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | SETTINGS)


def machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.is_file():
        model = next((line.split(':')[1].strip() for line in cpuinfo.read_text().splitlines()
                      if line.startswith('model name')), model)
    count = torch.get_num_threads()
    return f'{model}, {count} thread{"s" * (count > 1)}'


def section_parser(doc: str, sections: Iterable[str]) -> argparse.ArgumentParser:
    """The command line of a script that takes names of its sections."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    # Without a name argparse looks for an empty list among the choices.
    parser.add_argument('sections', nargs='*', metavar='SECTION', choices=[[], *sections], help=', '.join(sections))
    return parser


def read(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.open())) if table.is_file() else []


def update(table: Path, section: str, fresh: Iterable[dict[str, Any]], order: Iterable[str],
           markdown: Callable[[list[dict[str, str]]], str]) -> None:
    """Replace the rows of a section in a CSV, which has its sections in this order, and write the page beside it."""
    rows: list[dict[str, Any]] = [row for row in read(table) if row['section'] != section]
    rows += [{'section': section, **row} for row in fresh]
    write_results(table, sorted(rows, key=lambda row: list(order).index(row['section'])))
    table.with_suffix('.md').write_text(markdown(read(table)))


def columns(rows: Iterable[dict[str, str]], keys: Sequence[str]) -> str:
    """Some columns of a CSV's rows as a table."""
    return as_markdown([{key: number(row[key]) for key in keys} for row in rows])


def quartiles(over: Spread, median: str = 'over_plain', digits: int = 3) -> dict[str, float]:
    return {median: round(over.median, digits), 'q1': round(over.q1, digits), 'q3': round(over.q3, digits)}


def number(text: Any) -> Any:
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        return text
