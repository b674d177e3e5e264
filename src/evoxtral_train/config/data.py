"""The configs of `evoxtral data …`."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from ..units import PREPAD_SAMPLES
from .sections import BatchTokens, Model, Range, Section, Split, Tags, Tracking
from .transcription import Segmentation


class Source(Section):
    """Where the rows come from."""

    kind: Literal["jsonl", "csv", "folder", "parquet", "dataset", "hub", "recordings"] = Field(
        description="jsonl | csv (or .tsv) | folder (audio beside .txt or .json) | parquet | dataset | hub | "
        "recordings (audio of any length, without transcripts, cut at silences)."
    )
    path: str = Field(description="File, folder or hub id.")
    name: str | None = Field(None, description="Configuration of a hub dataset.")
    revision: str | None = Field(None, description="Revision of a hub dataset. null: the latest.")
    splits: dict[str, Split] | None = Field(None, description="The source's split: ours (dev: validation). null: none.")
    streaming: bool = Field(True, description="Read a hub dataset as it arrives, without downloading all of it first.")
    max_rows: PositiveInt | None = Field(None, description="Stop after this many rows. null: read all.")
    cut: Segmentation = Segmentation()


class Columns(Section):
    """The source's column for each part of a manifest row. null: it has none."""

    audio: str = Field("audio", description="Path relative to the source, or the bytes.")
    text: str | None = Field("text", description="Transcript with its tags. null: no clip has one; RAFT alone can use them.")
    id: str | None = Field(None, description="Unique id. null: made from the row's place.")
    split: str | None = Field(None, description="Split of the row.")
    speaker: str | None = Field(None, description="Who speaks.")
    license: str | None = Field(None, description="License of the row.")
    language: str | None = Field(None, description="Language spoken, as a code (de, de-DE, deu) or a name (German).")
    words: str | None = Field(None, description="Word times, [{word, start_s, end_s}], also as JSON in a cell.")
    events: str | None = Field(None, description="Tag times, [{tag, start_s, end_s}], also as JSON in a cell.")
    plain_text: str | None = Field(None, description="Transcript without tags; its words must be those of `text`.")
    tags_used: str | None = Field(None, description="List of tags; they must be those of `text`.")


class LeadingTag(Section):
    """A column that says how the whole clip is spoken; its tag then begins the text."""

    column: str = Field(description="Name of the column.")
    tags: dict[str, str | None] = Field(description="The column's value: tag. null: no tag.")


class Transcript(Section):
    """How the source's events become tags in brackets."""

    event_pattern: str | None = Field(None, description="Regular expression with one group, around an event's name: '<(\\w+)>'.")
    replace: dict[str, str | None] = Field({}, description='Symbol: name, such as "😂": laughs. null leaves a symbol out.')
    leading_tag: LeadingTag | None = None
    lower_case: bool = Field(False, description="Lower the case, for transcripts in capitals.")
    missing: Literal["reject", "raft"] = Field(
        "reject", description="A row whose transcript is empty: reject | raft (keep it without text, in the split raft)."
    )

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
    """How clips without a split get one; each split gets its share of every tag."""

    keep_given: bool = Field(True, description="Keep the source's own splits. false: deal out every clip.")
    shares: dict[Split, float] = Field(
        {"train": 0.8, "validation": 0.1, "test": 0.1}, description="Share of the clips for each split; SFT leaves out `raft`."
    )
    group_by: list[Literal["speaker", "sentence"]] = Field(
        ["sentence"], description="Clips of one speaker, of one sentence, or of either stay in one split."
    )
    seed: int = Field(0, ge=0, description="Random seed of the splits.")

    @field_validator("shares")
    @classmethod
    def _shares_of_one(cls, shares: dict[str, float]) -> dict[str, float]:
        if any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
            raise ValueError("the shares must not be negative and must add up to 1")
        return shares


