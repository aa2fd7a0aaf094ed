"""Whether anything else ran on this machine while something was measured.

Latencies and stalls are only worth something if the processors were free for those who were measured. What others use
can't be prevented, but it can be seen, and then the measurement is made again.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

TRIES = 4

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Disturbance:
    """By whom, and how much, as parts of one processor."""

    others: float  # all but those measured
    stolen: float  # the host of this virtual machine: nothing in it ran, for 10 or 20 ms at a time

    def times_too_much(self) -> float:
        """Above 1: it can be seen in the figures."""
        # The kernel counts others in ticks of 4 ms, by samples, so a little may be an illusion; stolen time is exact,
        # but counted up to 10 ms.
        return max(self.others / 0.05, self.stolen / 0.002)

    def __str__(self) -> str:
        return f"others used {self.others:.0%} of a processor, and {self.stolen:.1%} were taken away"


def used() -> tuple[float, float]:
    """CPU seconds that all processors together have worked so far, and for which they could not."""
    user, nice, system, _idle, _iowait, irq, softirq, stolen, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / tick, stolen / tick


class Watch:
    """From now on. Those measured are known by their CPU clocks, in nanoseconds."""

    def __init__(self, *clocks: Callable[[], int]) -> None:
        self.clocks = clocks
        self.begun = time.monotonic()
        self.before = self.now()

    def now(self) -> tuple[float, float]:
        """CPU seconds of others, and stolen ones."""
        worked, stolen = used()
        return worked - sum(clock() for clock in self.clocks) / 1e9, stolen

    def seen(self) -> Disturbance:
        """What there was until now."""
        seconds = time.monotonic() - self.begun
        others, stolen = (max(0.0, after - before) / seconds for before, after in zip(self.before, self.now()))
        return Disturbance(others, stolen)


def wait(patience: float) -> None:
    """Wait until nobody else runs, but no longer than that many seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        watch = Watch()
        time.sleep(0.5)
        if watch.seen().times_too_much() <= 1:
            return


def undisturbed(what: str, patience: float, measure: Callable[[], tuple[T, Disturbance]]) -> tuple[T, Disturbance]:
    """Measure, and again if it was disturbed, up to TRIES times. The least disturbed result.

    Before each time it is waited, no longer than `patience` seconds in all, until nobody else runs.
    """
    results: list[tuple[T, Disturbance]] = []
    deadline = time.monotonic() + patience
    while not results or (results[-1][1].times_too_much() > 1 and len(results) < TRIES):
        wait(deadline - time.monotonic())
        results.append(measure())
    result = min(results, key=lambda result: result[1].times_too_much())
    if result[1].times_too_much() > 1:
        print(f"{what}: {result[1]}, in the best of {TRIES} tries", file=sys.stderr)
    return result
