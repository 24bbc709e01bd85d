"""What ``timm-asr curves`` and ``timm-asr scatter`` do: figures from the files that runs and benchmarks left."""

import csv
import importlib.util
import json
import shlex
import statistics
from argparse import Namespace
from collections.abc import Collection, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from ..checkpoints.names import ARGS, SUMMARY
from ..checkpoints.read import read_yaml
from ..errors import BadInput
from ..export.place import refuse_file
from ..figures.training import plot_curves, plot_speed
from .reports import write_results
from .summary import read_summary


def output_folder(args: Namespace) -> Path:
    """The folder of ``--output``, made if it is not there. ``BadInput``: it cannot be, or nothing could be drawn."""
    folder = Path(args.output)
    refuse_file(folder)
    if importlib.util.find_spec('matplotlib') is None:
        raise BadInput('figures need matplotlib: pip install matplotlib')
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f'--output {folder}: {error.strerror}') from None
    return folder


def caption_of(prog: str, words: Sequence[str]) -> str:
    """The command of a figure, as a user would type it."""
    return shlex.join(['timm-asr', prog.split()[-1], *words])


def unlike(label: str, taken: Collection[str]) -> str:
    """The label, numbered where it is taken: ``resnet20 (2)``."""
    return next(name for name in chain([label], (f'{label} ({n})' for n in count(2))) if name not in taken)


def write_tables(folder: Path, name: str, rows: list[dict[str, Any]], caption: str, **content: Any) -> None:
    """The rows as CSV, and the rest beside the command as JSON."""
    write_results(folder / f'{name}.csv', rows)
    write_results(folder / f'{name}.json', {'command': caption, **content}, 'json')


def _read_run(folder: Path) -> tuple[str, list[dict[str, str]]]:
    """Name of the model, with its ASR, and the rows of the summary."""
    if not (folder / SUMMARY).is_file():
        raise BadInput(f'no summary.csv in {folder}: name the folder of a run')
    rows = read_summary(folder / SUMMARY)
    try:
        told = read_yaml(folder / ARGS)
        name = f'{told["model"]}{"+asr-" + told["asr"] if told.get("asr") else ""}'
    except (BadInput, KeyError):
        name = folder.name
    if not rows:
        raise BadInput(f'{folder / "summary.csv"} has no epochs yet')
    return name, rows


def curves(args: Namespace, words: Sequence[str], prog: str) -> None:
    """Overlay runs: curves.png, curves.csv, curves.json."""
    if args.labels and len(args.labels) != len(args.runs):
        raise BadInput(f'{len(args.labels)} labels for {len(args.runs)} runs')
    runs: dict[str, Any] = {}
    for index, path in enumerate(args.runs):
        name, rows = _read_run(Path(path))
        runs[unlike(args.labels[index] if args.labels else name, runs)] = rows
    folder, caption = output_folder(args), caption_of(prog, words)
    write_tables(folder, 'curves', [{'run': label, **row} for label, rows in runs.items() for row in rows], caption,
                 runs=runs)
    plot_curves(runs, folder / 'curves.png', args.title, caption)
    print(f'written {folder / "curves.png"}')


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding='utf-8')
        rows = json.loads(text) if path.suffix == '.json' else list(csv.DictReader(text.splitlines()))
    except (OSError, ValueError) as error:
        raise BadInput(f'{path} cannot be read ({error})') from None
    rows = rows if isinstance(rows, list) else [rows]
    if not all(isinstance(row, dict) for row in rows):
        raise BadInput(f'{path} holds no rows of results')
    return rows


def scatter(args: Namespace, words: Sequence[str], prog: str) -> None:
    """Speed against accuracy: scatter.png, scatter.csv, scatter.json.

    Accuracy is that of the last epoch, or the mean of several runs. A form (``NAME+reparam``) has that of its model.
    """
    if not args.benchmark:
        raise BadInput('no speeds: give the results file of a benchmark (--benchmark FILE)')
    measured: dict[str, dict[str, Any]] = {}
    speeds = _read_rows(Path(args.benchmark))
    for row in speeds:
        key = next((key for key in ('infer_samples_per_sec', 'train_samples_per_sec') if row.get(key)), None)
        if key and row.get('param_count'):
            # Of models that ran in turns, ratios to the first one's time are steadier than the times.
            ratio = row.get(key.replace('samples_per_sec', 'time_ratio'))
            speed = float(speeds[0][key]) / float(ratio) if ratio else float(row[key])
            measured[row['model']] = {
                'images_per_second': round(speed, 2), 'parameters': 1e6 * float(row['param_count'])}
    accuracy: dict[str, list[float]] = {}
    for path in map(Path, args.runs):
        if path.is_dir():
            name, rows = _read_run(path)
            found = [(name, rows[-1]['eval_top1'])] if rows[-1].get('eval_top1') else []
        else:
            found = [(row['model'], row['top1']) for row in _read_rows(path) if row.get('top1')]
        for name, top1 in found:
            accuracy.setdefault(name, []).append(float(top1))
    model_of = {name: name.removesuffix('+reparam').removesuffix('+fold-bn') for name in measured}
    both = [{'model': name, **figures, 'top1': round(statistics.mean(accuracy[model_of[name]]), 4)}
            for name, figures in measured.items() if model_of[name] in accuracy]
    if not both:
        raise BadInput(f'no model has both: speeds are of {", ".join(measured) or "none"}, accuracies of '
                       f'{", ".join(accuracy) or "none"}')
    folder, caption = output_folder(args), caption_of(prog, words)
    write_tables(folder, 'scatter', both, caption, models=both)
    plot_speed(both, folder / 'scatter.png', args.title, caption)
    print(f'written {folder / "scatter.png"}')
