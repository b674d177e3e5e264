"""What the configs share."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..text.tags import canonical

Share = Field(ge=0, lt=1)
Split = Literal["train", "validation", "test", "raft"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Tracking(Section):
    """Weights & Biases. `auto` is online with a key and offline without. `upload_media`: also what holds audio or words:
    the evaluation's page and predictions, the texts of candidates."""

    project: str = "evoxtral"
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    upload_media: bool = False


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


class Placement(Section):
    tolerance_s: float = Field(default=1.0, ge=0)
    tolerance_words: int = Field(default=1, ge=0)
