"""What the configs share.

A field's description says what it means, with its unit. Where the default comes from somewhere, its source ends the
description, in brackets:

    [RL]    the Evoxtral-Realtime RL model card
    [3B]    the Evoxtral LoRA card for Voxtral-Mini-3B
    [code]  the original project's training code
    [ours: why]              this project's choice, where it needs a reason
    [measured: docs/...]     chosen by a measurement of this project

No source means this project's choice. A field that holds a section is described by the section's docstring. The comments in
`configs/` and `docs/configuration.md` are written from these (`make configs`).
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, field_validator

from ..text.tags import canonical

Number = TypeVar("Number")
Share = Annotated[float, Field(ge=0, lt=1)]
Split = Literal["train", "validation", "test", "raft"]


class Section(BaseModel):
    """Numbers that no stage can calculate with are refused: seeds of numpy have 32 bits, and weights are float32."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _within_bounds(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) >= 2**32 or isinstance(value, float) and abs(value) > 1e30:
            raise ValueError("the number is too large")
        return value


def _rising(pair: tuple[Number, Number]) -> tuple[Number, Number]:
    if pair[0] > pair[1]:
        raise ValueError("the first number must not be greater than the second")
    return pair


def _regular(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


Range = Annotated[tuple[Number, Number], AfterValidator(_rising)]
Pattern = Annotated[str, AfterValidator(_regular)]


class Tracking(Section):
    """Weights & Biases; audio and text only with upload_media."""

    project: str = Field("evoxtral", description="Project in Weights & Biases.")
    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="Mode: auto (online with a key, offline without) | online | offline | disabled."
    )
    upload_media: bool = Field(False, description="Also send audio and transcripts: pages, predictions, candidates.")


class Model(Section):
    """The base model, and how it is loaded."""

    base: str = Field(description="Hub id or folder of the base model.")
    revision: str | None = Field(None, description="Hub branch, tag or commit. null: the latest.")
    family: str | None = Field(
        None, description="For dry runs without the checkpoint, which says it itself: voxtral_realtime | voxtral."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="float32 | bfloat16: type of the frozen weights. LoRA's own stay float32. [RL]"
    )
    device: str = Field("auto", description="Where to compute: auto | cpu | cuda | cuda:0.")


AudioCache = Annotated[
    Literal["auto", "on", "off"],
    Field(description="auto | on | off: run the audio tower once per dataset. auto: if it is frozen."),
]
AudioCacheLimit = Annotated[
    float | None, Field(gt=0, description="Largest audio cache of a split, in GB; if it needs more, there is none. null: any.")
]
BatchTokens = Annotated[
    PositiveInt, Field(description="Rows × length held at once, in tokens; 65536 take 7.4 GB with the 4B model.")
]
Compile = Annotated[bool, Field(description="Compile the decoding step, for long runs on a GPU; not yet tried on one.")]


class Tags(Section):
    """Which tags there are, and what happens to others."""

    table: Path = Field(Path("data/tags.yaml"), description="File with the tags and their other names: the 15 base tags. [RL]")
    map: dict[str, str | None] = Field({}, description="Other names, name: tag, read before the table. null drops a name.")
    unknown: Literal["error", "keep", "drop"] = Field(
        "error", description="For an unknown tag: error (rejects the row) | keep | drop (removes the tag alone)."
    )

    @field_validator("map")
    @classmethod
    def _canonical_names(cls, names: dict[str, str | None]) -> dict[str, str | None]:
        return {canonical(name): tag and canonical(tag) for name, tag in names.items()}


class Placement(Section):
    """How far from its place a tag may stand and still count as placed."""

    tolerance_s: float = Field(1.0, ge=0, description="Tolerance in seconds, where the tags have times.")
    tolerance_words: int = Field(1, ge=0, description="Tolerance in words, where only the text shows the place.")
