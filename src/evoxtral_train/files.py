"""Atomic writes, clear messages for disk errors, and fingerprints of files."""

import errno
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import EvoxtralError, UsageError

_NO_ROOM = "free some space or choose another `output`, then resume with --resume"
_NOT_ALLOWED = "change the permissions of this path, or choose another"
_FIXES = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: "free some space, raise the limit of `ulimit -f` or choose another `output`, then resume with --resume",
    errno.EIO: "check the disk, then resume with --resume",
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: "choose a path on a file system that is not read-only",
    errno.ENOENT: "check the path; one of its folders may have been moved or removed",
    errno.ENOTDIR: "check the path: part of it is a file, not a folder",
    errno.EISDIR: "check the path: it is a folder, not a file",
    errno.EEXIST: "check the path: a file or a broken link is where a folder should be",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "check the path: its symbolic links form a loop",
    errno.EMFILE: "allow more open files (`ulimit -n 4096`), then resume with --resume",
}
_NOT_THE_USERS_FAULT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, None}


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write the whole file or nothing: to a temporary file, synced, then renamed."""
    with open_atomic(path) as file:
        # UTF-8 cannot encode a lone surrogate; write it as JSON does: \ud800.
        file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Like `write_atomic`, for content that is written piece by piece."""
    temporary = path.with_name(f".{path.name}.part")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


@contextmanager
def disk_errors(path: Path):
    """Turn an OSError, such as a full disk or missing permission, into an error that names the file and the fix."""
    try:
        yield
    except OSError as error:
        raise refused(error, "could not be written", str(path)) from error


def refused(error: OSError, what: str, where: str | None) -> EvoxtralError:
    """The error for what the system refused, with a fix."""
    kind = EvoxtralError if error.errno in _NOT_THE_USERS_FAULT else UsageError
    return kind(f"{what}: {error.strerror or error}", where=where, fix=_FIXES.get(error.errno))


def fingerprint_files(paths: Iterable[Path]) -> str:
    """16 hex digits that depend on the files' names and contents."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def fingerprint_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


@contextmanager
def full_disk(folder: Path):
    """Report a full disk with place and fix, whichever library was writing into `folder`."""
    try:
        yield
    except Exception as error:
        os_error = re.search(r"\(os error (\d+)\)", str(error))  # safetensors does not raise OSError
        number = getattr(error, "errno", None) or (int(os_error[1]) if os_error else None)
        if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        where = str(getattr(error, "filename", None) or folder)
        raise EvoxtralError(f"could not be written: {os.strerror(number)}", where=where, fix=_NO_ROOM) from error
