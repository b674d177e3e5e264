"""Writing a packed dataset: rows ready to be laid out, in shards of consecutive manifest rows.

    shards/00003-train.arrow    the rows of chunk 3 that belong to the training split: a plain Arrow stream
    shards/00003.json           written last: number of rows, rejected rows, hash of the rows
    train-index.arrow           id and lengths of each row of the split; a row without target has no target length

Any number of processes pack chunks in any order and skip finished ones; the result is the same. Memory does not grow with the
number of clips.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow

from ..config.data import PackConfig
from ..data.manifest import ManifestRow, Rejected
from ..data.splits import SPLITS
from ..data.workers import worker_pool
from ..errors import EvoxtralError, RowError
from ..families.checkpoint import open_family
from ..files import disk_errors, write_atomic
from ..reading import read_record
from .rows import layout_of, pack_row

FORMAT = 8  # of the packed files; older ones are refused
CHUNK_ROWS = 256
_BATCH_ROWS = 32
_EVENT = pyarrow.struct([("tag", pyarrow.string()), ("start_s", pyarrow.float64()), ("end_s", pyarrow.float64())])
_HEARD = pyarrow.struct([("ids", pyarrow.list_(pyarrow.int32())), ("heard_s", pyarrow.float64())])
SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()), ("text", pyarrow.string()), ("speaker", pyarrow.string()), ("language", pyarrow.string()),
        ("target_text", pyarrow.string()),
        ("target_ids", pyarrow.list_(pyarrow.int32())), ("duration_s", pyarrow.float32()),
        ("utterance_tokens", pyarrow.int32()), ("row_tokens", pyarrow.int32()),
        ("events", pyarrow.list_(_EVENT)), ("heard", pyarrow.list_(_HEARD)), ("audio", pyarrow.string()),
        ("mel", pyarrow.large_binary()), ("mel_start", pyarrow.int32()),
    ]
)  # fmt: skip
INDEX_SCHEMA = pyarrow.schema(
    [("id", pyarrow.string()), ("language", pyarrow.string())]
    + [(f"{name}_tokens", pyarrow.int32()) for name in ("utterance", "row", "target")]
)


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of the manifest, including rejected rows."""

    number: int
    entries: list[ManifestRow | Rejected]


def chunks(entries: Iterable[ManifestRow | Rejected], rows: int = CHUNK_ROWS) -> Iterator[Chunk]:
    """All entries, `rows` at a time."""
    waiting, number = [], 0
    for entry in entries:
        waiting.append(entry)
        if len(waiting) == rows:
            yield Chunk(number, waiting)
            waiting, number = [], number + 1
    if waiting:
        yield Chunk(number, waiting)


def pack_chunks(
    parts: Iterable[Chunk], config: PackConfig, folder: Path, base: Path, processes: int, on_chunk: Callable[[int, bool], None]
) -> None:
    """Pack every unfinished chunk into `folder`. Calls `on_chunk(rows, fresh)` for each finished chunk.

    Raises EvoxtralError when a process was killed; finished chunks stay, and `--resume` continues.
    """
    (folder / "shards").mkdir(exist_ok=True)
    missing = _missing(parts, folder, on_chunk)
    if processes == 1:
        worker = _Worker(config, folder, base)
        for chunk in missing:
            worker.pack(chunk)
            on_chunk(len(chunk.entries), True)
        return
    with worker_pool(processes, folder, _start, config, folder, base) as pool:
        running: dict = {}
        for chunk in missing:
            running[pool.submit(_pack, chunk)] = len(chunk.entries)
            if len(running) > processes:  # one chunk waits, so that no process does; no more are kept in memory
                _finish_some(running, on_chunk)
        while running:
            _finish_some(running, on_chunk)


def _missing(parts: Iterable[Chunk], folder: Path, on_chunk: Callable[[int, bool], None]) -> Iterator[Chunk]:
    for chunk in parts:
        if _record(folder, chunk.number).is_file():
            on_chunk(len(chunk.entries), False)
        else:
            yield chunk


def _finish_some(running: dict, on_chunk: Callable[[int, bool], None]) -> None:
    for done in wait(running, return_when=FIRST_COMPLETED).done:
        rows = running.pop(done)
        done.result()
        on_chunk(rows, True)


_worker: "_Worker | Exception | None" = None


def _start(config: PackConfig, folder: Path, base: Path) -> None:
    """Runs once per process. `_pack` raises its error in the parent: raised here, it would print a traceback and break the
    pool."""
    global _worker
    try:
        _worker = _Worker(config, folder, base)
    except Exception as error:  # noqa: BLE001 - raised by _pack
        _worker = error


def _pack(chunk: Chunk) -> None:
    if isinstance(_worker, Exception):
        raise _worker
    _worker.pack(chunk)


