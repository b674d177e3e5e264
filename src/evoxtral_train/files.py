"""Writing files whole, saying plainly what went wrong on disk, and what files hold."""

import errno
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import EvoxtralError


def write_atomic(path: Path, content: str | bytes) -> None:
    """The whole file or none of it: written beside, synced, then renamed."""
    with open_atomic(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """As `write_atomic`, for content that is written piece by piece."""
    temporary = path.with_name(f".{path.name}.part")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


@contextmanager
def disk_errors(path: Path):
    """Turn a full disk or a forbidden folder into an error that says which file and what to do."""
    try:
        yield
    except OSError as error:
        raise EvoxtralError(
            f"could not be written: {error.strerror or error}",
            where=str(path),
            fix="free some space or choose another `output`, then resume with --resume",
        ) from error


def fingerprint_files(paths: Iterable[Path]) -> str:
    """16 hex digits over the names and the contents of files."""
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
    """Whatever library was writing into `folder`: a full disk is an error that says where, and what to do."""
    try:
        yield
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))  # safetensors' errors are no OSErrors
        number = getattr(error, "errno", None) or (int(found[1]) if found else None)
        if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        where = str(getattr(error, "filename", None) or folder)
        fix = "free some space or choose another `output`, then resume with --resume"
        raise EvoxtralError(f"could not be written: {os.strerror(number)}", where=where, fix=fix) from error
