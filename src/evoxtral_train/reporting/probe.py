"""What the report of a probe has beyond that of any system: its probabilities, and its most frequent errors."""

from collections.abc import Mapping

from ..scoring.confusion import NOTHING, errors
from . import plots
from .page import Section, Table
from .tables import aligned_table, interval

_MOST_ERRORS = 15


def own_sections(tags: Mapping[str, dict], calibration: dict, confusion: Mapping[str, dict[str, float]]) -> list[Section]:
    """`tags`: tag -> its row in the probe's metrics. `calibration`: of all probabilities. `confusion`: reference -> heard."""
    points = {"all tags": [(bin_["confidence"], bin_["right"]) for bin_ in calibration["bins"]]}
    picture = plots.lines(
        points, "probability", "share of clips that have the tag", points=True, diagonal=True, unit_square=True
    )
    text = (
        f"Every tag on every clip: {calibration['tags']:,} probabilities, expected calibration error "
        f"{calibration['expected_error']:.3f}. On the dashed line, a tag given 0.7 is right on 7 of 10 clips."
    )
    frequent = [[said, heard, f"{times:g}"] for said, heard, times in errors(confusion)[:_MOST_ERRORS]]
    return [
        Section("Can its probabilities be trusted?", text=text, table=Table(*_rows(tags)), pictures={"probabilities": picture}),
        Section(
            "Most frequent errors",
            text="A clip with several errors counts as a fraction for each possible confusion.",
            table=Table(("said", "heard", "times"), frequent),
        ),
    ]


def tag_table(tags: Mapping[str, dict]) -> str:
    """For the terminal: one line for each tag, the best first."""
    return aligned_table(*_rows(tags))


def _rows(tags: Mapping[str, dict]) -> tuple[list[str], list[list[str]]]:
    header = ["tag", "clips", "F1", "calibration error", "mean probability", "share of clips", "most frequent error"]
    ranked = sorted(tags.items(), key=lambda row: (-(row[1]["f1"]["value"] or 0.0), row[0]))
    rows = [
        [
            tag, str(row["clips"]), interval(row["f1"]), f"{row['expected_error']:.3f}", f"{row['mean_probability']:.3f}",
            f"{row['share']:.3f}", _error(tag, row["error"]),
        ]
        for tag, row in ranked
    ]  # fmt: skip
    return header, rows


def _error(tag: str, error: dict | None) -> str:
    if error is None:
        return "none"
    times = f"{error['times']:g} of {error['of']}"
    return f"missed ({times})" if error["heard"] == NOTHING else f"heard as {error['heard']} ({times})"
