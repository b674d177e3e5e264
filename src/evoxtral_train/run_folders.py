"""A run's folders on disk: made beside its output, locked, moved there whole, and replaced without touching foreign files.

runs/sft            the finished run
runs/sft.partial    the run in progress
runs/.sft.lock      held by the process that makes it
runs/sft.replaced   exists briefly: the run that `--overwrite` replaces
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UsageError
from .files import disk_errors

COMPLETE, FILES = "complete.json", "files.txt"
_DERIVED, _DERIVED_FILES = ("audio-cache",), ("adapter/thresholds.json",)  # later stages keep these in a finished run
_held: dict[Path, FileLock] = {}  # the outputs that this process has locked


def is_complete(path: Path) -> bool:
    return (path / COMPLETE).is_file()


def partial(output: Path) -> Path:
    """The folder of the run in progress: runs/sft -> runs/sft.partial."""
    return output.with_name(f"{output.name}.partial")


def real_path(output: Path) -> Path:
    """The target of a symbolic link: a run replaces the target and keeps the link."""
    return Path(os.path.realpath(output))


def lock(output: Path) -> None:
    """Lock the output until `finish` or the end of this process. Raises UsageError if another process holds it."""
    if output in _held:
        return
    with disk_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        path = output.with_name(f".{output.name}.lock")
        path.touch()  # FileLock takes a folder where nothing can be made for a lock that is held
        mine = FileLock(path)
        try:
            mine.acquire(timeout=0)
        except Timeout:
            what = "another process is making this run"
            raise UsageError(what, where=str(output), fix="wait for it, stop it, or choose another `output`") from None
    _held[output] = mine


def release(output: Path) -> None:
    _held.pop(output).release()


def release_all() -> None:
    """Release the locks that a failed stage still holds."""
    for output in list(_held):
        release(output)


def recover(output: Path) -> None:
    """Complete a `finish` that was killed halfway."""
    if is_complete(partial(output)) or _replaced(output).is_dir():
        lock(output)
        put_in_place(output)
        release(output)


def put_in_place(output: Path) -> None:
    """Move the finished run to `output`; foreign files of the old run move over. If killed at any point, the next call does the
    rest."""
    made, old = partial(output), _replaced(output)
    if is_complete(made):
        if output.is_dir() and any(output.iterdir()):
            output.replace(old)
        made.replace(output)
    if old.is_dir() and not output.exists():  # the new run was removed by hand after a kill: the old one stays
        old.replace(output)
    elif old.is_dir():
        remove_own(old)
        _move_over(old, output)


def remove_own(folder: Path) -> None:
    """Remove the files that the run lists as its own, and what later stages derived from it; keep the list itself. A run from an
    earlier version has no list and loses nothing."""
    if (folder / FILES).is_file():
        for name in (*(folder / FILES).read_text("utf-8").splitlines(), *_DERIVED_FILES):
            # A list that somebody edited, or that came with a stranger's run, reaches nothing outside the run.
            inside = real_path((folder / name).parent).is_relative_to(real_path(folder))
            if name != FILES and inside and not (folder / name).is_dir():
                (folder / name).unlink(missing_ok=True)
        for name in _DERIVED:
            if (folder / name).is_dir():
                remove(folder / name)


def discard(folder: Path) -> None:
    """Remove a run, finished or not; keep foreign files in a finished one."""
    if not is_complete(folder):
        remove(folder)
        return
    remove_own(folder)
    (folder / FILES).unlink()
    for path in sorted([*folder.rglob("*"), folder], reverse=True):
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()


def _move_over(old: Path, output: Path) -> None:
    """Move foreign files to the same place in the new run. If the new run has a file of that name, or the old one has no list,
    they stay in a folder beside it."""
    listed = (old / FILES).is_file()
    for path in sorted(old.rglob("*"), reverse=True):
        target = output / path.relative_to(old)
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif listed and not os.path.lexists(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    if listed:
        (old / FILES).unlink()
    if any(old.iterdir()):
        kept = _free_name(output)
        old.replace(kept)
        print(f"kept: {kept} has the files that the replaced run did not write", file=sys.stderr)
    else:
        old.rmdir()


def remove(folder: Path) -> None:
    """Remove a whole folder of ours. Marker and record go first, so that a kill leaves nothing that looks like a run."""
    for name in (COMPLETE, "run.json"):
        (folder / name).unlink(missing_ok=True)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
    folder.rmdir()


def files_below(folder: Path) -> Iterable[str]:
    return (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _replaced(output: Path) -> Path:
    return output.with_name(f"{output.name}.replaced")


def _free_name(output: Path) -> Path:
    """runs/sft.old-1, or the next free number."""
    number = 1
    while (path := output.with_name(f"{output.name}.old-{number}")).exists():
        number += 1
    return path
