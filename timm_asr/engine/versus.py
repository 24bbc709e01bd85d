"""Several steps that take turns, compared round by round: on a shared machine ratios are what stays of times."""

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
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
        return cls(*np.percentile(values, (50, 25, 75)).tolist())


def turns(steps: Mapping[str, Callable[[], object]], iters: int = 1, device: torch.device | str = 'cpu',
          clock: Callable[[], float] = time.perf_counter) -> Iterator[dict[str, float]]:
    """Rounds without end: seconds of one run of each step, by name.

    Every step runs ``iters`` times in a row; the order moves on by one from round to round, so that nobody always runs
    after the same neighbour. Garbage is collected between rounds.
    """
    names, device = list(steps), torch.device(device)
    collects = gc.isenabled()
    for first in itertools.cycle(range(len(names))):
        gc.collect()
        gc.disable()
        figures = {}
        try:
            for name in names[first:] + names[:first]:
                synchronize(device)
                start = clock()
                for _ in range(iters):
                    steps[name]()
                synchronize(device)
                figures[name] = (clock() - start) / iters
        finally:
            if collects:
                gc.enable()
        yield figures


def interleave(steps: Mapping[str, Callable[[], object]], *, rounds: int = 20, iters: int = 1, warmup: int = 3,
               budget: float = math.inf, device: torch.device | str = 'cpu',
               clock: Callable[[], float] = time.perf_counter) -> dict[str, list[float]]:
    """Time steps in turns (:func:`turns`), after ``warmup`` runs of each, for so many rounds.

    No further round starts after ``budget`` seconds. By name, the seconds of one run in each round.
    """
    for step in steps.values():
        for _ in range(warmup):
            step()
    end, kept = clock() + budget, []
    for figures in turns(steps, iters, device, clock):
        kept.append(figures)
        if len(kept) >= rounds or clock() >= end:
            break
    return {name: [figures[name] for figures in kept] for name in steps}


def ratios(times: Mapping[str, Sequence[float]], baseline: str) -> dict[str, Spread]:
    """Time of each step over that of the baseline in the same round: median and quartiles."""
    base = times[baseline]
    return {name: Spread.of([t / b for t, b in zip(own, base, strict=True)]) for name, own in times.items()}
