"""Two or more things timed fairly: in one process, in turns, compared round by round.

On a shared machine the absolute time of a step says more about the neighbours than about the step. What stays is the
ratio of two steps that ran next to each other; its median over many rounds, and how far the quartiles lie apart.
"""

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .device import synchronize


class Spread(NamedTuple):
    """Median and quartiles of a sample."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> 'Spread':
        """The spread of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        q1, median, q3 = statistics.quantiles(values, n=4, method='inclusive')
        return cls(median, q1, q3)


class Neighbours:
    """How much of the machine other processes take; known on Linux, taken as nothing elsewhere."""

    def __init__(self) -> None:
        self.mark()

    @staticmethod
    def _busy() -> float | None:
        """Seconds that all processors have been busy, for this machine and (steal) for those it shares a host with."""
        try:
            user, nice, system, _, _, irq, softirq, steal = (
                int(word) for word in Path('/proc/stat').read_text().split('\n', 1)[0].split()[1:9])
        except (OSError, ValueError):
            return None
        return (user + nice + system + irq + softirq + steal) / os.sysconf('SC_CLK_TCK')

    def mark(self) -> None:
        """Start counting here."""
        self._start = time.perf_counter(), time.process_time(), self._busy()

    def share(self) -> float:
        """Part of all processors' time, 0 to 1, that others took since ``mark``."""
        busy, (clock, own, before) = self._busy(), self._start
        elapsed = (time.perf_counter() - clock) * (os.cpu_count() or 1)
        if busy is None or before is None or elapsed <= 0:
            return 0.0
        # The kernel counts in hundredths of a second, which can be more than a short time.
        return min(1.0, max(0.0, busy - before - (time.process_time() - own)) / elapsed)


def interleave(steps: Mapping[str, Callable[[], object]], *, rounds: int = 20, iters: int = 1, warmup: int = 3,
               budget: float = math.inf, max_foreign: float = 1.0, device: torch.device | str = 'cpu',
               clock: Callable[[], float] = time.perf_counter) -> dict[str, list[float]]:
    """Time steps in turns, by name.

    In each round every step runs ``iters`` times in a row; the order moves on by one from round to round, so that
    nobody always runs after the same neighbour. Garbage is collected between rounds, never inside one.

    Args:
        warmup: Runs of each step before the first round.
        budget: Seconds after which no further round starts.
        max_foreign: A round during which other processes took a larger part of the processors is run once more,
            while the budget lasts; if that leaves no round, all are kept.

    Returns:
        Seconds of one run, a list with a figure for each round by name.
    """
    if rounds < 1 or iters < 1:
        raise ValueError(f'rounds ({rounds}) and iters ({iters}) must be at least 1')
    device = torch.device(device)
    for step in steps.values():
        for _ in range(warmup):
            step()
    names = list(steps)
    was_enabled = gc.isenabled()
    gc.disable()
    end = clock() + budget
    neighbours = Neighbours()
    kept: list[dict[str, float]] = []
    disturbed: list[dict[str, float]] = []
    try:
        while len(kept) < rounds and (clock() < end or not kept + disturbed):
            gc.collect()
            neighbours.mark()
            first = (len(kept) + len(disturbed)) % len(names)
            figures = {}
            for name in names[first:] + names[:first]:
                step = steps[name]
                synchronize(device)
                start = clock()
                for _ in range(iters):
                    step()
                synchronize(device)
                figures[name] = (clock() - start) / iters
            (kept if neighbours.share() <= max_foreign else disturbed).append(figures)
    finally:
        if was_enabled:
            gc.enable()
    return {name: [figures[name] for figures in kept or disturbed] for name in names}


def ratios(times: Mapping[str, Sequence[float]], baseline: str) -> dict[str, Spread]:
    """Time of each step over that of the baseline in the same round: median and quartiles."""
    base = times[baseline]
    return {name: Spread.of([t / b for t, b in zip(own, base, strict=True)]) for name, own in times.items()}


def compare(times: Mapping[str, Sequence[float]], baseline: str, batch_size: int, prefix: str) -> dict[str, dict]:
    """Result columns for each name, from what ``interleave`` returned for steps of so many images.

    Returns:
        By name, with the prefix (``infer``, ``train``): ``samples_per_sec`` and ``step_time`` (ms) from the median
        round, ``time_ratio``, ``time_ratio_q1`` and ``time_ratio_q3`` (above 1: slower than the baseline).
    """
    spread = ratios(times, baseline)
    rows: dict[str, dict[str, Any]] = {}
    for name, own in times.items():
        seconds = statistics.median(own)
        rows[name] = {
            f'{prefix}_samples_per_sec': round(batch_size / seconds, 2),
            f'{prefix}_step_time': round(1000 * seconds, 3), f'{prefix}_time_ratio': round(spread[name].median, 4),
            f'{prefix}_time_ratio_q1': round(spread[name].q1, 4), f'{prefix}_time_ratio_q3': round(spread[name].q3, 4)}
    return rows
