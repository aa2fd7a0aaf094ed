"""Whether anything else ran on this machine while something was measured.

Latencies and stalls are only worth something if the processors were free for those who were measured. What others
use can't be prevented, but it can be seen, and then the measurement is made again.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

# Of one processor. The kernel counts in ticks of 4 to 10 ms, so less than this is no evidence.
LIMIT = 0.05
TRIES = 4

T = TypeVar("T")


def busy() -> float:
    """CPU seconds that all processors together have used so far, stolen ones (by other virtual machines) included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Others:
    """CPU time of all but those measured, whose clocks are given in nanoseconds: begin, run, then ask."""

    def __init__(self, *clocks: Callable[[], int]) -> None:
        self.clocks = clocks
        self.begun = time.monotonic()
        self.before = self.seconds()

    def seconds(self) -> float:
        """CPU time since the system was started."""
        return busy() - sum(clock() for clock in self.clocks) / 1e9

    def share(self) -> float:
        """Of one processor, since the beginning."""
        return max(0.0, self.seconds() - self.before) / (time.monotonic() - self.begun)


def wait(patience: float) -> None:
    """Wait until nobody else runs, but no longer than that many seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        others = Others()
        time.sleep(0.5)
        if others.share() <= LIMIT:
            return


def undisturbed(what: str, patience: float, measure: Callable[[], tuple[T, float]]) -> tuple[T, float]:
    """Measure up to TRIES times while others use more than LIMIT. The least disturbed result, and their share.

    Before each time it is waited, no longer than `patience` seconds in all, until nobody else runs.
    """
    results: list[tuple[T, float]] = []
    deadline = time.monotonic() + patience
    while not results or (results[-1][1] > LIMIT and len(results) < TRIES):
        wait(deadline - time.monotonic())
        results.append(measure())
    result = min(results, key=lambda result: result[1])
    if result[1] > LIMIT:
        print(f"{what}: others used {result[1]:.0%} of a processor in the best of {TRIES} tries", file=sys.stderr)
    return result
