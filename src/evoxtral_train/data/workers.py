"""Worker processes for reading audio and text: they share out chunks of rows, and none outlives the stage.

A worker ends with its parent however that ends, SIGKILL included: it waits for the other end of a pipe that only the parent
holds. The server process that forks the workers ends with the last of them.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ..errors import EvoxtralError

ItemT = TypeVar("ItemT")


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def worker_pool(processes: int, where: Path, start: Callable[..., None], *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """So many workers, each of which calls `start(*arguments)` first.

    This process stays light: only they import what reads audio and text, which takes seconds. When the stage fails or is
    stopped they are killed at once, with what they were doing. Raises EvoxtralError, about `where`, when one was killed.
    """
    # A server process imports everything once; each worker is forked from it, before any thread runs in it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([start.__module__, "transformers"])
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(start, arguments))
    try:
        yield pool
    except BaseException as error:
        for worker in multiprocessing.active_children():
            worker.kill()
        if isinstance(error, BrokenProcessPool):
            raise EvoxtralError(
                "a worker process was killed, maybe for memory", where=str(where),
                fix="start again with a smaller `processes` (`data pack` with --resume)",
            ) from None  # fmt: skip
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(pool: ProcessPoolExecutor, work: Callable[[ItemT], Any], items: Iterable[ItemT], ahead: int) -> Iterator[Any]:
    """`work(item)` of each item, in the order of the items; no more than `ahead` of them are held in memory."""
    running: deque = deque()
    for item in items:
        running.append(pool.submit(work, item))
        if len(running) == ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _start(start: Callable[..., None], arguments: tuple) -> None:
    """What a worker does once. Ctrl-C and a closed terminal are the parent's to handle."""
    for number in {signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)}:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)  # one process for each core: threads would only be in each other's way
    start(*arguments)


def _die_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
