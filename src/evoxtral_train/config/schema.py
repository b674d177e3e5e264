"""The schema of every config file: frozen pydantic models, unknown keys forbidden.

The YAML files in `configs/` carry the comments on units and sources. A field that is not
named there takes the default given here, which is the published recipe's where there is one.
"""

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from ..text.tags import canonical
from ..units import PREPAD_SAMPLES

Share = Field(ge=0, lt=1)
Split = Literal["train", "validation", "test", "raft"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Tracking(Section):
    """Weights & Biases. `auto` is online with a key and offline without."""

    project: str = "evoxtral"
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"


class Model(Section):
    base: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = "auto"


AudioCache = Literal["auto", "on", "off"]


class Tags(Section):
    """Which tags there are, and what becomes of others."""

    table: Path = Path("data/tags.yaml")
    map: dict[str, str | None] = {}
    unknown: Literal["error", "keep", "drop"] = "error"

    @field_validator("map")
    @classmethod
    def _canonical_names(cls, names: dict[str, str | None]) -> dict[str, str | None]:
        return {canonical(name): tag and canonical(tag) for name, tag in names.items()}


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
    rates_wpm: tuple[PositiveInt, PositiveInt] = (160, 190)
    elevenlabs: ElevenLabs = ElevenLabs()
    seed: int = Field(default=0, ge=0)
    tracking: Tracking = Tracking()


class Audio(Section):
    max_seconds: PositiveFloat = 30.0
    prepad_samples: int = Field(default=PREPAD_SAMPLES, ge=0)


class Layout(Section):
    kind: Literal["packed", "deferred", "aligned"] = "deferred"
    room_tokens: PositiveInt = 65


CheckKind = Literal[
    "clipped", "silent", "too_little_speech", "too_much_speech", "duplicate_audio", "near_duplicate_text",
    "sentence_in_two_splits", "speaker_in_two_splits",
]  # fmt: skip


class Check(Section):
    """What `data check` looks for beside what packing rejects, and how much of it is normal."""

    clipped_share: float = Field(default=0.01, ge=0, le=1)
    silent_dbfs: float = -50.0
    letters_per_second: tuple[PositiveFloat, PositiveFloat] = (3.0, 30.0)
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


class Lora(Section):
    r: PositiveInt = 16
    alpha: PositiveFloat = 64
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str = r".*language_model.*self_attn\.(q|k|v|o)_proj"


class Train(Section):
    epochs: PositiveFloat
    batch_size: PositiveInt = 2
    gradient_accumulation: PositiveInt = 8
    learning_rate: PositiveFloat
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup_steps: int = Field(default=20, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    evaluate_every_steps: PositiveInt = 50
    keep_checkpoints: PositiveInt = 2
    gradient_checkpointing: bool = False
    pad_weight: PositiveFloat = 1.0
    sampling: Literal["natural", "square_root"] = "natural"
    untagged_share: float | None = Field(default=None, ge=0, le=1)
    seed: int = Field(default=0, ge=0)


class Limits(Section):
    """What a clip with a certain tag can bear; None: as much as any."""

    gain_db: float | None = Field(default=None, ge=0)
    noise_snr_db: float | None = None
    stretch: float | None = Field(default=None, ge=0, lt=0.5)
    pitch_semitones: float | None = Field(default=None, ge=0)
    room: bool = True


class Augmentation(Section):
    """Changes to the audio while training. `probability`: of each of them, for each clip; 0: none at all."""

    probability: float = Field(default=0.0, ge=0, le=1)
    gain_db: float = Field(default=6.0, ge=0)
    noise_snr_db: tuple[float, float] = (15.0, 40.0)
    noise_folder: Path | None = None
    room: bool = True
    room_folder: Path | None = None
    stretch: float = Field(default=0.1, ge=0, lt=0.5)
    pitch_semitones: float = Field(default=1.0, ge=0)
    limits: dict[str, Limits] = {}
    seed: int = Field(default=0, ge=0)

    @field_validator("limits")
    @classmethod
    def _canonical_tags(cls, limits: dict[str, Limits]) -> dict[str, Limits]:
        return {canonical(tag): each for tag, each in limits.items()}


class SftConfig(Section):
    """`evoxtral sft`"""

    output: Path
    dataset: Path
    model: Model
    audio_cache: AudioCache = "auto"
    augmentation: Augmentation = Augmentation()
    lora: Lora = Lora()
    train: Train
    tracking: Tracking = Tracking()


class Generate(Section):
    candidates: PositiveInt = 4
    temperature: PositiveFloat = 0.7
    top_p: float = Field(default=0.9, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    max_new_tokens: PositiveInt = 64
    batch_tokens: PositiveInt = 65_536
    compile: bool = False
    greedy: bool = True
    seed: int = Field(default=0, ge=0)


class Placement(Section):
    tolerance_s: float = Field(default=1.0, ge=0)
    tolerance_words: int = Field(default=1, ge=0)


class RewardWeights(Section):
    """Weights in place of the profile's; None keeps it."""

    word_accuracy: float | None = None
    tag_f1: float | None = None
    extra_tags: float | None = None
    missing_tags: float | None = None
    misplaced_tags: float | None = None


class Score(Section):
    profile: Literal["card", "counts"] = "card"
    weights: RewardWeights = RewardWeights()
    placement: Placement = Placement()

    @model_validator(mode="after")
    def _card_is_fixed(self) -> "Score":
        if self.profile == "card" and self.weights != RewardWeights():
            raise ValueError("the weights of profile card are the published ones; choose profile counts to set your own")
        return self


class Curate(Section):
    drop_lowest_share: float = Share
    skip_without_spread: bool = False
    reference_replay: float = Field(default=0.0, ge=0, le=1)
    seed: int = Field(default=0, ge=0)


class Pairs(Section):
    min_gap: float = Field(default=0.0, ge=0)


class Round(Section):
    """What one round of RAFT does otherwise than `generate` says; None keeps it."""

    candidates: PositiveInt | None = None
    temperature: PositiveFloat | None = None
    top_p: float | None = Field(default=None, gt=0, le=1)


class Gate(Section):
    """Which rounds help: measured greedily on `split` (None: no gate) before the first round and after each."""

    split: str | None = "validation"
    measure: Literal["reward", "micro_f1"] = "reward"
    min_gain: float = 0.0
    patience: PositiveInt = 1


class RaftConfig(Section):
    """`evoxtral raft generate | score | curate | train | pairs | run`"""

    output: Path
    rounds: list[Round] = Field(default=[Round()], min_length=1)
    gate: Gate = Gate()
    dataset: Path
    split: str = "train"
    model: Model
    audio_cache: AudioCache = "auto"
    adapter: Path
    generate: Generate = Generate()
    score: Score = Score()
    curate: Curate = Curate(drop_lowest_share=0.1)
    pairs: Pairs = Pairs()
    train: Train
    tracking: Tracking = Tracking()


class System(Section):
    """One line of an evaluation: the base, an adapter on it, or predictions from elsewhere; with or without a filter."""

    name: str = Field(pattern=r"^[\w .+()-]+$")  # also a file name
    adapter: Path | None = None
    predictions: Path | None = None
    top_k: PositiveInt | None = None
    top_k_by: Literal["emission", "confidence"] = "emission"
    min_confidence: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _one_source(self) -> "System":
        if self.adapter and self.predictions:
            raise ValueError(f"system {self.name!r} has both an adapter and a predictions file")
        return self

    @property
    def is_filtered(self) -> bool:
        return bool(self.top_k or self.min_confidence)


class Gates(Section):
    """What `system` must reach; None: not asked for. `confident`: the worse end of the interval must."""

    system: str | None = None
    baseline: str = "base"
    confident: bool = False
    micro_f1_min: float | None = None
    macro_f1_min: float | None = None
    card_f1_min: float | None = None
    micro_precision_min: float | None = None
    micro_recall_min: float | None = None
    micro_hallucination_max: float | None = None
    false_tags_per_untagged_clip_max: float | None = None
    wer_max: float | None = None
    cer_max: float | None = None
    wer_regression_max: float | None = None


class Decode(Section):
    max_new_tokens: PositiveInt = 64
    batch_tokens: PositiveInt = 65_536
    compile: bool = False


class Bootstrap(Section):
    samples: PositiveInt = 2000
    permutations: PositiveInt = 10_000
    seed: int = Field(default=0, ge=0)


class EvalConfig(Section):
    """`evoxtral eval`"""

    output: Path
    dataset: Path
    split: str = "test"
    model: Model
    audio_cache: AudioCache = "auto"
    systems: list[System] = Field(min_length=1)
    decode: Decode = Decode()
    placement: Placement = Placement()
    bootstrap: Bootstrap = Bootstrap()
    tags_table: Path = Path("data/tags.yaml")
    gates: Gates = Gates()
    clips_shown: int = Field(default=8, ge=0)
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _names_fit(self) -> "EvalConfig":
        names = [system.name for system in self.systems]
        if len(set(names)) != len(names):
            raise ValueError(f"two systems share a name: {names}")
        if self.gates.system is not None and self.gates.system not in names:
            raise ValueError(f"gates.system {self.gates.system!r} is none of the systems: {names}")
        asked = self.gates.model_dump(exclude={"system", "baseline", "confident"})
        if self.gates.system is None and any(limit is not None for limit in asked.values()):
            raise ValueError("gates need to know which system they are for: set gates.system")
        return self


class Card(Section):
    """What the runs cannot know of a model card; the rest is read from them."""

    name: str
    license: str = "apache-2.0"
    language: list[str] = ["en"]
    intended_use: str | None = None
    limits: list[str] = []


class ExportConfig(Section):
    """`evoxtral export`"""

    output: Path
    adapter: Path
    model: Model
    evaluation: Path | None = None
    system: str | None = None
    card: Card
    merged: bool = False
    vllm_names: bool = False
    push_to: str | None = None
    private: bool = True
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _system_is_known(self) -> "ExportConfig":
        if (self.evaluation is None) != (self.system is None):
            raise ValueError("`evaluation` and `system` go together: the run, and which of its systems is exported")
        return self


class TinyBaseConfig(Section):
    """`evoxtral tiny-base`: train the small base checkpoint on synthetic speech."""

    output: Path
    grammar: Path = Path("data/scripts/grammar.yaml")
    seed: int = Field(ge=0)
    clips: PositiveInt
    held_out_clips: PositiveInt
    text_only_share: float = Share
    vocabulary_ranks: int = Field(ge=300, le=130_000)
    audio_width: int = Field(gt=0, multiple_of=32)
    audio_layers: PositiveInt
    text_width: int = Field(gt=0, multiple_of=32)
    text_layers: PositiveInt
    epochs: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    warmup_steps: PositiveInt
    phoneme_weight: float = Field(ge=0)
    acoustics_weight: float = Field(ge=0)
    tracking: Tracking = Tracking()
