"""The configs of `evoxtral data …`."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from ..units import PREPAD_SAMPLES
from .sections import Model, Range, Section, Split, Tags, Tracking


class Source(Section):
    """Where rows come from. `splits`: the source's split -> ours; None: the source has no splits."""

    kind: Literal["jsonl", "csv", "folder", "parquet", "dataset", "hub"]
    path: str
    name: str | None = None
    revision: str | None = None
    splits: dict[str, Split] | None = None
    streaming: bool = True
    max_rows: PositiveInt | None = None


class Columns(Section):
    """The source's names for what a manifest row holds; None: it has no such column."""

    audio: str = "audio"
    text: str = "text"
    id: str | None = None
    split: str | None = None
    speaker: str | None = None
    license: str | None = None
    words: str | None = None
    events: str | None = None
    plain_text: str | None = None
    tags_used: str | None = None


class LeadingTag(Section):
    """A column that says how the whole clip is spoken; its values -> the tag that the text begins with."""

    column: str
    tags: dict[str, str | None]


class Transcript(Section):
    """From the source's way of writing events to tags in brackets."""

    event_pattern: str | None = None
    replace: dict[str, str | None] = {}
    leading_tag: LeadingTag | None = None
    lower_case: bool = False

    @field_validator("event_pattern")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
            if groups != 1:
                raise ValueError("it needs exactly one group, around the name of the event")
        return pattern


class Deal(Section):
    """How clips without a split are dealt out."""

    keep_given: bool = True
    shares: dict[Split, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}
    group_by: list[Literal["speaker", "sentence"]] = ["sentence"]
    seed: int = Field(default=0, ge=0)

    @field_validator("shares")
    @classmethod
    def _shares_of_one(cls, shares: dict[str, float]) -> dict[str, float]:
        if any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
            raise ValueError("the shares must not be negative and must add up to 1")
        return shares


class ImportConfig(Section):
    """`evoxtral data import`"""

    output: Path
    source: Source
    columns: Columns = Columns()
    transcript: Transcript = Transcript()
    tags: Tags = Tags()
    license: str | None = None
    accept_license: str | None = None
    deal: Deal = Deal()
    tracking: Tracking = Tracking()


class Clips(Section):
    train: PositiveInt
    validation: PositiveInt
    test: PositiveInt
    raft: int = Field(default=0, ge=0)


class ElevenLabs(Section):
    """`engine: elevenlabs`. The key comes from ELEVENLABS_API_KEY."""

    model: str = "eleven_v3"
    output_format: str = "mp3_44100_128"
    max_characters: int = Field(default=0, ge=0)
    usd_per_1000_characters: PositiveFloat | None = None
    concurrent_requests: PositiveInt = 4
    max_retries: int = Field(default=5, ge=0)
    timeout_s: PositiveFloat = 120.0
    paid_audio: Path = Path("data/elevenlabs")
    base_url: str | None = None


class SynthConfig(Section):
    """`evoxtral data synth`"""

    output: Path
    engine: Literal["espeak", "elevenlabs"] = "espeak"
    grammar: Path = Path("data/scripts/grammar.yaml")
    scripts: Path | None = None
    tags: Tags = Tags()
    clips: Clips
    untagged_share: float = Field(default=0.3, ge=0, le=1)
    voices: list[str] | None = None
    rates_wpm: Range[PositiveInt] = (160, 190)
    elevenlabs: ElevenLabs = ElevenLabs()
    seed: int = Field(default=0, ge=0)
    tracking: Tracking = Tracking()


class Audio(Section):
    max_seconds: PositiveFloat = 30.0
    prepad_samples: int = Field(default=PREPAD_SAMPLES, ge=0)


class Layout(Section):
    kind: str | None = None
    room_tokens: PositiveInt = 65


CheckKind = Literal[
    "clipped", "silent", "too_little_speech", "too_much_speech", "duplicate_audio", "near_duplicate_text",
    "sentence_in_two_splits", "speaker_in_two_splits",
]  # fmt: skip


class Check(Section):
    """What `data check` looks for beside what packing rejects, and how much of it is normal."""

    clipped_share: float = Field(default=0.01, ge=0, le=1)
    silent_dbfs: float = -50.0
    letters_per_second: Range[PositiveFloat] = (3.0, 30.0)
    seconds_per_tag: float = Field(default=5.0, ge=0)
    near_duplicate: float = Field(default=0.9, gt=0, le=1)
    allow: list[CheckKind] = []


class PackConfig(Section):
    """`evoxtral data check` and `evoxtral data pack`"""

    manifest: Path
    output: Path
    base: str
    revision: str | None = None
    audio: Audio = Audio()
    target: Literal["tags", "text", "tagged_text"] = "tags"
    layout: Layout = Layout()
    tags: Tags = Tags()
    check: Check = Check()
    processes: PositiveInt | None = None
    tracking: Tracking = Tracking()


class StatsConfig(Section):
    """`evoxtral data stats`"""

    manifest: Path
    output: Path
    tags: Tags = Tags()
    tracking: Tracking = Tracking()


class AlignConfig(Section):
    """`evoxtral data align`"""

    manifest: Path
    output: Path
    model: Model
    max_seconds: PositiveFloat = 30.0
    min_heard_share: float = Field(default=0.5, ge=0, le=1)
    keep_given_times: bool = True
    batch_tokens: PositiveInt = 65_536
    tags: Tags = Tags()
    tracking: Tracking = Tracking()
