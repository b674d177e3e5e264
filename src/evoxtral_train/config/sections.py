"""What the configs share."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from ..text.tags import canonical

Number = TypeVar("Number")
Share = Field(ge=0, lt=1)
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
