"""The report of an evaluation, or of several: one page, its pictures, and what is in them as numbers elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..records import Prediction
from ..scoring import tag_counts
from ..scoring.confusion import NOTHING
from ..scoring.event_times import recall_by_time
from ..scoring.significance import MEASURES, outcome_of, sentence, signed
from ..scoring.tables import per_tag_rows, systems_rows
from ..scoring.tag_counts import TagCounts
from ..text.tags import find_tags
from . import plots
from .marks import marked
from .page import ClipView, Line, Section, Table, render

EDGES_S = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0, 60.0)


@dataclass(frozen=True)
class Training:
    """Where a system comes from. `losses`: name -> [(step, loss)]; `rewards`: name of the round -> rewards of its candidates."""

    losses: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    rewards: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What the page is made of. `reports` and `rows` by system; `audio_of`: clip id -> FLAC bytes, or None."""

    title: str
    source: str
    reports: dict[str, dict]
    rows: dict[str, Sequence[Prediction]]
    comparisons: Sequence[dict]
    gates_not_passed: Sequence[str]
    with_words: bool
    training: Training
    audio_of: Callable[[str], bytes | None]
    clips_shown: int


def sentences(comparisons: Sequence[dict]) -> list[str]:
    """Each declared comparison in one sentence."""
    return [sentence(comparison) for comparison in comparisons]


def page(found: Evaluation) -> tuple[str, dict[str, bytes]]:
    """(the HTML, its pictures by file name)."""
    sections = [
        _overview(found), _differences(found), _tags(found), _confusion(found), _times(found), _confidence(found),
        _losses(found), _rewards(found), *_clips(found),
    ]  # fmt: skip
    shown = [section for section in sections if section is not None]
    pictures = {name: png for section in shown for name, png in section.pictures.items()}
    return render(found.title, found.source, shown), pictures


def _overview(found: Evaluation) -> Section:
    first = next(iter(found.reports.values()))
    text = f"{first['clips']} clips, {first['clips_without_reference_tags']} of them without tags in the reference; "
    text += "95% intervals over clips. P precision, R recall; docs/evaluation.md defines each."
    if found.gates_not_passed:
        text += f" NOT PASSED: {'; '.join(found.gates_not_passed)}."
    return Section("Systems", text=text, table=Table(*systems_rows(found.reports)))


def _differences(found: Evaluation) -> Section | None:
    if len(found.reports) < 2:
        return None
    rows = []
    for pair in found.comparisons:
        for name, measure in pair["measures"].items():
            if measure["value"] is not None:
                could = f"{measure['smallest_difference']:.3f}"
                systems = f"{pair['after']} against {pair['before']}"
                rows.append([systems, MEASURES[name], signed(measure), f"{measure['p']:.2g}", outcome_of(measure), could])
    text = "Randomization tests: the first measure of a comparison at 5%, the others at 2.5%."
    header = ("systems", "measure", "difference", "p", "outcome", "could be shown")
    return Section("Differences", text=text, table=Table(header, rows)) if rows else None


def _tags(found: Evaluation) -> Section:
    support = {tag: row["support"] for report in found.reports.values() for tag, row in report["per_tag"].items()}
    tags = sorted((tag for tag in support if support[tag]), key=lambda tag: -support[tag])
    series = {}
    for name, report in found.reports.items():
        if report["predicted_tags"]:
            rows = [report["per_tag"].get(tag) for tag in tags]
            series[name] = [_point(row) for row in rows]
    pictures = (
        {"per-tag-f1": plots.intervals([f"{tag} ({support[tag]})" for tag in tags], series, "F1")} if tags and series else {}
    )
    return Section("Tags", text="In the picture: the tag and how often it is in the references.",
                   table=Table(*per_tag_rows(found.reports)), pictures=pictures)  # fmt: skip


def _point(row: dict | None) -> tuple[float, float, float] | None:
    if row is None or row["f1"] is None or row["f1_low"] is None:
        return None
    return row["f1"], row["f1_low"], row["f1_high"]


def _confusion(found: Evaluation) -> Section | None:
    pictures, rows = {}, []
    for name, report in found.reports.items():
        shares = report["confusion"]["shares"]
        if shares and report["predicted_tags"]:
            rows.append([name, *(f"{shares[kind]:.0%}" for kind in ("right", "same_group", "other_group", "missed"))])
            pictures[f"confusion-{_slug(name)}"] = _heatmap(report["confusion"]["tags"])
    if not rows:
        return None
    table = Table(("system", "right", "another of its group", "of another group", "nothing written"), rows)
    last = list(pictures)[-1:]
    text = "What stands in the place of each tag of the references; the picture is of the last system."
    return Section("Confusion", text=text, table=table, pictures={name: pictures[name] for name in last})