class _Worker:
    """The state that a process needs to pack chunks."""

    def __init__(self, config: PackConfig, folder: Path, base: Path):
        self._config, self._folder, self._family = config, folder, open_family(base)
        self._layout = layout_of(config, self._family)

    def pack(self, chunk: Chunk) -> None:
        """Write the chunk's shards, then its record. Shards without a record do not count."""
        folder = self._folder / "shards"
        counts, unlabelled, rejected, digest = dict.fromkeys(SPLITS, 0), 0, [], hashlib.sha256()
        waiting: dict[str, list[dict]] = {split: [] for split in SPLITS}
        with disk_errors(folder), _ShardWriter(folder, chunk.number) as shards:
            for entry in chunk.entries:
                if isinstance(entry, Rejected):
                    rejected.append(entry)
                    continue
                try:
                    packed = pack_row(entry, self._config, self._folder, self._family)
                except RowError as error:
                    rejected.append(Rejected.of(self._config.manifest, entry.line, entry.id, error))
                    continue
                counts[entry.split] += 1
                unlabelled += entry.text is None
                described = {key: value for key, value in packed.items() if key not in ("mel", "audio")}
                digest.update(json.dumps([entry.split, described], sort_keys=True).encode("utf-8"))
                digest.update(packed["mel"])
                waiting[entry.split].append(packed)
                if len(waiting[entry.split]) == _BATCH_ROWS:
                    shards.write(entry.split, waiting[entry.split])
                    waiting[entry.split] = []
            for split, rows in waiting.items():
                if rows:
                    shards.write(split, rows)
        record = {
            "layout": self._layout.record(),
            "rows": counts,
            "unlabelled": unlabelled,
            "rejected": [asdict(each) for each in rejected],
            "fingerprint": digest.hexdigest(),
        }
        write_atomic(_record(self._folder, chunk.number), json.dumps(record, ensure_ascii=False) + "\n")


class _ShardWriter:
    """The shards of one chunk, opened when a split gets its first row."""

    def __init__(self, folder: Path, number: int):
        self._folder, self._number = folder, number
        self._open: dict[str, tuple] = {}

    def write(self, split: str, rows: list[dict]) -> None:
        if split not in self._open:
            file = pyarrow.OSFile(str(self._folder / shard_name(self._number, split)), "wb")
            self._open[split] = (file, pyarrow.ipc.new_stream(file, SCHEMA))
        self._open[split][1].write_batch(pyarrow.RecordBatch.from_pylist(rows, schema=SCHEMA))

    def __enter__(self) -> "_ShardWriter":
        return self

    def __exit__(self, *_) -> None:
        for file, writer in self._open.values():
            writer.close()
            file.close()


def shard_name(number: int, split: str) -> str:
    return f"{number:05d}-{split}.arrow"


def _record(folder: Path, number: int) -> Path:
    return folder / "shards" / f"{number:05d}.json"


@dataclass(frozen=True)
class PackSummary:
    """`unlabelled`: how many of the rows have no text. `shards`: split -> [[file name, rows], …]. `rejected` in the manifest's
    order."""

    layout: dict
    rows: dict[str, int]
    unlabelled: int
    shards: dict[str, list[tuple[str, int]]]
    rejected: list[Rejected]
    fingerprint: str


def finish(folder: Path) -> PackSummary:
    """Once every chunk is finished: count the rows, and write the index of each split."""
    digest, unlabelled, rejected = hashlib.sha256(), 0, []
    shards: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    for number, path in enumerate(sorted((folder / "shards").glob("*.json"), key=lambda each: int(each.stem))):
        record = read_record(path)
        digest.update(record["fingerprint"].encode())
        unlabelled += record["unlabelled"]
        rejected += [Rejected(**each) for each in record["rejected"]]
        for split, count in record["rows"].items():
            if count:
                shards[split].append((shard_name(number, split), count))
    for split, names in shards.items():
        if names:
            _write_index(folder, split, [folder / "shards" / name for name, _ in names])
    rows = {split: sum(count for _, count in names) for split, names in shards.items()}
    return PackSummary(record["layout"], rows, unlabelled, shards, rejected, digest.hexdigest()[:16])


def _write_index(folder: Path, split: str, shards: list[Path]) -> None:
    path = folder / f"{split}-index.arrow"
    with disk_errors(path), pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, INDEX_SCHEMA) as writer:
        for shard in shards:
            for batch in _batches(shard):
                lengths = batch.column("target_ids").value_lengths()
                columns = [batch.column(name) for name in ("id", "language", "utterance_tokens", "row_tokens")]
                writer.write_batch(pyarrow.RecordBatch.from_arrays([*columns, lengths], schema=INDEX_SCHEMA))


def _batches(shard: Path) -> Iterator[pyarrow.RecordBatch]:
    try:
        yield from pyarrow.ipc.open_stream(pyarrow.memory_map(str(shard)))
    except (OSError, pyarrow.ArrowInvalid) as error:
        what = f"this shard is gone or damaged: {error}"
        raise EvoxtralError(what, where=str(shard), fix="pack again with --overwrite") from None
