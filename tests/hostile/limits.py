"""A time limit for what must not hang, and a command in a process of its own with little memory."""

import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

REPO = Path(__file__).parents[2]


@contextmanager
def within(seconds: int):
    """Fails when the block takes longer; also where it waits for a pipe."""

    def stop(*_):
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def evoxtral(*arguments, memory_bytes: int | None = None, timeout_s: int = 60, prefix=(), **named) -> subprocess.CompletedProcess:
    """`evoxtral` in its own process. `memory_bytes`: of address space; `prefix`: the command that starts it."""

    def limit():
        if memory_bytes:
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))

    return subprocess.run(
        [*prefix, sys.executable, "-m", "evoxtral_train.cli", *map(str, arguments)], cwd=REPO, preexec_fn=limit,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=timeout_s, check=False, **named,
    )  # fmt: skip


def sets(*overrides: str) -> list[str]:
    return [part for each in (*overrides, "tracking.mode=disabled") for part in ("--set", each)]


def assert_plain(stderr: str) -> None:
    """One line for a person: no traceback, and no name of an exception."""
    assert "Traceback" not in stderr
    assert "Error:" not in stderr, stderr
    assert "--debug" not in stderr, stderr
