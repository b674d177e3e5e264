"""`evoxtral data stats`: statistics of a manifest as a page, pictures and JSON."""

from collections import Counter
from collections.abc import Iterator

from ... import shipped
from ...config.data import StatsConfig
from ...corpus.statistics import MeasuredClip, Statistics, duration_histogram, gather, most_speakers
from ...data.audio import duration_of
from ...data.manifest import Rejected, count_rows, iter_manifest
from ...errors import RowError, UsageError
from ...files import fingerprint_files, write_atomic
from ...progress import Progress, progress
from ...reporting import plots
from ...reporting.page import Section, Table, render
from ...runs import Options, Run, check_output
from ...text.taxonomy import TagRules
from ...tracking import Tracker
from ..report import Report, all_rejected


def run(config: StatsConfig, options: Options) -> Report:
    """Writes `report.html`, `stats.json` and `*.png`. Durations come from the headers of the audio files."""
    rules, rejected, rows = TagRules.of(config.tags), Counter(), count_rows(config.manifest)
    resolved = config.model_dump(mode="json")
    inputs = {"manifest": fingerprint_files([config.manifest]), "tags": fingerprint_files([shipped.find(config.tags.table)])}
    facts = {"rows": rows, "output": config.output}
    if options.dry_run:
        check_output(config.output, "data stats", resolved, inputs, options)
        with progress("reading", rows, "clips") as bar:
            if next(_clips(config, rules, rejected, bar), None) is None:
                raise _nothing_read(config, rejected)
        return Report("plan: data stats", facts)
    run = Run.open(config.output, "data stats", resolved, inputs, options, [config.manifest])
    with Tracker(config.tracking, "data stats", run.path, config) as tracker:
        with progress("reading", rows, "clips") as bar:
            try:
                statistics = gather(_clips(config, rules, rejected, bar), rules.taxonomy)
            except ValueError:
                raise _nothing_read(config, rejected) from None
        pictures = _pictures(statistics)
        for name, png in pictures.items():
            write_atomic(run.path / f"{name}.png", png)
        content = statistics.to_json() | {"rows": rows, "rejected": rejected.total()}
        run.write_json("stats.json", content)
        sections = _sections(statistics, pictures, rejected)
        run.write_text("report.html", render("Corpus statistics", str(config.manifest), sections))
        clips = sum(statistics.clips.values())
        metrics = {"clips": clips, "hours": sum(statistics.hours.values()), "untagged_share": statistics.untagged_share}
        tracker.summary(metrics)
    run.finish(metrics, fingerprint_files([run.path / "stats.json"]))
    facts |= {
        "clips": f"{clips}, {rejected.total()} rejected" if rejected else clips,
        "hours of audio": f"{metrics['hours']:.2f}",
        "without tags": "—" if statistics.untagged_share is None else f"{statistics.untagged_share:.0%}",
        **({"without text": _unlabelled(statistics)} if statistics.unlabelled[0] else {}),
        "report": config.output / "report.html",
    }
    return Report("data stats", facts, table="\n".join(f"- {line}" for line in statistics.advice))


def _unlabelled(statistics: Statistics) -> str:
    clips, hours = statistics.unlabelled
    return f"{clips:,} clips, {hours:.2f} hours, for RAFT alone"


def _nothing_read(config: StatsConfig, rejected: Counter) -> UsageError:
    return all_rejected("no row can be read", rejected.total(), config.manifest, next(iter(rejected)))


def _clips(config: StatsConfig, rules: TagRules, rejected: Counter, bar: Progress) -> Iterator[MeasuredClip]:
    for row in iter_manifest(config.manifest, rules):
        bar.advance()
        if isinstance(row, Rejected):
            rejected[row.reason] += 1
            continue
        try:
            yield MeasuredClip(row.split, duration_of(row.audio), row.text, row.speaker, row.license, row.language)
        except RowError as error:
            rejected[Rejected.of(config.manifest, row.line, row.id, error).reason] += 1


