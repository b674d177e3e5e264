"""The packed dataset: per split one memory-mapped Arrow file of rows ready to be laid out.

A packed row holds what does not depend on the target's text (mel, utterance and row length) and
the target as text and as token ids; `layouts` turns it into ids and labels when it is read, so
RAFT can put another target on the same clip. Mel is float32, its digital silence left out.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow

from ..config.schema import PackConfig
from ..errors import RowError, UsageError
from ..runs import disk_errors, require_complete
from ..text import tags as tag_text
from ..units import FRAMES_PER_TOKEN, MEL_BINS, SAMPLE_RATE_HZ, samples_to_tokens
from . import layouts
from .audio import read_audio
from .clock import Clock
from .features import log_mel, restore_silence, trim_silence
from .manifest import ManifestRow, Rejected
from .scripts import SPLITS
from .timing import events_of, timed_target

FORMAT = 2  # of the packed files; older ones are refused
_EVENT = pyarrow.struct([("tag", pyarrow.string()), ("start_s", pyarrow.float64()), ("end_s", pyarrow.float64())])
_SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()), ("text", pyarrow.string()), ("target_text", pyarrow.string()),
        ("target_ids", pyarrow.list_(pyarrow.int32())), ("duration_s", pyarrow.float32()),
        ("utterance_tokens", pyarrow.int32()), ("row_tokens", pyarrow.int32()),
        ("events", pyarrow.list_(_EVENT)), ("mel", pyarrow.large_binary()), ("mel_start", pyarrow.int32()),
    ]
)  # fmt: skip


def target_text(text: str, target: str) -> str:
    """What the model is to write: "[sighs] Oh. [pause] No." -> tags "[sighs] [pause]",
    text "Oh. No.", tagged_text unchanged but for its spaces."""
    if target == "tags":
        return tag_text.format_tags(tag_text.find_tags(text))
    if target == "text":
        return tag_text.strip_tags(text)
    return " ".join(f"[{piece.value}]" if piece.kind == "tag" else piece.value for piece in tag_text.parse(text))


def encode_target(tokenizer, text: str) -> list[int]:
    """Token ids without BOS and EOS; "" is no token at all, so that a clip without tags is EOS alone."""
    return tokenizer.encode(text, bos=False, eos=False) if text else []


def encode_piece(tokenizer, text: str) -> list[int]:
    """A word or tag in the base model's streaming form: with the space that stands before it."""
    return tokenizer.encode(f" {text}", bos=False, eos=False)


def text_tokenizer(processor):
    """mistral-common's tokenizer inside the processor: ids in, ids out, no template."""
    return processor.tokenizer.tokenizer.instruct_tokenizer.tokenizer


@dataclass(frozen=True)
class Prepared:
    """A manifest row that can be packed: mono float32 `samples` at 16 kHz, and its columns but the mel."""

    samples: np.ndarray
    columns: dict


def prepare_row(row: ManifestRow, config: PackConfig, processor, clock: Clock) -> Prepared:
    """Read the audio, tokenise the target, see that it fits. Raises RowError with the reason."""
    samples = read_audio(row.audio, config.audio.max_seconds)
    target = target_text(row.text, config.target)
    if config.target == "text" and not target:
        raise RowError("no words to learn: the text holds tags alone", fix="use target: tags, or leave the row out")
    utterance_tokens = samples_to_tokens(len(samples))
    row_tokens = layouts.clock_tokens(
        config.layout.kind, clock, len(samples), utterance_tokens, config.audio.prepad_samples, config.layout.room_tokens
    )
    tokenizer = text_tokenizer(processor)
    if config.layout.kind == "aligned":
        pieces = [(encode_piece(tokenizer, text), heard_s) for text, heard_s in timed_target(row, config.target)]
        target_ids = layouts.stream_ids(clock, pieces, utterance_tokens, row_tokens)
    else:
        target_ids = encode_target(tokenizer, target)
    layouts.lay_out(config.layout.kind, clock, utterance_tokens, row_tokens, target_ids)  # refuses what does not fit
    columns = {
        "id": row.id, "text": row.text, "target_text": target, "target_ids": target_ids,
        "duration_s": len(samples) / SAMPLE_RATE_HZ, "utterance_tokens": utterance_tokens, "row_tokens": row_tokens,
        "events": [dict(zip(("tag", "start_s", "end_s"), event, strict=True)) for event in events_of(row)],
    }  # fmt: skip
    return Prepared(samples, columns)


