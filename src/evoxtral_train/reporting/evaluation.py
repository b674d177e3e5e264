"""The HTML page of one or several evaluations: clips to play, one picture, a short table; everything else is folded away."""

from collections.abc import Iterator, Sequence

from ..plain_text import one_line
from ..records import Prediction
from ..scoring import tag_counts
from ..scoring.confusion import NOTHING
from ..scoring.event_times import recall_by_time
from ..scoring.significance import MEASURES, outcome_of, signed
from ..scoring.tag_counts import TagCounts
from ..text.tags import find_tags
from . import plots
from .marks import marked
from .page import ClipView, Line, Section, Table, render
from .results import Evaluation, drawn_clips, how_drawn, sentences, units
from .tables import per_tag_rows, short_rows, systems_rows

EDGES_S = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0, 60.0)


def page(evaluation: Evaluation, more: Sequence[Section] = ()) -> tuple[str, dict[str, bytes]]:
    """(the HTML, its pictures by file name). `more`: sections of the stage's own, after the table of systems."""
    sections = [
        _clips(evaluation), _tags(evaluation), _systems(evaluation), *more,
        _all_measures(evaluation), _differences(evaluation), _tag_by_tag(evaluation), _confusion(evaluation),
        _times(evaluation), _confidence(evaluation),
        _losses(evaluation), _rewards(evaluation), *_worst_and_best(evaluation),
    ]  # fmt: skip
    shown = [section for section in sections if section is not None]
    pictures = {name: png for section in shown for name, png in section.pictures.items()}
    report = next(iter(evaluation.reports.values()))
    subtitle = f"{report['clips']} clips, {report['clips_without_reference_tags']} of them without tags. From {evaluation.source}"
    return render(evaluation.title, subtitle, shown, [f"Not passed: {gate}" for gate in evaluation.gates_not_passed]), pictures


def _clips(evaluation: Evaluation) -> Section:
    only = "" if evaluation.with_words else ", tags only"
    text = f"{how_drawn(evaluation)}. The marks compare what was said with what {evaluation.final} wrote{only}."
    return Section("Said and written", text=text, clips=[_view(row.id, evaluation) for row in drawn_clips(evaluation)])


def _tags(evaluation: Evaluation) -> Section | None:
    """F1 of all tags together, then of each tag, best first by the final system."""
    reports = {
        name: report
        for name, report in evaluation.in_short.items()
        if report["predicted_tags"] and evaluation.yardsticks.get(name) != "chance"
    }
    support = {tag: row["support"] for report in reports.values() for tag, row in report["per_tag"].items() if row["support"]}
    if not support:
        return None
    best = evaluation.reports[evaluation.final]["per_tag"]
    shown = sorted(support, key=lambda tag: (-support[tag], tag))[: plots.MOST]
    tags = sorted(shown, key=lambda tag: (-(best.get(tag, {}).get("f1") or 0), -support[tag], tag))
    series = {name: [_point(report["micro"]["f1"]), *_points(report, tags)] for name, report in reports.items()}
    names = [f"all tags ({sum(support.values())})", *(f"{one_line(tag, 30)} ({support[tag]})" for tag in tags)]
    text = f"F1 with 95% intervals over {units(evaluation)}; in brackets: how often the tag is in the references."
    if len(support) > len(tags):
        text += f" Only the {len(tags)} most frequent of {len(support):,} tags; the table has all of them."
    picture = plots.intervals(names, series, "F1", grey=[name for name in series if name in evaluation.yardsticks])
    return Section("How well each tag is heard", text=text, pictures={"per-tag-f1": picture})


def _points(report: dict, tags: Sequence[str]) -> Iterator[tuple[float, float, float] | None]:
    for tag in tags:
        row = report["per_tag"].get(tag)
        yield row and _point({"value": row["f1"], "low": row["f1_low"], "high": row["f1_high"]})


def _point(measure: dict) -> tuple[float, float, float] | None:
    return None if measure["low"] is None else (measure["value"], measure["low"], measure["high"])


def _systems(evaluation: Evaluation) -> Section:
    text = f"Micro averages with 95% intervals over {units(evaluation)}. False tags: mean per untagged clip."
    return Section("Systems", text=text, table=Table(*short_rows(evaluation.in_short)), points=sentences(evaluation.comparisons))


def _all_measures(evaluation: Evaluation) -> Section:
    text = f"95% intervals over {units(evaluation)}. docs/evaluation.md defines each measure."
    return Section("All measures", text=text, table=Table(*systems_rows(evaluation.reports)), folded=True)


def _differences(evaluation: Evaluation) -> Section | None:
    rows = []
    for pair in evaluation.comparisons:
        for name, measure in pair["measures"].items():
            if measure["value"] is not None:
                cells = [f"{1 - measure['level']:.1%}", str(measure["units"]), f"{measure['p']:.2g}"]
                cells += [f"{measure['smallest_difference']:.3f}", outcome_of(measure)]
                rows.append([f"{pair['after']} against {pair['before']}", MEASURES[name], signed(measure), *cells])
    if not rows:
        return None
    header = ("systems", "measure", "difference", "interval", "units", "p", "smallest detectable", "outcome")
    text = "A difference is significant if its interval excludes 0. Units: clips or speakers that can affect the measure."
    return Section("Differences", text=text, table=Table(header, rows), folded=True)


def _tag_by_tag(evaluation: Evaluation) -> Section:
    text = "F1 (matched / predicted); support: how often the tag is in the references."
    return Section("Tag by tag", text=text, table=Table(*per_tag_rows(evaluation.reports)), folded=True)


