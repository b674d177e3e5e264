"""The configs of `sft`, `raft …` and `tiny-base`."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from ..text.tags import canonical
from .sections import AudioCache, Model, Pattern, Placement, Range, Section, Share, Tracking


class Lora(Section):
    r: PositiveInt = 16
    alpha: PositiveFloat = 64
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Pattern = r".*language_model.*self_attn\.(q|k|v|o)_proj"


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
    gain_db: float = Field(default=6.0, ge=0, le=60)
    noise_snr_db: Range[float] = (15.0, 40.0)
    noise_folder: Path | None = None
    room: bool = True
    room_folder: Path | None = None
    stretch: float = Field(default=0.1, ge=0, lt=0.5)
    pitch_semitones: float = Field(default=1.0, ge=0, le=24)
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
    """`drop_by`: "share" keeps floor(clips × (1 − share)) clips; "threshold" keeps those whose reward is above that of the clip
    at place floor(clips × share) from below (the original RAFT code: clips that share the threshold all go)."""

    drop_lowest_share: float = Share
    drop_by: Literal["share", "threshold"] = "share"
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