def pack_row(row: ManifestRow, config: PackConfig, processor, clock: Clock) -> dict:
    """All columns of a packed row, keys as in the schema. Raises RowError."""
    prepared = prepare_row(row, config, processor, clock)
    mel = log_mel(prepared.samples, prepared.columns["row_tokens"], processor.feature_extractor, clock)
    kept, start = trim_silence(mel)
    return prepared.columns | {"mel": np.ascontiguousarray(kept, np.float32).tobytes(), "mel_start": start}


def write_splits(
    folder: Path, rows: Iterable[ManifestRow], pack: Callable[[ManifestRow], dict], manifest: Path
) -> tuple[dict[str, int], list[Rejected], str]:
    """Pack `rows` one by one. Returns (rows per split, rejected rows, fingerprint of the contents).

    Memory does not grow with the number of clips: each row goes to disk before the next is read.
    """
    counts, rejected, digest = dict.fromkeys(SPLITS, 0), [], hashlib.sha256()
    with disk_errors(folder):
        files = {split: pyarrow.OSFile(str(folder / f"{split}.arrow"), "wb") for split in SPLITS}
        writers = {split: pyarrow.ipc.new_stream(file, _SCHEMA) for split, file in files.items()}
        for row in rows:
            try:
                packed = pack(row)
            except RowError as error:
                rejected.append(Rejected(str(manifest), row.line, row.id, str(error)))
                continue
            counts[row.split] += 1
            writers[row.split].write_batch(pyarrow.RecordBatch.from_pylist([packed], schema=_SCHEMA))
            described = {key: value for key, value in packed.items() if key != "mel"}
            digest.update(json.dumps([row.split, described], sort_keys=True).encode("utf-8"))
            digest.update(packed["mel"])
        for split in SPLITS:
            writers[split].close()
            files[split].close()
    return counts, rejected, digest.hexdigest()[:16]


@dataclass(frozen=True)
class Example:
    """One packed row. `mel` is read with `mel_of`; ids and labels come from `layouts`. `events`: the
    manifest's, [] where there are none."""

    id: str
    text: str
    target_text: str
    target_ids: list[int]
    utterance_tokens: int
    row_tokens: int
    events: list[dict]

    @property
    def timed_events(self) -> list[dict] | None:
        """The events, where every tag of the text has one."""
        return self.events if len(self.events) == len(tag_text.find_tags(self.text)) else None


def has_split(folder: Path, split: str) -> bool:
    """Whether a packed dataset holds any row of `split`. Raises UsageError when it is not packed yet."""
    require_complete(folder, "data pack", "evoxtral data pack configs/pack.yaml")
    return json.loads((folder / "dataset.json").read_text("utf-8"))["rows"].get(split, 0) > 0


class PackedSplit:
    """A split of a packed dataset, memory-mapped. `fingerprint` is the dataset's.

    The files are plain Arrow streams: `datasets.Dataset.from_file` opens them too.
    """

    def __init__(self, folder: Path, split: str):
        self.fingerprint = require_complete(folder, "data pack", "evoxtral data pack configs/pack.yaml")
        self.folder, self.split = folder, split
        content = json.loads((folder / "dataset.json").read_text("utf-8"))
        if content.get("format") != FORMAT:
            raise UsageError(
                "was packed by another version of evoxtral",
                where=str(folder),
                fix="pack it again: evoxtral data pack … --overwrite",
            )
        self.layout: str = content["layout"]
        self.target: str = content["target"]
        self.room_tokens: int = content["room_tokens"]
        self.processor_fingerprint: str = content["processor_fingerprint"]
        if content["rows"].get(split, 0) == 0:
            filled = [f"{name} ({count})" for name, count in content["rows"].items() if count]
            raise UsageError(f"the split {split!r} has no rows", where=str(folder), fix=f"splits with rows: {', '.join(filled)}")
        self._rows = pyarrow.ipc.open_stream(pyarrow.memory_map(str(folder / f"{split}.arrow"))).read_all()
        columns = [name for name in _SCHEMA.names if name not in ("mel", "mel_start", "duration_s")]
        self.examples = [Example(**row) for row in self._rows.select(columns).to_pylist()]
        self.index_of = {example.id: index for index, example in enumerate(self.examples)}

    def __len__(self) -> int:
        return len(self.examples)

    def mel_of(self, index: int, tokens: int) -> np.ndarray:
        """The first `tokens` × 8 mel frames of a row: float32 [128, 8 × tokens]."""
        kept = np.frombuffer(self._rows["mel"][index].as_buffer(), np.float32).reshape(MEL_BINS, -1)
        return restore_silence(kept, self._rows["mel_start"][index].as_py(), tokens * FRAMES_PER_TOKEN)
