"""The page of an evaluation, or of several: clips to hear, one picture, a short table; everything else folded away."""

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


def page(found: Evaluation) -> tuple[str, dict[str, bytes]]:
    """(the HTML, its pictures by file name)."""
    sections = [
        _clips(found), _tags(found), _systems(found),
        _every_measure(found), _differences(found), _tag_by_tag(found), _confusion(found), _times(found), _confidence(found),
        _losses(found), _rewards(found), *_worst_and_best(found),
    ]  # fmt: skip
    shown = [section for section in sections if section is not None]
    pictures = {name: png for section in shown for name, png in section.pictures.items()}
    report = next(iter(found.reports.values()))
    subtitle = f"{report['clips']} clips, {report['clips_without_reference_tags']} of them without tags. From {found.source}"
    return render(found.title, subtitle, shown, [f"Not passed: {gate}" for gate in found.gates_not_passed]), pictures


def _clips(found: Evaluation) -> Section:
    only = "" if found.with_words else ", tags only"
    text = f"{how_drawn(found)}. What was said is marked by what {found.final} wrote{only}."
    return Section("Said and written", text=text, clips=[_view(row.id, found) for row in drawn_clips(found)])


def _tags(found: Evaluation) -> Section | None:
    """F1 of each tag, the one that the final system knows best first; above them all tags together."""
    reports = {
        name: report
        for name, report in found.in_short.items()
        if report["predicted_tags"] and found.yardsticks.get(name) != "chance"
    }
    support = {tag: row["support"] for report in reports.values() for tag, row in report["per_tag"].items() if row["support"]}
    if not support:
        return None
    best = found.reports[found.final]["per_tag"]
    shown = sorted(support, key=lambda tag: (-support[tag], tag))[: plots.MOST]
    tags = sorted(shown, key=lambda tag: (-(best.get(tag, {}).get("f1") or 0), -support[tag], tag))
    series = {name: [_point(report["micro"]["f1"]), *_points(report, tags)] for name, report in reports.items()}
    names = [f"all tags ({sum(support.values())})", *(f"{one_line(tag, 30)} ({support[tag]})" for tag in tags)]
    text = f"F1 with its 95% interval over {units(found)}; in brackets how often the tag is in the references."
    if len(support) > len(tags):
        text += f" The {len(tags)} most frequent of {len(support):,} tags; the table has all of them."
    picture = plots.intervals(names, series, "F1", grey=[name for name in series if name in found.yardsticks])
    return Section("How well each tag is heard", text=text, pictures={"per-tag-f1": picture})


def _points(report: dict, tags: Sequence[str]) -> Iterator[tuple[float, float, float] | None]:
    for tag in tags:
        row = report["per_tag"].get(tag)
        yield row and _point({"value": row["f1"], "low": row["f1_low"], "high": row["f1_high"]})


def _point(measure: dict) -> tuple[float, float, float] | None:
    return None if measure["low"] is None else (measure["value"], measure["low"], measure["high"])


def _systems(found: Evaluation) -> Section:
    text = f"Micro averages with 95% intervals over {units(found)}. False tags: per untagged clip."
    return Section("Systems", text=text, table=Table(*short_rows(found.in_short)), points=sentences(found.comparisons))


def _every_measure(found: Evaluation) -> Section:
    text = f"95% intervals over {units(found)}. docs/evaluation.md defines each measure."
    return Section("Every measure", text=text, table=Table(*systems_rows(found.reports)), folded=True)


def _differences(found: Evaluation) -> Section | None:
    rows = []
    for pair in found.comparisons:
        for name, measure in pair["measures"].items():
            if measure["value"] is not None:
                cells = [f"{1 - measure['level']:.1%}", str(measure["units"]), f"{measure['p']:.2g}"]
                cells += [f"{measure['smallest_difference']:.3f}", outcome_of(measure)]
                rows.append([f"{pair['after']} against {pair['before']}", MEASURES[name], signed(measure), *cells])
    if not rows:
        return None
    header = ("systems", "measure", "difference", "interval", "units", "p", "smallest that could be shown", "outcome")
    text = "A difference is shown when its interval excludes 0; units: clips or speakers that the measure depends on."
    return Section("Differences", text=text, table=Table(header, rows), folded=True)


def _tag_by_tag(found: Evaluation) -> Section:
    text = "F1 (matched / predicted); support: how often the tag is in the references."
    return Section("Tag by tag", text=text, table=Table(*per_tag_rows(found.reports)), folded=True)


def _confusion(found: Evaluation) -> Section | None:
    pictures, rows = {}, []
    for name, report in found.reports.items():
        shares = report["confusion"]["shares"]
        if shares and report["predicted_tags"]:
            rows.append([name, *(f"{shares[kind]:.0%}" for kind in ("right", "same_group", "other_group", "missed"))])
            pictures[name] = {f"confusion-{_slug(name)}": _heatmap(report["confusion"]["tags"])}
    if not rows:
        return None
    table = Table(("system", "right", "another of its group", "of another group", "nothing written"), rows)
    text = f"What is written for each tag of the references. The picture is of {found.final}."
    return Section("Confusion", text=text, table=table, pictures=pictures.get(found.final, {}), folded=True)


