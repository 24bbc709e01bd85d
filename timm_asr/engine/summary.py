"""What a run writes down: ``summary.csv``, curves, and Weights & Biases."""

import argparse
import csv
import importlib.util
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..asr.wrapper import ASR
from ..checkpoints.names import ATTENTION, CURVE, SUMMARY
from ..checkpoints.read import first_line
from ..errors import BadInput
from ..figures.training import plot_attention, plot_curve
from .checkpoint import write_atomically

_logger = logging.getLogger(__name__)


def read_summary(path: Path) -> list[dict[str, str]]:
    """Rows of a ``summary.csv``; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline='') as file:
        return [row for row in csv.DictReader(file) if row.get('epoch', '').isdigit()]


def add_summary(path: Path, row: Mapping[str, Any]) -> None:
    """Add an epoch to ``summary.csv``, in place of any later rows; the file is whole at any moment."""
    before = [each for each in read_summary(path) if int(each['epoch']) < row['epoch']]
    rows = [*before, {key: str(value) for key, value in row.items()}]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(key for each in rows for key in each)))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def start_wandb(args: argparse.Namespace, name: str) -> Any:
    """Weights & Biases as ``--log-wandb`` asks for it, with a run of this name; None without it, or not installed."""
    if not args.log_wandb:
        return None
    try:
        wandb = importlib.import_module('wandb')
    except ImportError:
        _logger.warning('--log-wandb: the package wandb is not installed (pip install wandb); nothing is logged there.')
        return None
    resume = {'resume': 'must', 'id': args.wandb_resume_id} if args.wandb_resume_id else {}
    try:
        wandb.init(project=args.wandb_project, name=name, config=vars(args), tags=args.wandb_tags, **resume)
    except Exception as error:  # no account, no network: it raises whatever it likes
        raise BadInput(f'--log-wandb: {first_line(error)}') from None
    return wandb


def plot_run(folder: Path, model: nn.Module | None, *curve: Any) -> None:
    """Write ``curve.png`` from ``summary.csv`` by :func:`plot_curve`, which takes ``curve`` besides, and
    ``attention.png`` from a model with ASR.

    Without matplotlib (the extra ``plot``) one line says so.
    """
    if importlib.util.find_spec('matplotlib') is None:
        _logger.info('No plots: matplotlib is not installed (pip install matplotlib).')
        return
    try:
        rows = read_summary(folder / SUMMARY)
        if len(rows) > 1:
            plot_curve(rows, folder / CURVE, *curve)
        if model is not None and any(isinstance(m, ASR) for m in model.modules()):
            plot_attention(model, folder / ATTENTION)
    except OSError as error:
        _logger.warning(f'No plots: {error}')
