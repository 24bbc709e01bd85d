"""Rounds in which other processes took a part of the machine are run once more."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from timm_asr.engine.versus import turns

QUIET = 0.05  # part of the processors that others may take in a round


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


def interleave_quietly(steps: Mapping[str, Callable[[], object]], *, rounds: int, budget: float, iters: int = 1,
                       warmup: int = 2, device: Any = 'cpu') -> dict[str, list[float]]:
    """:func:`timm_asr.engine.versus.interleave` without disturbed rounds; with all, where no other is left."""
    for step in steps.values():
        for _ in range(warmup):
            step()
    kept: list[dict[str, float]] = []
    disturbed: list[dict[str, float]] = []
    end, neighbours = time.perf_counter() + budget, Neighbours()
    for figures in turns(steps, iters, device):
        (kept if neighbours.share() <= QUIET else disturbed).append(figures)
        if len(kept) >= rounds or time.perf_counter() >= end:
            break
        neighbours.mark()
    return {name: [figures[name] for figures in kept or disturbed] for name in steps}
