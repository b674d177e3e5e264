"""Progress of long work: a live bar on a terminal, a plain line every ten seconds in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from . import processes

ItemT = TypeVar("ItemT")

_LINE_EVERY_S = 10.0


class Progress:
    """Counts `advance` calls towards `total` (None: unknown) and shows the rate and the time left."""

    def __init__(self, label: str, total: int | None, unit: str):
        self.label, self.total, self.unit = label, total, unit
        self.done, self._fresh, self._started, self._last_line = 0, 0, time.monotonic(), time.monotonic()
        self._bar, self._task = None, None
        if sys.stderr.isatty() and processes.is_first():
            self._bar, self._task = _rich_bar(label, total, unit)

    def skip(self, count: int) -> None:
        """Count work that an earlier run did: as done, but not towards the rate."""
        self.done += count
        if self._bar:
            self._bar.update(self._task, completed=self.done)

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        self._fresh += count
        if self._bar:
            self._bar.update(self._task, completed=self.done, note=note)
        elif processes.is_first() and time.monotonic() - self._last_line > _LINE_EVERY_S:
            self._last_line = time.monotonic()
            print(self._line(note), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()

    def _line(self, note: str) -> str:
        rate = self._fresh / max(time.monotonic() - self._started, 1e-9)
        if self.total is None:
            return f"{self.label}: {self.done} {self.unit}, {rate:.1f} {self.unit}/s{', ' + note if note else ''}"
        left = format_seconds((self.total - self.done) / rate) if rate else "?"
        share = f"{self.done}/{self.total} {self.unit}"
        return f"{self.label}: {share}, {rate:.1f} {self.unit}/s, {left} left{', ' + note if note else ''}"


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Progress]:
    bar = Progress(label, total, unit)
    try:
        yield bar
    finally:
        bar.close()


def format_seconds(seconds: float) -> str:
    """59 -> "59 s", 61 -> "1 min 01 s", 3660 -> "1 h 01 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def _rich_bar(label: str, total: int | None, unit: str):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    class Rate(TextColumn):
        def render(self, task):
            speed = task.finished_speed or task.speed
            return f"{speed:.1f} {unit}/s" if speed else ""

    bar = RichProgress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(""), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=Console(stderr=True),
    )  # fmt: skip
    bar.start()
    return bar, bar.add_task(label, total=total, note="")
