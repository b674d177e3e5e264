"""What a saved adapter was trained to do, in a file beside its weights. With it, an adapter can be used without its dataset."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..dataset.reader import PackedSplit
from ..errors import UsageError
from ..families.base import Layout
from ..families.checkpoint import FAMILIES, family_named
from ..files import write_atomic
from ..reading import read_record
from ..units import SAMPLE_RATE_HZ

FILE = "evoxtral.json"
_LONGEST_PREPAD_SAMPLES = 60 * SAMPLE_RATE_HZ  # a record from elsewhere must not fill the memory


class AdapterRecord(BaseModel):
    """`layout`: as `Layout.record`. `prepad_samples`: clips were padded to at least this many. `tags`: all that exist for it.
    `base`: the base's fingerprint."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    layout: dict[str, Any]
    target: Literal["tags", "text", "tagged_text"]
    prepad_samples: int = Field(ge=0, le=_LONGEST_PREPAD_SAMPLES)
    tags: list[str]
    base: str

    @classmethod
    def of(cls, split: PackedSplit, base_fingerprint: str) -> "AdapterRecord":
        """For an adapter that is trained on this split."""
        return cls(
            layout=split.layout.record(), target=split.target, prepad_samples=split.prepad_samples, tags=split.tags,
            base=base_fingerprint,
        )  # fmt: skip

    @classmethod
    def read(cls, folder: Path) -> "AdapterRecord | None":
        """None for an adapter that another program trained. Raises UsageError when the file is damaged."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            record = cls.model_validate(read_record(path))
            record.restore_layout()
        except (ValidationError, KeyError, TypeError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
            if isinstance(error, ValidationError):
                problem = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            what, fix = f"cannot be read: {problem[:200]}", "copy it again from the run that made the adapter"
            raise UsageError(what, where=str(path), fix=fix) from None
        return record

    def write(self, folder: Path) -> None:
        write_atomic(folder / FILE, json.dumps(self.model_dump(), indent=2, ensure_ascii=False) + "\n")

    def restore_layout(self) -> Layout:
        """Raises KeyError for an unknown family."""
        if self.layout.get("family") not in FAMILIES:
            raise KeyError(self.layout.get("family"))
        return family_named(self.layout["family"]).restore_layout(self.layout)
