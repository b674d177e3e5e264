"""The configs of `eval`, `probe`, `diagnose`, `calibrate` and `export`."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from .sections import AudioCache, AudioCacheLimit, BatchTokens, Compile, Model, Placement, Section, Share, Split, Tracking


class System(Section):
    """The base, an adapter on it, predictions from elsewhere, or a yardstick; with or without a filter."""

    name: str = Field(pattern=r"^[\w .+()-]+$", max_length=60, description="Name in tables and files.")
    adapter: Path | None = Field(
        None, description="Run, PEFT folder or full model. Without adapter, predictions and yardstick: the base."
    )
    predictions: Path | None = Field(None, description="JSONL of {id, reference, prediction}.")
    yardstick: Literal["chance", "probe"] | None = Field(
        None, description="chance (the best constant answer) | probe (a linear classifier on frozen audio)."
    )
    top_k: PositiveInt | None = Field(None, description="Keep this many tags of a clip; the published filter keeps 2. null: all.")
    top_k_by: Literal["emission", "confidence"] = Field(
        "emission", description="Which to keep: emission (the first) | confidence (the most probable). [RL]"
    )
    min_confidence: float = Field(0.0, ge=0, le=1, description="Drop tags that the model gave a lower probability.")
    thresholds: bool = Field(False, description="Drop tags below the adapter's thresholds, fitted by `evoxtral calibrate`.")

    @model_validator(mode="after")
    def _one_source(self) -> "System":
        given = [kind for kind in ("adapter", "predictions", "yardstick") if getattr(self, kind)]
        if len(given) > 1:
            raise ValueError(f"system {self.name!r} is one thing, not {' and '.join(given)}")
        if self.thresholds and not self.adapter:
            raise ValueError(f"system {self.name!r} has `thresholds` but no adapter; they are fitted for adapters")
        return self

    @property
    def source(self) -> Path | str | None:
        """What its answers come from, the base being None: systems of one source differ by their filter alone."""
        return self.adapter or self.predictions or self.yardstick

    @property
    def is_yardstick(self) -> bool:
        """No competitor: systems are measured against it, and no comparison is made with it."""
        return self.yardstick is not None

    @property
    def is_filtered(self) -> bool:
        return bool(self.top_k or self.min_confidence or self.thresholds)


class Gates(Section):
    """What a system must reach, or the exit code is 3; everything is still written. null: no gate."""

    system: str | None = Field(None, description="System that must pass.")
    baseline: str = Field("base", description="System that wer_regression_max is counted from.")
    confident: bool = Field(False, description="Require the worse end of the interval to pass, not only the value.")
    micro_f1_min: float | None = Field(None, description="Micro F1 of tags, a share from 0 to 1.")
    macro_f1_min: float | None = Field(None, description="Mean F1 over tags, a share from 0 to 1.")
    card_f1_min: float | None = Field(None, description="F1 as on the Realtime cards, a share from 0 to 1.")
    micro_precision_min: float | None = Field(None, description="Share of written tags that are right.")
    micro_recall_min: float | None = Field(None, description="Share of reference tags that are found.")
    micro_hallucination_max: float | None = Field(None, description="Share of written tags that are not in the reference.")
    false_tags_per_untagged_clip_max: float | None = Field(None, description="Tags per clip whose reference has none.")
    wer_max: float | None = Field(None, description="Word error rate; 0.01: one word in a hundred.")
    cer_max: float | None = Field(None, description="Character error rate; 0.01: one character in a hundred.")
    wer_regression_max: float | None = Field(
        None, description="Word error rate above the baseline's; 0.01: one more word in a hundred."
    )


class Decode(Section):
    """How the systems decode, always greedily."""

    max_new_tokens: PositiveInt | None = Field(
        None, description="Most tokens to write for a clip. null: 64 for Voxtral Realtime, 512 for offline Voxtral."
    )
    batch_tokens: BatchTokens = 65_536
    compile: Compile = False
    known_tags_only: bool = Field(True, description="Let adapters write only tags that exist; free text is not affected.")


class CalibrateConfig(Section):
    """`evoxtral calibrate`"""

    output: Path = Field(description="Folder for the run: predictions, metrics and pictures.")
    adapter: Path = Field(description="Run or folder of an adapter or full model; thresholds.json goes beside its weights.")
    dataset: Path = Field(description="Packed dataset.")
    split: str = Field("validation", description="Split to fit on: clips that neither trained the adapter nor will measure it.")
    model: Model
    audio_cache: AudioCache = "auto"
    audio_cache_limit_gb: AudioCacheLimit = 100.0
    decode: Decode = Decode()
    aim: Literal["micro_f1", "false_tags"] = Field(
        "micro_f1", description="micro_f1 | false_tags (the best micro F1 with few false tags)."
    )
    false_tags_per_untagged_clip_max: float | None = Field(
        None, ge=0, description="For aim false_tags: at most this many false tags per clip whose reference has none."
    )
    seed: int = Field(0, ge=0, description="Random seed of the cross-validation's folds.")
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _aim_has_its_limit(self) -> "CalibrateConfig":
        if (self.aim == "false_tags") != (self.false_tags_per_untagged_clip_max is not None):
            raise ValueError("`aim: false_tags` and `false_tags_per_untagged_clip_max` go together")
        return self


class Bootstrap(Section):
    """95% intervals, and the randomization tests between systems (docs/evaluation.md)."""

    unit: Literal["clip", "speaker"] = Field(
        "clip", description="clip | speaker: what is resampled. speaker generalizes to new voices."
    )
    samples: PositiveInt = Field(2000, description="Bootstrap samples per interval.")
    permutations: int = Field(10_000, ge=199, description="Permutations per test.")
    seed: int = Field(0, ge=0, description="Random seed of both.")


class Comparison(Section):
    """Which two systems are compared."""

    before: str = Field(description="Name of the system to compare with.")
    after: str = Field(description="Name of the system whose gain is reported.")


class EvalConfig(Section):
    """`evoxtral eval`"""

    output: Path = Field(description="Folder for report.html, tables, metrics and predictions.")
    dataset: Path = Field(description="Packed dataset.")
    split: str = Field("test", description="Split to measure. [RL]")
    model: Model
    audio_cache: AudioCache = "auto"
    audio_cache_limit_gb: AudioCacheLimit = 100.0
    systems: list[System] = Field(min_length=1, description="What is measured, one system per line.")
    comparisons: list[Comparison] | None = Field(
        None, description="null: compare each system with the one before it, each filter with its own system."
    )
    decode: Decode = Decode()
    placement: Placement = Placement()
    bootstrap: Bootstrap = Bootstrap()
    tags_table: Path = Field(
        Path("data/tags.yaml"), description="File with the groups of tags, to show what is confused with what."
    )
    gates: Gates = Gates()
    clips_shown: int = Field(8, ge=0, description="Clips in report.html, with audio: this many of the worst and of the best.")
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


class ProbeConfig(Section):
    """`evoxtral probe`"""

    output: Path = Field(description="Folder for the probe, its report, and probabilities/.")
    dataset: Path = Field(description="Packed dataset. The probe is fitted on its split train.")
    split: str = Field("test", description="Labelled split to measure the probe on.")
    probabilities: list[Split] = Field(
        ["raft"], description="Splits whose clips get a probability for each tag, for score.verifier; they need no text."
    )
    model: Model
    audio_cache: AudioCache = "auto"
    audio_cache_limit_gb: AudioCacheLimit = 100.0
    bootstrap: Bootstrap = Bootstrap()
    tags_table: Path = Field(
        Path("data/tags.yaml"), description="File with the groups of tags, to show what is confused with what."
    )
    clips_shown: int = Field(8, ge=0, description="Clips in report.html, with audio: this many of the worst and of the best.")
    tracking: Tracking = Tracking()

    @field_validator("probabilities")
    @classmethod
    def _not_of_what_it_was_fitted_on(cls, splits: list[str]) -> list[str]:
        if "train" in splits:
            raise ValueError("the probe was fitted on train, so its probabilities there are too good: remove train")
        return list(dict.fromkeys(splits))


class DiagnoseConfig(Section):
    """`evoxtral diagnose`"""

    output: Path = Field(description="Folder for report.html, its picture and metrics.")
    probe: Path = Field(description="Run of `evoxtral probe`: names the dataset, and the split that is measured.")
    evaluations: list[Path] = Field(min_length=1, description="Runs of `evoxtral eval` on that split.")
    system: str | None = Field(None, description="System to diagnose: an adapter or predictions, unfiltered. null: the last.")
    heard_f1: Share = Field(0.6, description="F1 from which a tag counts as heard.")
    bootstrap: Bootstrap = Bootstrap()
    tracking: Tracking = Tracking()


class Card(Section):
    """What the runs do not say about the model; the rest of its card is read from them."""

    name: str = Field(description="Title, and model name in the card's model-index.")
    license: str = Field("apache-2.0", description="License of the adapter. [ours: the base's]")
    language: list[str] = Field(["en"], description="Language codes.")
    intended_use: str | None = Field(None, description="Your own paragraph.")
    limits: list[str] = Field([], description="Your own sentences; what the runs show is added.")


class ExportConfig(Section):
    """`evoxtral export`"""

    output: Path = Field(description="Folder for the adapter, README.md, and merged/ and vllm/ where you ask for them.")
    adapter: Path = Field(description="A run of sft, raft train or raft run.")
    model: Model
    evaluation: Path | None = Field(None, description="Run of eval whose figures go into the card. null: no figures.")
    system: str | None = Field(None, description="Which system of that run this adapter is.")
    card: Card
    format: Literal["adapter", "transformers", "mistral"] = Field(
        "adapter", description="adapter | transformers | mistral: the last two also write the merged model, in that format."
    )
    vllm_names: bool = Field(False, description="Also write the adapter with vLLM's module names; never loaded in vLLM yet.")
    push_to: str | None = Field(None, description="Hub repository, such as you/evoxtral-realtime; needs HF_TOKEN. null: no push.")
    private: bool = Field(True, description="Make a new repository private.")
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _system_is_known(self) -> "ExportConfig":
        if (self.evaluation is None) != (self.system is None):
            raise ValueError("`evaluation` and `system` go together: the run, and which of its systems is exported")
        return self
