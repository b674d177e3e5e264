"""Worker processes that read or speak clips. None outlives the stage.

A worker exits when its parent does, even on SIGKILL: it waits on a pipe whose other end only the parent holds. The fork server
exits with the last worker.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from ..errors import EvoxtralError

ItemT = TypeVar("ItemT")


def usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def worker_pool(
    processes: int, where: Path, start: Callable[..., None], *arguments: Any, imports: Sequence[str] = ("torch", "transformers")
) -> Iterator[ProcessPoolExecutor]:
    """A pool of `processes` workers, each of which first calls `start(*arguments)`.

    `imports`: the slow ones, which take seconds; only the workers need them. If the stage fails or is stopped, they are killed at
    once. Raises EvoxtralError, about `where`, if a worker was killed.
    """
    # A server process imports everything once; workers are forked from it before it starts any thread.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([start.__module__, *imports])
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(start, arguments, imports))
    try:
        yield pool
    except BaseException as error:
        for worker in multiprocessing.active_children():
            worker.kill()
        if isinstance(error, BrokenProcessPool):
            raise EvoxtralError(
                "a worker process was killed, perhaps for lack of memory", where=str(where),
                fix="run again with a smaller `processes` (`data pack` and `data synth` with --resume)",
            ) from None  # fmt: skip
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(pool: ProcessPoolExecutor, work: Callable[[ItemT], Any], items: Iterable[ItemT], ahead: int) -> Iterator[Any]:
    """`work(item)` of each item, in order; at most `ahead` results are held in memory."""
    running: deque = deque()
    for item in items:
        running.append(pool.submit(work, item))
        if len(running) == ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _start(start: Callable[..., None], arguments: tuple, imports: Sequence[str]) -> None:
    """Set up a worker. The parent handles Ctrl-C and a closed terminal."""
    for number in {signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)}:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    for name in imports:  # a fork server that was started for other workers may lack them
        import_module(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # one process per core already: more threads would only compete
    start(*arguments)


def _die_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
