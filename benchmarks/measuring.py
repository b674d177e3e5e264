"""Timing two implementations alternately in one process, ratios with their spread, peak memory, and the machine's name."""

import datetime
import gc
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def seconds_of(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of `work` by the clock, by default that on the wall, including outstanding work on the device."""
    _finish()
    started = clock()
    work()
    _finish()
    return clock() - started


def in_turn(
    ways: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """name -> seconds per round, after one unmeasured warm-up of each."""
    for work in ways.values():
        work()
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            seconds[name].append(seconds_of(work, clock))
    return seconds


def ratio(slow: list[float], fast: list[float]) -> str:
    """Median and range of the ratio per round: "2.86 (2.40 to 3.13 in 7 rounds)"."""
    ratios = [one / other for one, other in zip(slow, fast, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)"


def peak_gb_of(work: Callable[[], object]) -> tuple[float, float]:
    """(seconds, peak memory in GB): memory allocated by CUDA, or without CUDA the process's resident set."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return seconds_of(work), torch.cuda.max_memory_allocated() / 1e9
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    seconds = seconds_of(work)
    [kilobytes] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    return seconds, int(kilobytes) * 1024 / 1e9


def machine() -> str:
    """Date, device and torch version, to note with a result."""
    date = datetime.datetime.now(tz=datetime.UTC).date()
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''} of {_processor()}"
    return f"{date}, {device}, torch {torch.__version__}"


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text("utf-8").splitlines() if about.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
