"""What a stage returns for the command line to print: a title and facts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError


@dataclass(frozen=True)
class Report:
    """`table`: text to print unchanged after the facts. `exit_code` of a stage that finished with a negative
    result: 1 if a check found bad rows, 2 if it found no good one, 3 if a gate failed."""

    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    table: str = ""
    exit_code: int = 0


def all_rejected(what: str, count: int, where: Path | str, first_reason: str, written: Path | None = None) -> UsageError:
    """The error of a stage, or its plan, with nothing left to do: "no row can be packed: all 17 are rejected". `written`: the
    file with all rejected rows."""
    rejected = f"all {count:,} are rejected" if count > 1 else "the only one is rejected"
    fix = f"first reason: {first_reason}" + (f"; all of them: {written}" if written else "")
    return UsageError(f"{what}: {rejected}", where=str(where), fix=fix)


def gigabytes(size_bytes: float) -> str:
    """8859358720 -> "8.86 GB", 37486592 -> "37.5 MB" (powers of ten)."""
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