def _confusion(evaluation: Evaluation) -> Section | None:
    pictures, rows = {}, []
    for name, report in evaluation.reports.items():
        shares = report["confusion"]["shares"]
        if shares and report["predicted_tags"]:
            rows.append([name, *(f"{shares[kind]:.0%}" for kind in ("right", "same_group", "other_group", "missed"))])
            pictures[name] = {f"confusion-{_slug(name)}": _heatmap(report["confusion"]["tags"])}
    if not rows:
        return None
    table = Table(("system", "right", "same group", "another group", "nothing written"), rows)
    text = f"What was written for each reference tag. The picture shows {evaluation.final}."
    return Section("Confusion", text=text, table=table, pictures=pictures.get(evaluation.final, {}), folded=True)


def _heatmap(table: dict[str, dict[str, float]]) -> bytes:
    names = sorted({*table, *(other for row in table.values() for other in row)} - {NOTHING})
    rows, columns = [*names, NOTHING], [*names, NOTHING]
    values = [[table.get(row, {}).get(column, 0.0) for column in columns] for row in rows]
    return plots.heatmap(rows, columns, values, "written", "reference")


def _times(evaluation: Evaluation) -> Section | None:
    series = {}
    for name in evaluation.leading:
        table = [row for row in recall_by_time(evaluation.rows[name], EDGES_S) if row["low"] is not None]
        if len(table) > 1 and evaluation.reports[name]["predicted_tags"]:
            series[name] = [(row["mean_s"], row["value"], row["low"], row["high"]) for row in table]
    if not series:
        return None
    text = "Recall of events by the time at which they begin."
    picture = plots.bands(series, "start of the event (s)", "recall")
    return Section("Recall by time", text=text, pictures={"recall-by-time": picture}, folded=True)


def _confidence(evaluation: Evaluation) -> Section | None:
    calibrated = {name: report["calibration"] for name, report in evaluation.reports.items() if "calibration" in report}
    if not calibrated:
        return None
    reliability = {
        name: [(bin_["confidence"], bin_["right"]) for bin_ in calibrated[name]["reliability"]["bins"]]
        for name in evaluation.leading
        if name in calibrated
    }
    name = evaluation.final if evaluation.final in calibrated else list(calibrated)[-1]
    content = calibrated[name]
    curves = {kind: _precision_recall(curve) for kind, curve in content["filters"].items()}
    errors = {system: calibration["reliability"] for system, calibration in calibrated.items()}
    rows = [[system, f"{error['expected_error']:.3f}", str(error["tags"])] for system, error in errors.items()]
    axes = {"x_label": "confidence", "y_label": "share right"}
    return Section(
        "Confidence",
        text=f"How often tags of a given confidence are right, and precision and recall of {name} under filters.",
        table=Table(("system", "expected calibration error", "tags"), rows),
        pictures={
            "reliability": plots.lines(reliability, **axes, points=True, diagonal=True, unit_square=True),
            "filters": plots.lines(curves, "micro recall", "micro precision", points=True),
        },
        folded=True,
    )


def _precision_recall(curve: Sequence[dict]) -> list[tuple[float, float]]:
    both = [(point["recall"], point["precision"]) for point in curve]
    return [pair for pair in both if None not in pair]


def _losses(evaluation: Evaluation) -> Section | None:
    if not evaluation.training.losses:
        return None
    picture = plots.lines(evaluation.training.losses, "optimizer step", "loss", y_scale="log")
    return Section("Loss", text="Training loss, and loss on the validation split.", pictures={"loss": picture}, folded=True)


def _rewards(evaluation: Evaluation) -> Section | None:
    if not evaluation.training.rewards:
        return None
    text = "Rewards of all candidates, by round. Line: median; point: mean."
    picture = plots.distributions(evaluation.training.rewards, "reward")
    return Section("Rewards", text=text, pictures={"rewards": picture}, folded=True)


def _worst_and_best(evaluation: Evaluation) -> list[Section]:
    count, ranked = evaluation.clips_shown, sorted(evaluation.rows[evaluation.final], key=_quality)
    if not count:
        return []
    tagged = [row for row in reversed(ranked) if find_tags(row.reference)]
    chosen = {"Worst": ranked[:count], "Best": tagged[:count]}
    text = "Sorted by the clip's F1, then by the number of wrong tags."
    return [
        Section(f"{kind} clips of {evaluation.final}", text=text, clips=[_view(row.id, evaluation) for row in rows], folded=True)
        for kind, rows in chosen.items()
    ]


def _quality(row: Prediction) -> tuple:
    """Worst first: by the clip's F1, then by the number of wrong tags."""
    counts = TagCounts.of(find_tags(row.reference), find_tags(row.prediction))
    wrong = counts.reference.total() + counts.predicted.total() - 2 * counts.matched.total()
    return tag_counts.f1(counts), -wrong, counts.matched.total(), row.id


def _view(identity: str, evaluation: Evaluation) -> ClipView:
    """The clip with what each leading system wrote, except systems that never write a tag. The reference is marked against the
    final system."""
    lines, reference = [], None
    for name in evaluation.leading:
        row = next(row for row in evaluation.rows[name] if row.id == identity)
        marked_reference, written = marked(row.reference, row.prediction, evaluation.with_words)
        if name == evaluation.final:
            reference = marked_reference
        if name == evaluation.final or evaluation.reports[name]["predicted_tags"]:
            lines.append(Line(name, written.stretches))
    return ClipView(identity, reference, lines, evaluation.audio_of(identity))


def _slug(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())
