"""The configs of `eval` and `export`."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from .sections import AudioCache, Model, Placement, Section, Tracking


class System(Section):
    """One line of an evaluation: the base, an adapter on it, predictions from elsewhere, or a yardstick; with or without a
    filter."""

    name: str = Field(pattern=r"^[\w .+()-]+$", max_length=60)  # also a file name
    adapter: Path | None = None
    predictions: Path | None = None
    yardstick: Literal["chance", "probe"] | None = None
    top_k: PositiveInt | None = None
    top_k_by: Literal["emission", "confidence"] = "emission"
    min_confidence: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _one_source(self) -> "System":
        given = [kind for kind in ("adapter", "predictions", "yardstick") if getattr(self, kind)]
        if len(given) > 1:
            raise ValueError(f"system {self.name!r} is one thing, not {' and '.join(given)}")
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
    """Intervals, and the tests between systems. `unit`: what is drawn, and whose answers are swapped."""

    unit: Literal["clip", "speaker"] = "clip"
    samples: PositiveInt = 2000
    permutations: int = Field(default=10_000, ge=199)
    seed: int = Field(default=0, ge=0)


class Comparison(Section):
    """Which two systems are compared: what `after` has more than `before`."""

    before: str
    after: str


class EvalConfig(Section):
    """`evoxtral eval`. `comparisons`: None compares a filter with its own system, any other system with the one before it."""

    output: Path
    dataset: Path
    split: str = "test"
    model: Model
    audio_cache: AudioCache = "auto"
    systems: list[System] = Field(min_length=1)
    comparisons: list[Comparison] | None = None
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
