"""The configs of `sft`, `raft …` and `tiny-base`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from ..text.tags import canonical
from .sections import (
    AudioCache,
    AudioCacheLimit,
    BatchTokens,
    Compile,
    Model,
    Pattern,
    Placement,
    Range,
    Section,
    Share,
    Tracking,
)


class Lora(Section):
    """The LoRA adapter."""

    r: PositiveInt = Field(16, description="Rank of the matrices. [RL]")
    alpha: PositiveFloat = Field(64, description="Scale: the adapter's output is weighted by alpha / r. [RL]")
    dropout: float = Field(0.0, ge=0, lt=1, description="Probability of dropping an input of the adapter, while training.")
    target_modules: Pattern = Field(
        r".*language_model.*self_attn\.(q|k|v|o)_proj",
        description="Regular expression for the modules to adapt. [RL: attention only, frozen audio path]",
    )


class Train(Section):
    """What is trained, and how."""

    method: Literal["lora", "full"] = Field(
        "lora",
        description="lora (an adapter) | full (language model and projector, in float32). RAFT: as its start was trained.",
    )
    train_audio_tower: bool = Field(False, description="With method full, train the audio tower too.")
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="adamw | adamw_8bit (bitsandbytes, on CUDA): 8 or 2 bytes of states for each trained weight."
    )
    epochs: PositiveFloat = Field(description="Passes over the training clips.")
    batch_size: PositiveInt = Field(2, description="Clips per step on each device. [3B]")
    gradient_accumulation: PositiveInt = Field(8, description="Batches per optimizer step. [3B]")
    learning_rate: PositiveFloat = Field(description="Peak learning rate.")
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = Field(
        "cosine", description="Learning rate after the warmup: cosine | linear | constant_with_warmup. [3B, RL]"
    )
    warmup_steps: int = Field(20, ge=0, description="Optimizer steps until the peak learning rate. [RL]")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay, as a factor.")
    max_grad_norm: PositiveFloat = Field(1.0, description="Gradients are clipped to this norm. [code]")
    evaluate_every_steps: PositiveInt = Field(
        50, description="Optimizer steps between checkpoints. SFT keeps the best on validation, RAFT the last."
    )
    keep_checkpoints: PositiveInt = Field(2, description="Checkpoints to keep on disk.")
    gradient_checkpointing: bool = Field(
        False, description="Recompute the language model's activations: less memory, slower. [RL]"
    )
    pad_weight: PositiveFloat = Field(
        1.0, description="Loss weight of a learned [STREAMING_PAD]; only layouts with times learn any. Words weigh 1."
    )
    sampling: Literal["natural", "square_root"] = Field(
        "natural", description="natural (each clip once an epoch) | square_root (rare tags more often)."
    )
    untagged_share: float | None = Field(
        None, ge=0, le=1, description="Share of drawn clips without tags. null: as in the dataset."
    )
    neftune_alpha: PositiveFloat | None = Field(
        None, description="NEFTune: uniform noise on the token embeddings, up to alpha / √(tokens × width). null: none."
    )
    seed: int = Field(0, ge=0, description="Random seed of the adapter, the noise and the order of clips.")

    @model_validator(mode="after")
    def _lora_leaves_the_tower(self) -> "Train":
        if self.train_audio_tower and self.method == "lora":
            raise ValueError("train_audio_tower is for method full; with method lora, lora.target_modules says what is trained")
        return self


class ValidationDecode(Section):
    """How the validation clips are decoded, always greedily."""

    clips: PositiveInt | None = Field(None, description="How many clips to decode, spread over the split. null: all.")
    max_new_tokens: PositiveInt | None = Field(
        None, description="Most tokens to write for a clip. null: the dataset's layout.room_tokens."
    )
    batch_tokens: BatchTokens = 65_536
    known_tags_only: bool = Field(True, description="Write only tags that exist; free text is not affected.")


class Validation(Section):
    """Which checkpoint SFT keeps: the best on the split validation."""

    measure: Literal["loss", "wer", "cer", "micro_f1"] = Field(
        "loss", description="loss | wer | cer | micro_f1: what chooses the best checkpoint. All but loss need decoding."
    )
    wer_regression_max: float | None = Field(
        None,
        ge=0,
        description="Word error rate above the base's that a checkpoint may have; 0.01: one more word in a hundred. Those above "
        "it come last; if all are, the exit code is 3. null: no limit.",
    )
    decode: ValidationDecode | None = Field(
        None,
        description="Decode clips at each checkpoint and log WER, CER and tag F1. null: only if measure or wer_regression_max "
        "needs it.",
    )

    @model_validator(mode="before")
    @classmethod
    def _decodes_for_its_measure(cls, content: Any) -> Any:
        if not isinstance(content, dict) or content.get("decode") is not None:
            return content
        needed = content.get("measure", "loss") != "loss" or content.get("wer_regression_max") is not None
        return content | {"decode": {}} if needed else content


class Replay(Section):
    """The base's own transcripts, as further rows to train on: an adapter for words then keeps the base's."""

    share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Rows to add, as a share of the training clips: the base's transcripts of clips without tags, each once.",
    )
    weight: PositiveFloat = Field(1.0, description="Loss weight of their tokens.")


Bits = Annotated[int, Field(ge=1, le=16)]


class Limits(Section):
    """Tighter bounds for clips with a certain tag. null: no tighter."""

    gain_db: float | None = Field(None, ge=0, description="Largest gain, in dB.")
    noise_snr_db: float | None = Field(None, description="Lowest signal-to-noise ratio, in dB.")
    stretch: float | None = Field(None, ge=0, le=1, description="Largest change of length, as a share.")
    pitch_semitones: float | None = Field(None, ge=0, description="Largest change of pitch, in semitones.")
    bit_depth: int | None = Field(None, ge=1, le=16, description="Fewest bits per sample.")
    room: bool = Field(True, description="Allow reverberation.")


class Augmentation(Section):
    """Random changes to the training audio. Needs the package extra `augment`; no audio cache."""

    probability: float = Field(0.0, ge=0, le=1, description="Probability of each change, for each clip. 0: none. [3B]")
    gain_db: float = Field(6.0, ge=0, le=60, description="Louder or softer by up to this, in dB.")
    noise_snr_db: Range[float] | None = Field(
        (15.0, 40.0), description="Lowest and highest signal-to-noise ratio, in dB. null: no noise."
    )
    noise_folder: Path | None = Field(None, description="Recordings of noise. null: coloured noise.")
    room: bool = Field(True, description="Add reverberation.")
    room_folder: Path | None = Field(None, description="Impulse responses. null: simulated rooms.")
    stretch: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Longer by up to this share, as far as the clip's row has room, or shorter by the same factor; "
        "1.0: half to twice the length.",
    )
    pitch_semitones: float = Field(1.0, ge=0, le=24, description="Higher or lower by up to this, in semitones.")
    bit_depth: Range[Bits] | None = Field(
        None, description="Fewest and most bits per sample; quiet clips keep more. null: the recording's."
    )
    limits: dict[str, Limits] = Field(
        {},
        description="Tighter limits for a tag, so that it stays true. A clip keeps to those of all its tags. "
        "[ours: reasoned, not measured]",
    )
    seed: int = Field(0, ge=0, description="Random seed of the changes.")

    @field_validator("limits")
    @classmethod
    def _canonical_tags(cls, limits: dict[str, Limits]) -> dict[str, Limits]:
        return {canonical(tag): each for tag, each in limits.items()}


class SftConfig(Section):
    """`evoxtral sft`"""

    output: Path = Field(description="Folder for the run and its adapter, or its model with method full.")
    dataset: Path = Field(description="Packed dataset, with the splits train and validation.")
    model: Model
    audio_cache: AudioCache = "auto"
    audio_cache_limit_gb: AudioCacheLimit = 100.0
    augmentation: Augmentation = Augmentation()
    replay: Replay = Replay()
    lora: Lora = Lora()
    train: Train
    validation: Validation = Validation()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _full_has_no_lora(self) -> "SftConfig":
        if self.train.method == "full" and self.lora != Lora():
            raise ValueError("train.method full has no adapter: leave lora at its defaults, or set train.method to lora")
        return self

    @model_validator(mode="after")
    def _replayed_audio_is_unchanged(self) -> "SftConfig":
        if self.replay.share and self.augmentation.probability:
            raise ValueError(
                "replay.share needs audio as it is, for the base's own transcripts: set it or augmentation.probability to 0"
            )
        return self


class Generate(Section):
    """How candidates are sampled."""

    candidates: PositiveInt = Field(4, description="Candidates per clip. [RL]")
    temperature: PositiveFloat = Field(0.7, description="Sampling temperature: the logits are divided by this factor. [RL]")
    top_p: float = Field(0.9, gt=0, le=1, description="Sample from the likeliest tokens of this total probability. [RL]")
    top_k: int = Field(0, ge=0, description="Sample from this many likeliest tokens. 0: no limit. [ours: the card names none]")
    max_new_tokens: PositiveInt | None = Field(
        None, description="Most tokens to write for a clip. null: layout.room_tokens − 1, which leaves a place for EOS."
    )
    batch_tokens: BatchTokens = 65_536
    compile: Compile = False
    greedy: bool = Field(True, description="Also decode greedily: the reward that the best candidate has to beat.")
    seed: int = Field(0, ge=0, description="Random seed of the sampling.")


class RewardWeights(Section):
    """Weights of the reward's components, for profile counts only. null keeps the profile's."""

    word_accuracy: float | None = Field(None, description="Weight of 1 − WER.")
    tag_f1: float | None = Field(None, description="Weight of the tag F1.")
    extra_tags: float | None = Field(None, description="Weight of each tag that the reference lacks.")
    missing_tags: float | None = Field(None, description="Weight of each tag that the candidate lacks.")
    misplaced_tags: float | None = Field(None, description="Weight of each tag in the wrong place.")


class Score(Section):
    """How candidates are scored."""

    profile: Literal["card", "counts", "verifier"] = Field(
        "card",
        description="card (0.4 × (1 − WER) + 0.4 × tag F1 + 0.2 × (1 − hallucination)) | "
        "counts (tag F1 − 0.2 × extra − 0.1 × (missing + misplaced), with words + 0.4 × (1 − WER)) | "
        "verifier (no text). [RL, code]",
    )
    verifier: Path | None = Field(
        None,
        description="Scores clips without text, and with profile verifier all: a run of `evoxtral probe`, or a JSONL of "
        "{id, tags: {tag: probability}}.",
    )
    weights: RewardWeights = RewardWeights()
    placement: Placement = Placement()

    @model_validator(mode="after")
    def _only_counts_has_weights(self) -> "Score":
        if self.weights != RewardWeights() and self.profile != "counts":
            whose = {"card": "the published ones", "verifier": "fixed"}[self.profile]
            raise ValueError(f"the weights of profile {self.profile} are {whose}; choose profile counts to set your own")
        return self

    @model_validator(mode="after")
    def _verifier_is_named(self) -> "Score":
        if self.profile == "verifier" and self.verifier is None:
            raise ValueError("profile verifier needs `verifier`: a run of `evoxtral probe`, or a file of probabilities")
        return self


class Curate(Section):
    """Which candidates to train on: the best of each clip, without the clips of lowest reward."""

    drop_lowest_share: Share = Field(description="Share of clips to drop, by their best candidate's reward. [RL]")
    drop_by: Literal["share", "threshold"] = Field(
        "share", description="share (drop that share) | threshold (drop all clips up to that quantile's reward)."
    )
    skip_without_spread: bool = Field(
        False, description="Drop clips whose candidates all have one reward. [measured: docs/studies/raft.md]"
    )
    reference_replay: float = Field(
        0.0, ge=0, le=1, description="Reference targets to add, as a share of the curated rows. [code]"
    )
    seed: int = Field(0, ge=0, description="Random seed of the choice of references.")


class Pairs(Section):
    """Which pairs `raft pairs` exports for DPO."""

    drop_lowest_share: Share = Field(
        0.0, description="Share of each profile's pairs to drop, by the difference in reward; 0: all that differ."
    )


class Round(Section):
    """What one round of RAFT changes in `generate`. null: as there."""

    candidates: PositiveInt | None = Field(None, description="Candidates per clip.")
    temperature: PositiveFloat | None = Field(None, description="Sampling temperature, as a factor.")
    top_p: float | None = Field(None, gt=0, le=1, description="Total probability of the tokens to sample from.")


class Gate(Section):
    """`raft run` keeps the adapter of the best round, and stops when rounds no longer help."""

    split: str | None = Field("validation", description="Split to measure, before the first round and after each. null: no gate.")
    measure: Literal["reward", "micro_f1"] = Field("reward", description="What a round must raise: reward | micro_f1.")
    min_gain: float = Field(0.0, description="A round helps when it gains more points than this over the best before it.")
    patience: PositiveInt = Field(1, description="Stop after this many rounds in a row without help.")
    wer_regression_max: float | None = Field(
        None,
        ge=0,
        description="Word error rate above the start's that a round may have and still help; 0.01: one more word in a hundred. "
        "null: no limit.",
    )

    @model_validator(mode="after")
    def _measures_on_a_split(self) -> "Gate":
        if self.wer_regression_max is not None and self.split is None:
            raise ValueError("wer_regression_max needs a split to measure on: name one in gate.split, or set it to null")
        return self


class RaftConfig(Section):
    """`evoxtral raft generate | score | curate | train | pairs | run`"""

    output: Path = Field(description="Folder for round-1/, round-2/ …, each with all four steps, and for result/.")
    rounds: list[Round] = Field(
        [Round()], min_length=1, description="One line per round, each from the adapter of the one before. [RL]"
    )
    gate: Gate = Gate()
    dataset: Path = Field(description="Packed dataset.")
    split: str = Field("train", description="Split to train on. [RL]")
    model: Model
    audio_cache: AudioCache = "auto"
    audio_cache_limit_gb: AudioCacheLimit = 100.0
    adapter: Path = Field(description="Adapter or full model to start from: a run of `evoxtral sft`, or its folder.")
    generate: Generate = Generate()
    score: Score = Score()
    curate: Curate = Curate(drop_lowest_share=0.1)
    pairs: Pairs = Pairs()
    train: Train
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _the_verifier_does_not_judge_itself(self) -> "RaftConfig":
        if self.score.profile == "verifier" and self.gate.split and self.gate.measure == "reward":
            raise ValueError("with profile verifier, gate.measure must be micro_f1: the verifier would judge its own choice")
        return self


class TinyBaseConfig(Section):
    """`evoxtral tiny-base`"""

    output: Path = Field(description="Folder for the checkpoint.")
    family: Literal["voxtral_realtime", "voxtral"] = Field(
        "voxtral_realtime", description="Model family: voxtral_realtime | voxtral."
    )
    grammar: Path = Field(Path("data/scripts/grammar.yaml"), description="Grammar that sentences are drawn from.")
    seed: int = Field(ge=0, description="Random seed of the clips and the weights.")
    clips: PositiveInt = Field(description="Spoken clips, all from the grammar's training share.")
    held_out_clips: PositiveInt = Field(description="Clips for the word error rate.")
    text_only_share: Share = Field(
        description="Share of rows with words and tags over silence, so that every tag stays writable."
    )
    vocabulary_ranks: int = Field(ge=300, le=130_000, description="Entries of mistral-common's vocabulary.")
    audio_width: int = Field(gt=0, multiple_of=32, description="Hidden size of the audio tower, in channels.")
    audio_layers: PositiveInt = Field(description="Layers of the audio tower.")
    text_width: int = Field(gt=0, multiple_of=32, description="Hidden size of the language model, in channels.")
    text_layers: PositiveInt = Field(description="Layers of the language model.")
    epochs: PositiveInt = Field(description="Passes over the rows.")
    batch_size: PositiveInt = Field(description="Rows per optimizer step.")
    learning_rate: PositiveFloat = Field(description="Peak learning rate.")
    muon_learning_rate: PositiveFloat | None = Field(
        None, description="Peak learning rate of the linear layers, trained by Muon. null: AdamW trains them too."
    )
    warmup_steps: PositiveInt = Field(description="Optimizer steps until the peak; then a cosine down to 2%.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="float32 | bfloat16: type of the activations in training. bfloat16 is faster where it is native."
    )
    phoneme_weight: float = Field(
        ge=0, description="Weight of the phoneme read-out's loss; the read-out is thrown away afterwards."
    )
    acoustics_weight: float = Field(
        ge=0, description="Weight of the acoustic descriptions' loss; they are thrown away afterwards."
    )
    word_weight: float = Field(
        0.0, ge=0, description="Weight of the word read-outs' loss, for family voxtral; they are thrown away."
    )
    listening_weight: float = Field(
        0.0, ge=0, description="Weight of the loss that pulls attention to the word being written, for family voxtral."
    )
    tracking: Tracking = Tracking()
