"""Turn one manifest row into one packed row.

It contains the data that do not depend on the target's text (mel, utterance and row length), and the target as text and as token
ids. The layout turns it into ids and labels when it is read, so RAFT can put another target on the same clip. Mel is float32,
without digital silence.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config.data import PackConfig
from ..data.audio import read_audio
from ..data.manifest import ManifestRow
from ..data.timing import check_ends, events_of, timed_target
from ..errors import RowError, UsageError
from ..families.base import ClipSize, Family, Layout, encode_piece
from ..text import tags as tag_text
from ..units import SAMPLE_RATE_HZ


def target_text(text: str, target: str) -> str:
    """The text that the model learns to write: "[sighs] Oh. [pause] No." -> tags "[sighs] [pause]",
    text "Oh. No.", tagged_text unchanged except for its spaces."""
    if target == "tags":
        return tag_text.format_tags(tag_text.find_tags(text))
    if target == "text":
        return tag_text.strip_tags(text)
    return " ".join(f"[{piece.value}]" if piece.kind == "tag" else piece.value for piece in tag_text.parse(text))


@dataclass(frozen=True)
class Prepared:
    """A manifest row that can be packed: mono float32 `samples` at 16 kHz, and its columns except the mel."""

    samples: np.ndarray
    columns: dict


def prepare_row(row: ManifestRow, config: PackConfig, family: Family) -> Prepared:
    """Read the audio, tokenise the target, check that it fits. Raises RowError with the reason."""
    samples = read_audio(row.audio, config.audio.max_seconds)
    return Prepared(samples, columns_of(row, len(samples), config, family))


def columns_of(row: ManifestRow, samples: int, config: PackConfig, family: Family) -> dict:
    """The columns of a row except the mel, for a clip of that many `samples`. An unlabelled clip has the same room but no target.
    Raises RowError when the target does not fit."""
    check_ends(row, samples / SAMPLE_RATE_HZ)
    layout = layout_of(config, family)
    clip = layout.measure(samples, config.audio.prepad_samples, row.language or config.language)
    target, target_ids, heard = None, None, []
    if row.text is not None:
        target = target_text(row.text, config.target)
        if config.target == "text" and not target:
            raise RowError("no words to learn: the text contains only tags", fix="use target: tags, or leave the row out")
        if layout.has_times:
            heard = [(encode_piece(family.tokenizer, text), heard_s) for text, heard_s in timed_target(row, config.target)]
        target_ids = layout.target_ids(family.tokenizer, target, heard, clip)
    layout.lay_out(clip, target_ids or [])  # raises if the target does not fit
    return {
        "id": row.id, "text": row.text, "speaker": row.speaker, "language": clip.language,
        "target_text": target, "target_ids": target_ids,
        "duration_s": samples / SAMPLE_RATE_HZ, "utterance_tokens": clip.utterance_tokens, "row_tokens": clip.row_tokens,
        "events": [dict(zip(("tag", "start_s", "end_s"), event, strict=True)) for event in events_of(row)],
        "heard": [{"ids": ids, "heard_s": heard_s} for ids, heard_s in heard],
    }  # fmt: skip


def with_family_defaults(config: PackConfig, family: type[Family]) -> PackConfig:
    """With the family's target and room where the config names none. Raises UsageError for a language that it cannot name."""
    if config.language is not None:
        family.require_named_language()
    layout = config.layout.model_copy(update={"room_tokens": config.layout.room_tokens or family.default_room_tokens})
    return config.model_copy(update={"target": config.target or family.default_target, "layout": layout})


def layout_name(config: PackConfig, family: type[Family]) -> str:
    """Raises UsageError for a layout that the family lacks."""
    name = config.layout.kind or family.default_layout
    if name not in family.layouts:
        what = f"{family.title} has no layout {name!r}"
        raise UsageError(what, where="layout.kind", fix=f"use one of {', '.join(family.layouts)}")
    return name


def layout_of(config: PackConfig, family: Family) -> Layout:
    return family.layout(layout_name(config, type(family)), config.layout.room_tokens)


def pack_row(row: ManifestRow, config: PackConfig, folder: Path, family: Family) -> dict:
    """All columns of a row packed into `folder`, keys as in the schema. Raises RowError."""
    prepared = prepare_row(row, config, family)
    columns, layout = prepared.columns, layout_of(config, family)
    clip = ClipSize(columns["utterance_tokens"], columns["row_tokens"], columns["language"])
    mel = family.mel(prepared.samples, layout.mel_frames(clip, clip.row_tokens))
    if not np.isfinite(mel).all():  # `read_audio` bounds the samples, so this cannot happen; such a row must never be trained on
        raise RowError("the mel of this audio is not finite", fix="export it again")
    kept, start = family.trim_silence(mel)
    audio = os.path.relpath(row.audio.resolve(), folder)
    packed_mel = np.ascontiguousarray(kept, np.float32).tobytes()
    return columns | {"audio": audio, "mel": packed_mel, "mel_start": start}
