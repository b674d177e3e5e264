"""Runs a stage for a command: loads the config, handles errors and signals, prints the report."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from .. import processes
from .commands import COMMANDS

ConfigArgument = Annotated[Path, typer.Argument(help="YAML config; `evoxtral init` copies the shipped ones", show_default=False)]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="a.b=value: override a config key; list items by number: a.0.b=value")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="resume an unfinished run")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="repeat a finished run")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")]

ResultT = TypeVar("ResultT")

debug = False

_CALLBACKS = {"vio_get_filelen", "vio_seek", "vio_read", "vio_write", "vio_tell", "_receive"}  # soundfile's, and `Espeak`'s
_AGAIN_S = 0.005  # a signal that arrived in one of them is sent again after this


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP; ends a command like Ctrl-C."""

    def __init__(self, number: int):
        super().__init__()
        self.exit_code = 128 + number


def guarded(work: Callable[[], ResultT]) -> ResultT:
    """Run a stage. An error becomes one line and an exit code; --debug adds the traceback."""
    try:
        with _stoppable():
            return work()
    except KeyboardInterrupt as stop:
        if processes.is_first():
            print("stopped; resume with --resume", file=sys.stderr)
        raise typer.Exit(getattr(stop, "exit_code", 128 + signal.SIGINT)) from None
    except Exception as error:
        if _is_for_typer(error):
            raise
        raise typer.Exit(_report(error)) from None


@contextmanager
def own_process() -> Iterator[None]:
    """Wraps a whole command that has its own process. Unencodable output is escaped. If the reader closes the pipe (like `head`),
    the command ends quietly. No thread, destructor or code outside a stage shows a traceback."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")
    threading.excepthook = lambda thrown: _report(thrown.exc_value)
    sys.unraisablehook = lambda thrown: _report(thrown.exc_value) if debug else None
    try:
        try:
            yield
        finally:
            print(end="", flush=True)
    except Exception as error:  # noqa: BLE001 - reported, in one line
        if _reader_has_left():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discard what is still buffered
            sys.exit(1)
        sys.exit(_report(error))


def _report(error: BaseException | None) -> int:
    """Print an error as one line; returns its exit code."""
    from ..plain_text import one_line
    from .explaining import explained

    if debug:
        traceback.print_exception(error)
    message, exit_code = explained(error)
    sys.stderr.write(f"error{_process()}: {one_line(message)}\n")  # one call: threads may report at once
    return exit_code


def _is_for_typer(error: Exception) -> bool:
    """Whether Typer handles this itself: a wrong call, an exit, or a closed pipe."""
    from ..errors import EvoxtralError

    if isinstance(error, BrokenPipeError):
        return _reader_has_left()
    return isinstance(error, typer.Abort) or (hasattr(error, "exit_code") and not isinstance(error, EvoxtralError))


def _reader_has_left() -> bool:
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except BrokenPipeError:
            return True
        except (OSError, ValueError):
            pass
    return False


@contextmanager
def _stoppable() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise Stopped, and Ctrl-C KeyboardInterrupt, once, so that a second signal cannot interrupt the
    cleanup. A signal that is already ignored (nohup) stays ignored."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        before = {number: old for number, old in before.items() if old in (signal.SIG_DFL, signal.default_int_handler)}

    def stop(number: int, frame) -> None:
        if _called_by_c(frame):
            threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number)).start()
            return
        for handled in before:
            signal.signal(handled, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _called_by_c(frame) -> bool:
    """Whether libsndfile or espeak-ng has called back into Python. An exception there is printed and forgotten: the command would
    continue with a clip that lacks a piece."""
    while frame is not None:
        if frame.f_code.co_name in _CALLBACKS:
            return True
        frame = frame.f_back
    return False


def _process() -> str:
    return "" if processes.is_first() else f" in process {processes.rank()}"


def show(report) -> None:
    """Print a report: the title, the facts in two columns, then the table. Nothing in it can control the terminal."""
    from ..plain_text import printable

    width = max((len(name) for name in report.facts), default=0)
    print(report.title)
    for name, value in report.facts.items():
        print(printable(f"  {name:<{width}}  {value}"))
    if report.table:
        print(printable(f"\n{report.table}"))
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def run_stage(name: str, path: Path | None, overrides: list[str] | None, options, part_of=lambda config: config) -> None:
    """Run the command `name` of `COMMANDS`: load its config, narrow it with `part_of`, import the stage (torch takes seconds),
    run it, print its report. `path` None: the defaults.

    Under `accelerate launch`, only the first process prints and runs stages that are not shared.
    """
    import importlib

    command = COMMANDS[name]
    if not processes.is_first() and (not command.shared or options.dry_run):
        return

    def work():
        from ..config.loader import load_config
        from ..files import full_disk

        section, class_name = command.config.split(".")
        schema = getattr(importlib.import_module(f"..config.{section}", __package__), class_name)
        config = part_of(load_config(path, schema, overrides))
        module = importlib.import_module(f"..stages.{command.stage}", __package__)
        with full_disk(getattr(config, "output", None)):
            return module.run(config, options)

    try:
        report = guarded(work)
    finally:
        processes.leave()
        _release_outputs()
    if processes.is_first():
        show(report)


def _release_outputs() -> None:
    from ..run_folders import release_all

    release_all()


def options_of(resume: bool, overwrite: bool, dry_run: bool):
    from ..errors import UsageError
    from ..runs import Options

    if resume and overwrite:
        guarded(lambda: _raise(UsageError("--resume and --overwrite exclude each other", fix="choose one")))
    return Options(resume, overwrite, dry_run)


def _raise(error: Exception) -> None:
    raise error
