"""Reading a packed dataset: only row lengths are loaded; the rest is memory-mapped.

The shards are plain Arrow streams: `datasets.Dataset.from_file` opens them too.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from ..errors import EvoxtralError, UsageError
from ..families.base import ClipSize, Layout, TimedPieces
from ..families.checkpoint import FAMILIES, family_named
from ..reading import read_record
from ..runs import require_complete
from ..text import tags as tag_text
from ..units import MEL_BINS
from .writer import FORMAT

_OPEN_SHARDS = 256
_COLUMNS = ("id", "text", "speaker", "language", "target_text", "target_ids", "utterance_tokens", "row_tokens", "events")


@dataclass(frozen=True)
class Example:
    """One packed row. `mel` is read with `mel_of`; ids and labels come from the layout. An unlabelled clip has neither text nor
    target. `events`: the manifest's, [] if there are none."""

    id: str
    text: str | None
    speaker: str | None
    language: str | None
    target_text: str | None
    target_ids: list[int] | None
    utterance_tokens: int
    row_tokens: int
    events: list[dict]

    @property
    def labelled(self) -> bool:
        return self.text is not None

    @property
    def timed_events(self) -> list[dict] | None:
        """The events, if every tag of the text has one."""
        return self.events if self.labelled and len(self.events) == len(tag_text.find_tags(self.text)) else None


def require_packed(folder: Path) -> str:
    """The fingerprint of a packed dataset. Raises UsageError when it is not packed yet."""
    return require_complete(folder, "data pack", "evoxtral data pack …")


def has_split(folder: Path, split: str) -> bool:
    """Whether a packed dataset has any row of `split`. Raises UsageError when it is not packed yet."""
    require_packed(folder)
    return _Description.of(folder).rows.get(split, 0) > 0


class _Description(BaseModel):
    """The fields of `dataset.json` that stages need; the family's layout needs more of them."""

    model_config = ConfigDict(extra="allow")
    format: int
    family: Literal[*FAMILIES]
    room_tokens: PositiveInt
    target: Literal["tags", "text", "tagged_text"]
    prepad_samples: NonNegativeInt
    tags: list[str]
    processor_fingerprint: str
    rows: dict[str, NonNegativeInt]
    shards: dict[str, list[tuple[str, PositiveInt]]]

    @classmethod
    def of(cls, folder: Path) -> "_Description":
        content = read_record(folder / "dataset.json")
        if content["format"] != FORMAT:
            fix = "pack it again: evoxtral data pack … --overwrite"
            raise UsageError("was packed by another version of evoxtral", where=str(folder), fix=fix)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            place, what = ".".join(map(str, error.errors()[0]["loc"])), error.errors()[0]["msg"]
            raise _damaged(folder / "dataset.json", f"{place}: {what}") from None