class ImportConfig(Section):
    """`evoxtral data import`"""

    output: Path = Field(description="Folder for manifest.jsonl, rejected.jsonl, and audio/ where the source holds bytes.")
    source: Source
    columns: Columns = Columns()
    transcript: Transcript = Transcript()
    tags: Tags = Tags()
    license: str | None = Field(None, description="License written into every row; columns.license reads one for each row.")
    language: str | None = Field(None, description="Language of every row that names none: ISO 639-1, such as en.")
    accept_license: str | None = Field(None, description="Repeat a non-commercial license here to accept it.")
    deal: Deal = Deal()
    tracking: Tracking = Tracking()

    @property
    def has_texts(self) -> bool:
        return self.columns.text is not None and self.source.kind != "recordings"

    @model_validator(mode="after")
    def _nothing_needs_a_missing_text(self) -> "ImportConfig":
        for name in ("plain_text", "tags_used", "words", "events"):
            if getattr(self.columns, name) and not self.has_texts:
                raise ValueError(f"columns.{name} describes a transcript, but this source has none: set it to null")
        return self


class Clips(Section):
    """How many clips each split gets. Held-out splits share no sentence with the others."""

    train: PositiveInt = Field(description="Clips for SFT.")
    validation: PositiveInt = Field(description="Clips that choose the checkpoint.")
    test: PositiveInt = Field(description="Clips for the evaluation.")
    raft: int = Field(0, ge=0, description="Clips that SFT leaves to RAFT (docs/studies/raft.md).")


class ElevenLabs(Section):
    """Used by `engine: elevenlabs`. The key comes from ELEVENLABS_API_KEY."""

    model: str = Field("eleven_v3", description="Speech model. [ours: the one that acts tags]")
    output_format: str = Field("mp3_44100_128", description="Audio format; mp3_44100_192, pcm_44100 … where your plan has them.")
    max_characters: int = Field(0, ge=0, description="Most characters to pay for in one run. --dry-run shows how many it needs.")
    usd_per_1000_characters: PositiveFloat | None = Field(None, description="Your plan's price; --dry-run then shows the cost.")
    concurrent_requests: PositiveInt = Field(4, description="Requests at once, as your plan allows.")
    max_retries: int = Field(5, ge=0, description="Retries of a request that failed, after 1, 2, 4 … seconds.")
    timeout_s: PositiveFloat = Field(120.0, description="Seconds to wait for an answer.")
    paid_audio: Path = Field(Path("data/elevenlabs"), description="Folder that keeps the paid audio; no run removes it.")
    base_url: str | None = Field(None, description="Address of the service. null: ElevenLabs itself.")


class SynthConfig(Section):
    """`evoxtral data synth`"""

    output: Path = Field(description="Folder for manifest.jsonl and audio/.")
    engine: Literal["espeak", "elevenlabs"] = Field(
        "espeak", description="Speech engine: espeak (no key, exact times) | elevenlabs (real voices, paid)."
    )
    grammar: Path = Field(Path("data/scripts/grammar.yaml"), description="Grammar that scripts are drawn from.")
    scripts: Path | None = Field(None, description="Your own JSONL of {text} or {id, text, split}. null: use the grammar.")
    tags: Tags = Tags()
    clips: Clips
    untagged_share: float = Field(0.3, ge=0, le=1, description="Share of clips without tags. [ours: 0.25 to 0.35 is usual]")
    voices: list[str] | None = Field(None, description="Voices, dealt in turn. null: all six of espeak-ng.")
    rates_wpm: Range[PositiveInt] = Field((160, 190), description="Slowest and fastest speech, in words per minute; espeak only.")
    elevenlabs: ElevenLabs = ElevenLabs()
    seed: int = Field(0, ge=0, description="Random seed of the scripts and voices.")
    processes: PositiveInt | None = Field(None, description="Processes that speak at once; espeak only. null: one for each core.")
    tracking: Tracking = Tracking()