def _heatmap(table: dict[str, dict[str, float]]) -> bytes:
    names = sorted({*table, *(other for row in table.values() for other in row)} - {NOTHING})
    rows, columns = [*names, NOTHING], [*names, NOTHING]
    values = [[table.get(row, {}).get(column, 0.0) for column in columns] for row in rows]
    return plots.heatmap(rows, columns, values, "written", "reference")


def _times(found: Evaluation) -> Section | None:
    series = {}
    for name in found.leading:
        table = [row for row in recall_by_time(found.rows[name], EDGES_S) if row["low"] is not None]
        if len(table) > 1 and found.reports[name]["predicted_tags"]:
            series[name] = [(row["mean_s"], row["value"], row["low"], row["high"]) for row in table]
    if not series:
        return None
    text = "The share of events that were found, by the second at which they begin."
    picture = plots.bands(series, "the event begins at (s)", "recall")
    return Section("Recall by time", text=text, pictures={"recall-by-time": picture}, folded=True)


def _confidence(found: Evaluation) -> Section | None:
    calibrated = {name: report["calibration"] for name, report in found.reports.items() if "calibration" in report}
    if not calibrated:
        return None
    reliability = {
        name: [(each["confidence"], each["right"]) for each in calibrated[name]["reliability"]["bins"]]
        for name in found.leading
        if name in calibrated
    }
    name = found.final if found.final in calibrated else list(calibrated)[-1]
    content = calibrated[name]
    curves = {kind: _precision_recall(curve) for kind, curve in content["filters"].items()}
    errors = {system: each["reliability"] for system, each in calibrated.items()}
    rows = [[system, f"{each['expected_error']:.3f}", str(each["tags"])] for system, each in errors.items()]
    axes = {"x_label": "confidence", "y_label": "share that is right"}
    return Section(
        "Confidence",
        text=f"How often tags of a confidence are right, and what filters make of the precision and recall of {name}.",
        table=Table(("system", "expected calibration error", "tags"), rows),
        pictures={
            "reliability": plots.lines(reliability, **axes, points=True, diagonal=True, unit_square=True),
            "filters": plots.lines(curves, "micro recall", "micro precision", points=True),
        },
        folded=True,
    )


def _precision_recall(curve: Sequence[dict]) -> list[tuple[float, float]]:
    both = [(each["recall"], each["precision"]) for each in curve]
    return [pair for pair in both if None not in pair]


def _losses(found: Evaluation) -> Section | None:
    if not found.training.losses:
        return None
    picture = plots.lines(found.training.losses, "optimizer step", "loss", y_scale="log")
    return Section(
        "Loss", text="Of each training, on its own clips and on the validation split.", pictures={"loss": picture}, folded=True
    )


def _rewards(found: Evaluation) -> Section | None:
    if not found.training.rewards:
        return None
    text = "Of all candidates of each round: the line is the median, the point the mean."
    picture = plots.distributions(found.training.rewards, "reward")
    return Section("Rewards", text=text, pictures={"rewards": picture}, folded=True)


def _worst_and_best(found: Evaluation) -> list[Section]:
    count, ranked = found.clips_shown, sorted(found.rows[found.final], key=_quality)
    if not count:
        return []
    tagged = [row for row in reversed(ranked) if find_tags(row.reference)]
    chosen = {"Worst": ranked[:count], "Best": tagged[:count]}
    text = "By the clip's F1, then by the number of wrong tags."
    return [
        Section(f"{kind} clips of {found.final}", text=text, clips=[_view(row.id, found) for row in rows], folded=True)
        for kind, rows in chosen.items()
    ]


def _quality(row: Prediction) -> tuple:
    """Worst first: by the clip's F1, then by the number of wrong tags."""
    counts = TagCounts.of(find_tags(row.reference), find_tags(row.prediction))
    wrong = counts.reference.total() + counts.predicted.total() - 2 * counts.matched.total()
    return tag_counts.f1(counts), -wrong, counts.matched.total(), row.id


def _view(identity: str, found: Evaluation) -> ClipView:
    """The clip with what each leading system wrote, but for those that never write a tag; the final system is the one by
    which the reference is marked."""
    lines, reference = [], None
    for name in found.leading:
        row = next(row for row in found.rows[name] if row.id == identity)
        marked_reference, written = marked(row.reference, row.prediction, found.with_words)
        if name == found.final:
            reference = marked_reference
        if name == found.final or found.reports[name]["predicted_tags"]:
            lines.append(Line(name, written.stretches))
    return ClipView(identity, reference, lines, found.audio_of(identity))


def _slug(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())
