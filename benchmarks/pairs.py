"""Pairs of ways to do the same, measured in turns in one run: what else the machine does slows both.

A ratio is the other's seconds divided by ours, round by round: above 1 we are faster. Aims are of its median.
"""

import ctypes
import gc
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pair:
    """Ours and what it is compared with: callables that return their own seconds, or else are timed whole."""

    name: str  # ours, as the page calls it
    against: str  # the other
    ours: Callable
    other: Callable
    aim: float | None = None  # least median ratio
    seconds: float | None = None  # most seconds of ours, in the median
    state: int | None = None  # bytes of a checkpoint: memory is measured, too, in these
    memory: float | None = None  # most checkpoints that ours may hold, its result included


def seconds_of(function):
    """Seconds of a call, its own if it returns a float."""
    gc.collect()
    start = time.perf_counter()
    result = function()
    elapsed = time.perf_counter() - start
    return result if isinstance(result, float) else elapsed


def measure(pair, rounds):
    """Measure a pair in turns.

    Parameters
    ----------
    pair : Pair
    rounds : int
        Each way is called once a round, and once before if memory is measured.

    Returns
    -------
    dict
        JSON-able: the pair's words and aims, `ours_seconds` and `other_seconds` of all rounds, median, least
        and largest `ratio`, `ours_memory` and `other_memory` in checkpoints, and whether each aim is reached.
    """
    row = {key: getattr(pair, key) for key in ("name", "against", "aim", "seconds", "memory")}
    ways = {"ours": pair.ours, "other": pair.other}
    if pair.state:
        held = {f"{key}_memory": memory_of(way) for key, way in ways.items()}
        row |= {key: each / pair.state for key, each in held.items() if each is not None}
    times = [{key: seconds_of(way) for key, way in ways.items()} for _ in range(rounds)]
    row |= {f"{key}_seconds": [each[key] for each in times] for key in ways}
    ratios = [each["other"] / each["ours"] for each in times]
    row["ratio"] = [statistics.median(ratios), min(ratios), max(ratios)]
    row["reached"] = reached(row)
    return row


def reached(row):
    """Whether a measured pair meets all its aims; None if it has none."""
    met = []
    if row["aim"] is not None:
        met.append(row["ratio"][0] >= row["aim"])
    if row["seconds"] is not None:
        met.append(statistics.median(row["ours_seconds"]) <= row["seconds"])
    if row["memory"] is not None and "ours_memory" in row:
        met.append(row["ours_memory"] <= row["memory"])
    return all(met) if met else None


def memory_of(function):
    """Bytes of anonymous memory that a call adds at most, its result included; None where not on Linux."""
    if sys.platform != "linux":
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what is taken now
    before = most = anonymous()
    done = threading.Event()

    def watch():
        nonlocal most
        while not done.wait(0.005):
            most = max(most, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = function()
        most = max(most, anonymous())
        del result
    finally:
        done.set()
        watcher.join()
    return most - before


def anonymous():
    """Bytes of anonymous memory of this process: files that are mapped do not count."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) * 1024