class Audio(Section):
    """How long a clip may be, and the silence before it."""

    max_seconds: PositiveFloat = Field(30.0, description="Longer clips are rejected, never cut.")
    prepad_samples: int = Field(
        PREPAD_SAMPLES, ge=0, description="Pad shorter clips with zeros to this many samples at 16 kHz; 240480 are 15.03 s. [RL]"
    )


class Layout(Section):
    """When the target is written, while the audio is heard."""

    kind: str | None = Field(
        None,
        description="Realtime: deferred (after the clip) | packed (after the prompt) | aligned (by word; needs times). "
        "Offline: transcription_request. null: the family's default. [measured: docs/studies/layouts.md]",
    )
    room_tokens: PositiveInt | None = Field(
        None,
        description="Tokens kept for the target and EOS. null: Realtime 65, positions of 80 ms that the audio cache covers too; "
        "offline 256. [RL: 64 new tokens and EOS]",
    )


CheckKind = Literal[
    "clipped", "silent", "too_little_speech", "too_much_speech", "duplicate_audio", "near_duplicate_text",
    "sentence_in_two_splits", "speaker_in_two_splits",
]  # fmt: skip


class Check(Section):
    """What `data check` reports beside what packing rejects."""

    clipped_share: float = Field(0.01, ge=0, le=1, description="Most samples that may be clipped, as a share of the clip.")
    silent_dbfs: float = Field(-50.0, description="A clip is silent when its loudest 20 ms stay below this level, in dBFS.")
    letters_per_second: Range[PositiveFloat] = Field(
        (3.0, 30.0), description="Slowest and fastest plausible speech. [ours: slower or faster than anybody speaks]"
    )
    seconds_per_tag: float = Field(5.0, ge=0, description="Extra seconds that each tag, such as a laugh or a pause, may take.")
    near_duplicate: float = Field(0.9, gt=0, le=1, description="Report texts at least this similar, as a share from 0 to 1.")
    allow: list[CheckKind] = Field([], description="Kinds of findings to show without failing (docs/data.md).")


class PackConfig(Section):
    """`evoxtral data check` and `evoxtral data pack`"""

    manifest: Path = Field(description="Manifest to pack.")
    output: Path = Field(description="Folder for the packed dataset.")
    base: str = Field(description="Hub id or folder with the tokenizer and feature extractor.")
    revision: str | None = Field(None, description="Hub branch, tag or commit. null: the latest.")
    family: str | None = Field(
        None, description="For dry runs without the checkpoint, which says it itself: voxtral_realtime | voxtral."
    )
    audio: Audio = Audio()
    target: Literal["tags", "text", "tagged_text"] | None = Field(
        None,
        description="tags | text | tagged_text: what the model learns to write. null: Realtime tags, offline tagged_text. "
        "[RL]",
    )
    language: str | None = Field(
        None, description="Offline: language in the prompt of rows that name none, such as en. null: no language."
    )
    layout: Layout = Layout()
    tags: Tags = Tags()
    check: Check = Check()
    processes: PositiveInt | None = Field(None, description="Processes that pack at once. null: one for each core.")
    tracking: Tracking = Tracking()


class StatsConfig(Section):
    """`evoxtral data stats`"""

    manifest: Path = Field(description="Manifest to describe.")
    output: Path = Field(description="Folder for report.html, stats.json and pictures.")
    tags: Tags = Tags()
    tracking: Tracking = Tracking()


class AlignConfig(Section):
    """`evoxtral data align`"""

    manifest: Path = Field(description="Manifest with tagged transcripts; times are optional.")
    output: Path = Field(description="Folder for manifest.jsonl with `words` and `events`, and rejected.jsonl.")
    model: Model
    max_seconds: PositiveFloat = Field(30.0, description="Longer clips are rejected.")
    min_heard_share: float = Field(
        0.5, ge=0, le=1, description="Reject a row when the base hears a smaller share of its words: the text may be another's."
    )
    keep_given_times: bool = Field(True, description="Keep times that a row has. false: replace them, and report the difference.")
    batch_tokens: BatchTokens = 65_536
    tags: Tags = Tags()
    tracking: Tracking = Tracking()
