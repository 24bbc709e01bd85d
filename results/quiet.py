"""Rounds in which other processes took a part of the machine are run once more."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from timm_asr.engine.versus import turns

QUIET = 0.05  # part of the processors that others may take in a round


def _clocks() -> tuple[float, float, float]:
    """Seconds since some moment, those of this process on the processors, and those that all processors were busy.

    That includes steal, what a host takes for other machines. It is known on Linux, and taken as nothing elsewhere.
    """
    try:
        user, nice, system, _, _, irq, softirq, steal = (
            int(word) for word in Path('/proc/stat').read_text().split('\n', 1)[0].split()[1:9])
    except (OSError, ValueError):
        return time.perf_counter(), 0.0, 0.0
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf('SC_CLK_TCK')
    return time.perf_counter(), time.process_time(), busy


def _share_of_others(start: tuple[float, ...]) -> float:
    """Part of all processors' time, 0 to 1, that other processes took since :func:`_clocks` gave ``start``."""
    elapsed, own, busy = (now - before for now, before in zip(_clocks(), start, strict=True))
    # The kernel counts in hundredths of a second, which can be more than a short time.
    return min(1.0, max(0.0, busy - own) / (elapsed * (os.cpu_count() or 1)))


def interleave_quietly(steps: Mapping[str, Callable[[], object]], *, rounds: int, budget: float, iters: int = 1,
                       warmup: int = 2, device: Any = 'cpu') -> dict[str, list[float]]:
    """:func:`timm_asr.engine.versus.interleave` without disturbed rounds; with all, where no other is left."""
    for step in steps.values():
        for _ in range(warmup):
            step()
    kept: list[dict[str, float]] = []
    disturbed: list[dict[str, float]] = []
    end, start = time.perf_counter() + budget, _clocks()
    for figures in turns(steps, iters, device):
        (kept if _share_of_others(start) <= QUIET else disturbed).append(figures)
        if len(kept) >= rounds or time.perf_counter() >= end:
            break
        start = _clocks()
    return {name: [figures[name] for figures in kept or disturbed] for name in steps}
