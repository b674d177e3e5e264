"""The schema of every config file: frozen pydantic models, unknown keys forbidden.

The YAML files in `configs/` carry the comments on units and sources. A field that is not
named there takes the default given here, which is the published recipe's where there is one.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from ..text.tags import BASE_TAGS, canonical
from ..units import PREPAD_SAMPLES

Share = Field(ge=0, lt=1)


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


class Clips(Section):
    train: PositiveInt
    validation: PositiveInt
    test: PositiveInt
    raft: int = Field(default=0, ge=0)


class SynthConfig(Section):
    """`evoxtral data synth`"""

    output: Path
    grammar: Path = Path("data/scripts/grammar.yaml")
    scripts: Path | None = None
    clips: Clips
    untagged_share: float = Field(default=0.3, ge=0, le=1)
    voices: list[str] | None = None
    rates_wpm: tuple[PositiveInt, PositiveInt] = (160, 190)
    seed: int = Field(default=0, ge=0)
    tracking: Tracking = Tracking()


class Audio(Section):
    max_seconds: PositiveFloat = 30.0
    prepad_samples: int = Field(default=PREPAD_SAMPLES, ge=0)


class Layout(Section):
    kind: Literal["packed", "deferred", "aligned"] = "deferred"
    room_tokens: PositiveInt = 65


class PackConfig(Section):
    """`evoxtral data check` and `evoxtral data pack`"""

    manifest: Path
    output: Path
    base: str
    revision: str | None = None
    audio: Audio = Audio()
    target: Literal["tags", "text", "tagged_text"] = "tags"
    layout: Layout = Layout()
    tags: list[str] = list(BASE_TAGS)
    tracking: Tracking = Tracking()

    @field_validator("tags")
    @classmethod
    def _canonical_tags(cls, tags: list[str]) -> list[str]:
        return [canonical(tag) for tag in tags]


class AlignConfig(Section):
    """`evoxtral data align`"""

    manifest: Path
    output: Path
    model: Model
    max_seconds: PositiveFloat = 30.0
    min_heard_share: float = Field(default=0.5, ge=0, le=1)
    keep_given_times: bool = True
    batch_tokens: PositiveInt = 65_536
    tags: list[str] = list(BASE_TAGS)
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
    seed: int = Field(default=0, ge=0)


class SftConfig(Section):
    """`evoxtral sft`"""

    output: Path
    dataset: Path
    model: Model
    audio_cache: AudioCache = "auto"
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
    """One line of an evaluation: the base, or the base with an adapter, with or without a filter."""

    name: str = Field(pattern=r"^[\w .+()-]+$")  # also a file name
    adapter: Path | None = None
    top_k: PositiveInt | None = None


class Decode(Section):
    max_new_tokens: PositiveInt = 64
    batch_tokens: PositiveInt = 65_536
    compile: bool = False


class Bootstrap(Section):
    samples: PositiveInt = 2000
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
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _names_differ(self) -> "EvalConfig":
        names = [system.name for system in self.systems]
        if len(set(names)) != len(names):
            raise ValueError(f"two systems share a name: {names}")
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
