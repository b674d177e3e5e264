"""The config of `transcribe`, and what `serve` shares with it."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from .evaluation import Decode
from .sections import Model, Section, Tracking


class Segmentation(Section):
    """How a long recording is cut: at silences, never inside one that a tag may stand for."""

    max_s: float = Field(30.0, ge=4, le=30, description="Longest segment, in seconds.")
    patience_s: PositiveFloat = Field(
        2.0, description="Silence that ends an utterance, in seconds. [ours: above the demo's longest pause, 1.48 s]"
    )
    pause_s: PositiveFloat = Field(
        0.8, description="Shortest silence that a tag may stand for, in seconds; cuts avoid it. [ours: below the demo's 0.96 s]"
    )
    margin_s: float = Field(
        0.3, ge=0,
        description="Silence kept before and after an utterance, in seconds. [measured: docs/studies/transcription.md]",
    )  # fmt: skip

    @model_validator(mode="after")
    def _in_order(self) -> "Segmentation":
        if self.pause_s > self.patience_s:
            raise ValueError("pause_s must not be greater than patience_s")
        if 2 * self.margin_s > self.patience_s:
            raise ValueError("margin_s must not be greater than half of patience_s: two segments would overlap")
        if self.patience_s > self.max_s / 2:
            raise ValueError("patience_s must not be greater than half of max_s")
        return self


class TranscribeModel(Model):
    """The base model, and how it is loaded."""

    base: str | None = Field(None, description="Hub id or folder of the base model. null: the one that the adapter names.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto (bfloat16 on a GPU, float32 on a CPU) | float32 | bfloat16: type of the weights."
    )


class KeptTags(Section):
    """Which tags of an adapter are kept. The others are in the JSON only."""

    thresholds: bool = Field(True, description="Use the thresholds that `evoxtral calibrate` fitted, where there are any.")
    top_k: PositiveInt | None = Field(
        None, description="Keep this many tags of a segment; the published filter keeps 2. null: all. [RL]"
    )
    top_k_by: Literal["emission", "confidence"] = Field(
        "emission", description="Which to keep: emission (the first) | confidence (the most probable)."
    )
    min_confidence: float = Field(0.0, ge=0, le=1, description="Drop tags that the model gave a lower probability.")


class Transcription(Section):
    """What `transcribe` and `serve` share: the models, and how their tags are merged and filtered."""

    model: TranscribeModel = TranscribeModel()
    adapters: list[Path] = Field([], description="Runs or PEFT folders whose tags to write; none: the base's words alone.")
    layout: str | None = Field(
        None, description="For a Realtime adapter trained elsewhere, which does not record it: packed | deferred | aligned."
    )
    language: str | None = Field(
        None, description="ISO 639-1 code, such as en, of the language that the prompt names. null: the model finds it itself."
    )
    merge: Literal["auto", "front", "timed", "written", "none"] = Field(
        "auto",
        description="Where tags stand: front (of a segment) | timed (where heard; needs layout aligned) | written (as an adapter "
        "wrote its text) | none (beside the text) | auto (the best of these).",
    )
    kept_tags: KeptTags = KeptTags()
    tags_table: Path = Field(Path("data/tags.yaml"), description="File with the groups of tags.")
    segmentation: Segmentation = Segmentation()
    decode: Decode = Decode()


class TranscribeConfig(Transcription):
    """`evoxtral transcribe`"""

    recordings: list[str] = Field([], description="Files, folders and globs; those named in the call replace them.")
    output: Path | None = Field(None, description="Folder for the transcripts. null: print them, write no file.")
    formats: list[Literal["txt", "json", "srt", "vtt", "tsv"]] = Field(
        ["txt", "json"], min_length=1, description="Which files to write for each recording: txt, json, srt, vtt, tsv."
    )
    tracking: Tracking = Tracking()
