"""What a stage tells its caller: a title and facts in order; the command line prints them."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Report:
    """`table`: text to print as it is (Markdown), after the facts. `exit_code`: finished, but the
    answer is no: 1 from a check that found bad rows, 3 from a gate that was not passed."""

    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    table: str = ""
    exit_code: int = 0


def gigabytes(size_bytes: float) -> str:
    """8859358720 -> "8.86 GB", 37486592 -> "37.5 MB" (powers of ten)."""
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