def _heatmap(table: dict[str, dict[str, float]]) -> bytes:
    names = sorted({*table, *(other for row in table.values() for other in row)} - {NOTHING})
    rows, columns = [*names, NOTHING], [*names, NOTHING]
    values = [[table.get(row, {}).get(column, 0.0) for column in columns] for row in rows]
    return plots.heatmap(rows, columns, values, "written", "reference")


def _times(found: Evaluation) -> Section | None:
    series = {}
    for name, rows in found.rows.items():
        table = [row for row in recall_by_time(rows, EDGES_S) if row["low"] is not None]
        if len(table) > 1 and found.reports[name]["predicted_tags"]:
            series[name] = [(row["mean_s"], row["value"], row["low"], row["high"]) for row in table]
    if not series:
        return None
    text = "The share of events that were found, by the second at which they begin."
    return Section(
        "Recall by time", text=text, pictures={"recall-by-time": plots.bands(series, "the event begins at (s)", "recall")}
    )


def _confidence(found: Evaluation) -> Section | None:
    calibrated = {name: report["calibration"] for name, report in found.reports.items() if "calibration" in report}
    if not calibrated:
        return None
    reliability = {
        name: [(each["confidence"], each["right"]) for each in content["reliability"]["bins"]]
        for name, content in calibrated.items()
    }
    name, content = list(calibrated.items())[-1]
    curves = {kind: _precision_recall(curve) for kind, curve in content["filters"].items()}
    errors = {system: each["reliability"] for system, each in calibrated.items()}
    rows = [[system, f"{each['expected_error']:.3f}", str(each["tags"])] for system, each in errors.items()]
    axes = {"x_label": "confidence", "y_label": "share that is right"}
    return Section(
        "Confidence",
        text="The probability that the model gave a tag, against the share of such tags that is right; and what filters by it "
        f"make of precision and recall ({name}).",
        table=Table(("system", "expected calibration error", "tags"), rows),
        pictures={
            "reliability": plots.lines(reliability, **axes, points=True, diagonal=True, unit_square=True),
            "filters": plots.lines(curves, "micro recall", "micro precision", points=True),
        },
    )


def _precision_recall(curve: Sequence[dict]) -> list[tuple[float, float]]:
    both = [(each["recall"], each["precision"]) for each in curve]
    return [pair for pair in both if None not in pair]


def _losses(found: Evaluation) -> Section | None:
    if not found.training.losses:
        return None
    return Section("Loss", pictures={"loss": plots.lines(found.training.losses, "optimizer step", "loss")})


def _rewards(found: Evaluation) -> Section | None:
    if not found.training.rewards:
        return None
    text = "Of all candidates of each round; a line the median, a point the mean."
    return Section("Rewards", text=text, pictures={"rewards": plots.distributions(found.training.rewards, "reward")})


def _clips(found: Evaluation) -> list[Section]:
    """The worst and the best clips of the last system that wrote anything."""
    names = [name for name, report in found.reports.items() if report["predicted_tags"]] or list(found.reports)
    name, count = names[-1], found.clips_shown
    if not count:
        return []
    others = {other: {row.id: row for row in rows} for other, rows in found.rows.items() if other != name}
    ranked = sorted(found.rows[name], key=_quality)
    tagged = [row for row in reversed(ranked) if find_tags(row.reference)]
    return [
        Section(f"Worst clips of {name}", clips=[_view(row, name, others, found) for row in ranked[:count]]),
        Section(f"Best clips of {name}", clips=[_view(row, name, others, found) for row in tagged[:count]]),
    ]


def _quality(row: Prediction) -> tuple:
    """Worst first: by the clip's F1, then by the number of wrong tags."""
    counts = TagCounts.of(find_tags(row.reference), find_tags(row.prediction))
    wrong = counts.reference.total() + counts.predicted.total() - 2 * counts.matched.total()
    return tag_counts.f1(counts), -wrong, counts.matched.total(), row.id


def _view(row: Prediction, name: str, others: dict[str, dict[str, Prediction]], found: Evaluation) -> ClipView:
    reference, prediction = marked(row.reference, row.prediction, found.with_words)
    lines = [reference, Line(name, prediction.stretches)]
    for other, rows in others.items():
        if row.id in rows and rows[row.id].prediction != row.prediction:
            lines.append(Line(other, marked(row.reference, rows[row.id].prediction, found.with_words)[1].stretches))
    return ClipView(row.id, lines, found.audio_of(row.id))


def _slug(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())
