"""The audio cache on disk; readable without torch.

<dataset>/audio-cache/<base>-<dtype>-<device type>[-states]/    states: what enters the projector
    <split>.bin     the rows, of full size from the start
    <split>.json    their source, and whether they are complete
    <split>.<process>.done, until then: the clips that are on disk
    <split>.lock    locked while the rows are filled
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from .. import processes
from ..data.splits import SPLITS
from ..errors import EvoxtralError
from ..files import disk_errors, write_atomic
from ..records import drop_partial_line
from ..run_folders import COMPLETE

_FOLDER, _NAME = "audio-cache", re.compile(r"[0-9a-f]{16}-(float32|bfloat16)-[a-z]+(-states)?")


def cache_folder(dataset: Path, base: str, dtype: str, device: str, stage: str) -> Path:
    """`base`: its fingerprint; `dtype`: bfloat16; `device`: cuda; `stage`: embeds | states."""
    return dataset / _FOLDER / f"{base}-{dtype}-{device}{'-states' if stage == 'states' else ''}"


@dataclass(frozen=True)
class CacheFiles:
    """The cache of one split."""

    folder: Path
    split: str

    @property
    def rows(self) -> Path:
        return self.folder / f"{self.split}.bin"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.split}.json"

    def done(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.split}.*.done"))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """If several commands need one cache, the first fills it and the others wait."""
        if not processes.is_first():
            yield
            return
        with disk_errors(self.rows):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / f"{self.split}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                print(f"waiting: {self.rows} is being filled by another process", file=sys.stderr, flush=True)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def whole(self, made_from: dict, size_bytes: int) -> bool:
        """Whether every clip is there. Raises EvoxtralError when the cache was made from other inputs."""
        record = json.loads(self.record.read_text("utf-8")) if self.record.is_file() else {}
        stale = sorted(name for name, value in made_from.items() if record and record.get(name) != value)
        if stale:
            raise EvoxtralError(
                f"this audio cache was made from another {', '.join(stale)}",
                where=str(self.folder),
                fix="delete the folder; it will be rebuilt",
            )
        return bool(record.get("whole")) and self._of_full_size(size_bytes)

    def _of_full_size(self, size_bytes: int) -> bool:
        return self.rows.is_file() and self.rows.stat().st_size == size_bytes

    def missing_clips(self, made_from: dict, clips: int, size_bytes: int) -> list[int]:
        """The clips that still have to be encoded; allocates their space on disk."""
        if self.whole(made_from, size_bytes):
            return []
        if not self._of_full_size(size_bytes):  # the record exists, but its rows do not
            for path in self.done():
                path.unlink()
        with disk_errors(self.rows):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.rows.open("ab") as file:
                file.truncate(size_bytes)
            write_atomic(self.record, json.dumps(made_from | {"whole": False}) + "\n")
        for path in self.done():
            drop_partial_line(path)
        done = {int(index) for path in self.done() for index in path.read_text("ascii").split()}
        return sorted(set(range(clips)) - done)

    def finish(self, made_from: dict) -> None:
        write_atomic(self.record, json.dumps(made_from | {"whole": True}) + "\n")
        for path in self.done():
            path.unlink()

    def exists(self) -> bool:
        return self.rows.is_file() or self.record.is_file()

    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._paths())

    def _paths(self) -> list[Path]:
        return [path for path in (self.rows, self.record, self.folder / f"{self.split}.lock", *self.done()) if path.is_file()]

    @property
    def dataset(self) -> Path:
        return self.folder.parent.parent

    def fault(self) -> str | None:
        """Why the next stage could not use this cache as it is; None if it can."""
        try:
            record = json.loads(self.record.read_text("utf-8"))
            now = json.loads((self.dataset / COMPLETE).read_text("utf-8"))["fingerprint"]
        except FileNotFoundError as error:
            return f"{Path(error.filename).name} is missing"
        except (ValueError, KeyError, TypeError):
            return "the record is damaged"
        if record.get("dataset") != now:
            return "made from an earlier version of the dataset"
        return None if record.get("whole") and self._has_rows_of(record) else "not whole"

    def _has_rows_of(self, record: dict) -> bool:
        column_bytes = record["tokens"] * (4 if record["dtype"] == "torch.float32" else 2)
        return self.rows.is_file() and self.rows.stat().st_size % column_bytes == 0 < self.rows.stat().st_size

    def remove(self) -> None:
        """Delete only the files that `open_cache` wrote, and folders left empty. Raises EvoxtralError when a process is
        filling it."""
        lock = FileLock(self.folder / f"{self.split}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise EvoxtralError("another process is filling this cache", where=str(self.rows), fix="wait for it") from None
        for path in self._paths():
            path.unlink()
        lock.release()
        for folder in (self.folder, self.folder.parent):
            if not any(folder.iterdir()):
                folder.rmdir()


def find_caches(root: Path) -> list[CacheFiles]:
    """Every cache below a folder, or of a dataset; links are not followed."""
    found = []
    for path, folders, _ in os.walk(root):
        folders.sort()
        if Path(path).parent.name == _FOLDER and _NAME.fullmatch(Path(path).name):
            found += [cache for split in SPLITS if (cache := CacheFiles(Path(path), split)).exists()]
    return found