class PackedSplit:
    """A split of a packed dataset, memory-mapped. `fingerprint` is the dataset's.

    `utterance_tokens`, `row_tokens` and `target_tokens` (int32 arrays) contain the lengths of all rows, `labelled` (a bool array)
    whether each has a text; a row itself is read when it is taken from `examples`. `tags`: all that exist for this dataset,
    found in it or not.
    """

    def __init__(self, folder: Path, split: str):
        self.fingerprint = require_packed(folder)
        self.folder, self.split = folder, split
        content = _Description.of(folder)
        self._family = family_named(content.family)
        try:
            self.layout: Layout = self._family.restore_layout(content.model_dump())
        except (KeyError, TypeError) as error:
            raise _damaged(folder / "dataset.json", f"layout: {error}") from None
        self.target: str = content.target
        self.prepad_samples: int = content.prepad_samples
        self.tags: list[str] = content.tags
        self.processor_fingerprint: str = content.processor_fingerprint
        if content.rows.get(split, 0) == 0:
            filled = [f"{name} ({count})" for name, count in content.rows.items() if count]
            raise UsageError(f"the split {split!r} has no rows", where=str(folder), fix=f"splits with rows: {', '.join(filled)}")
        self._index = _read_stream(folder / f"{split}-index.arrow")
        self.utterance_tokens, self.row_tokens, self.target_tokens = (
            self._index[f"{name}_tokens"].fill_null(0).to_numpy() for name in ("utterance", "row", "target")
        )
        self.labelled: np.ndarray = self._index["target_tokens"].is_valid().to_numpy()
        self._shards = _ShardReader(folder / "shards", content.shards.get(split, []))
        if not len(self._index) == content.rows[split] == len(self._shards):
            what = f"split {split} has {content.rows[split]} rows, {len(self._index)} in its index, {len(self._shards)} in shards"
            raise _damaged(folder / "dataset.json", what)
        self.examples: Sequence[Example] = _Examples(self._shards)

    def __len__(self) -> int:
        return len(self._index)

    @cached_property
    def index_of(self) -> dict[str, int]:
        """id -> place in the split."""
        return {identity: index for index, identity in enumerate(self._index["id"].to_pylist())}

    def labelled_examples(self) -> Iterator[Example]:
        """The rows that have a text, in order."""
        return (example for example in self.examples if example.labelled)

    def describe_labelled(self) -> str:
        """The clips that have a reference: "20 of split raft; 4 more have no text". Raises UsageError if there are none."""
        unlabelled = int((~self.labelled).sum())
        if unlabelled == len(self):
            what = f"none of the {unlabelled:,} clips of split {self.split!r} has a text to compare with"
            fix = "use another split; clips without text are for `evoxtral raft` alone"
            raise UsageError(what, where=str(self.folder), fix=fix)
        return f"{len(self) - unlabelled} of split {self.split}" + (f"; {unlabelled} more have no text" if unlabelled else "")

    def clip(self, index: int) -> ClipSize:
        """The sizes of a clip, without reading its row."""
        language = self._index["language"][index].as_py()
        return ClipSize(int(self.utterance_tokens[index]), int(self.row_tokens[index]), language)

    def mel_of(self, index: int, tokens: int) -> np.ndarray:
        """What the first `tokens` positions of a row are made from: float32 [128, frames]. Raises EvoxtralError when a frame is
        not finite."""
        table, row = self._shards.find(index)
        kept = np.frombuffer(table["mel"][row].as_buffer(), np.float32).reshape(MEL_BINS, -1)
        if not np.isfinite(kept).all():
            raise self.not_finite(index)
        frames = self.layout.mel_frames(self.clip(index), tokens)
        return self._family.restore_silence(kept, table["mel_start"][row].as_py(), frames)

    def not_finite(self, index: int) -> EvoxtralError:
        """The error for features that are NaN or infinite."""
        return EvoxtralError(
            f"the audio of clip {self.examples[index].id!r} gives features that are not finite (NaN or infinite)",
            where=str(self.folder),
            fix="listen to it, correct it or leave it out of the manifest, and pack again with --overwrite",
        )

    def audio_of(self, index: int) -> Path:
        """The clip's audio file."""
        table, row = self._shards.find(index)
        return (self.folder / table["audio"][row].as_py()).resolve()

    def heard_of(self, index: int) -> TimedPieces:
        """The timed pieces of the target; [] if the layout has no times."""
        table, row = self._shards.find(index)
        return [(piece["ids"], piece["heard_s"]) for piece in table["heard"][row].as_py()]


class _ShardReader:
    """The shards of a split as one sequence of rows; the last few hundred used shards stay mapped."""

    def __init__(self, folder: Path, names: list[tuple[str, int]]):
        self._folder, self.names = folder, [name for name, _ in names]
        self._ends = list(accumulate(count for _, count in names))
        self._open: OrderedDict[str, pyarrow.Table] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def table(self, number: int) -> pyarrow.Table:
        name = self.names[number]
        if name not in self._open:
            self._open[name] = _read_stream(self._folder / name)
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return self._open[name]

    def tables(self) -> Iterator[pyarrow.Table]:
        """All shards in order; none stays mapped."""
        return (_read_stream(self._folder / name) for name in self.names)

    def find(self, index: int) -> tuple[pyarrow.Table, int]:
        """The shard that contains row `index` of the split, and the row's place in it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        return self.table(number), index - (self._ends[number - 1] if number else 0)


class _Examples(Sequence):
    """The rows without their mel, read on access."""

    def __init__(self, shards: _ShardReader):
        self._shards = shards

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> Example:
        table, row = self._shards.find(index)
        return Example(**{name: table[name][row].as_py() for name in _COLUMNS})

    def __iter__(self) -> Iterator[Example]:
        for table in self._shards.tables():
            for row in table.select(_COLUMNS).to_pylist():
                yield Example(**row)


def _read_stream(path: Path) -> pyarrow.Table:
    try:
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, what: str) -> EvoxtralError:
    fix = "pack it again: evoxtral data pack … --overwrite"
    return EvoxtralError(f"this file of a packed dataset is gone or cut short, or was edited: {what}", where=str(path), fix=fix)