def _pictures(statistics: Statistics) -> dict[str, bytes]:
    edges, counts = zip(*duration_histogram(statistics.durations_s), strict=True)
    splits = list(statistics.clips)
    by_count = sorted(statistics.tags, key=lambda tag: -sum(statistics.tags[tag].values()))
    tags_per_clip = statistics.tags_per_clip
    pictures = {"durations": plots.histogram(edges, counts, "length of the clip (s)")}
    if statistics.untagged_share is not None:
        pictures |= {
            "tags-per-clip": plots.columns(list(tags_per_clip), list(tags_per_clip.values()), "tags in the clip", "clips"),
            "tags": plots.stacked_rows(
                by_count, {split: [statistics.tags[tag][split] for tag in by_count] for split in splits}, "clips with the tag"
            ),
        }
    if statistics.together:
        seen = [tag for tag in statistics.tags if sum(statistics.tags[tag].values())]
        pairs = {frozenset(pair): count for *pair, count in statistics.together}
        values = [[0 if one == other else pairs.get(frozenset((one, other)), 0) for other in seen] for one in seen]
        pictures["together"] = plots.heatmap(seen, seen, values, "clips that hold both tags")
    if statistics.speakers:
        speakers = most_speakers(statistics)
        pictures["speakers"] = plots.stacked_rows(list(speakers), {"hours": list(speakers.values())}, "hours", decimals=2)
    return pictures


def _sections(statistics: Statistics, pictures: dict[str, bytes], rejected: Counter) -> list[Section]:
    splits = list(statistics.clips)
    overview = [[split, f"{statistics.clips[split]:,}", f"{statistics.hours[split]:.2f}"] for split in splits]
    overview.append(["together", f"{sum(statistics.clips.values()):,}", f"{sum(statistics.hours.values()):.2f}"])
    tags = [
        [
            f"[{tag}]",
            *(f"{counts[split]:,}" for split in splits),
            f"{sum(counts.values()):,}",
            f"{statistics.occurrences.get(tag, 0):,}",
        ]
        for tag, counts in statistics.tags.items()
    ]
    lengths = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in statistics.duration_s.items())
    lengths += "." if statistics.words_per_second is None else f"; {statistics.words_per_second:.1f} words per second."
    sections = [
        Section(
            "Overview",
            text=f"Without text: {_unlabelled(statistics)}." if statistics.unlabelled[0] else "",
            table=Table(("split", "clips", "hours"), overview),
        ),
        Section("Advice", text="" if statistics.advice else "Nothing unusual.", points=statistics.advice),
        Section(
            "Length",
            text=lengths,
            pictures={"lengths": pictures["durations"]},
        ),
    ]
    if statistics.untagged_share is not None:
        untagged, per_clip = f"{statistics.untagged_share:.0%} of the clips are untagged.", pictures["tags-per-clip"]
        sections += [
            Section("Tags per clip", text=untagged, pictures={"tags per clip": per_clip}),
            Section(
                "Tags",
                table=Table(("tag", *splits, "clips", "times"), tags),
                pictures={"clips with each tag": pictures["tags"]},
            ),
        ]
    if "together" in pictures:
        sections.append(Section("Tags together", pictures={"clips with both tags": pictures["together"]}))
    if "speakers" in pictures:
        what = f"{len(statistics.speakers)} speakers."
        sections.append(Section("Speakers", text=what, pictures={"hours of each speaker": pictures["speakers"]}))
    if set(statistics.languages) != {"not given"}:
        languages = [[name, f"{count:,}"] for name, count in statistics.languages.items()]
        sections.append(Section("Languages", table=Table(("language", "clips"), languages)))
    licenses = [[name, f"{count:,}"] for name, count in statistics.licenses.items()]
    sections.append(Section("Licenses", table=Table(("license", "clips"), licenses)))
    if rejected:
        reasons = [[reason, f"{count:,}"] for reason, count in rejected.most_common(20)]
        text = "These rows are not included in the figures above."
        sections.append(Section("Rejected", text=text, table=Table(("reason", "rows"), reasons)))
    return sections
