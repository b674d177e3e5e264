"""`evoxtral data stats`: what a manifest holds, as a page, as pictures and as numbers."""

from collections import Counter
from collections.abc import Iterator

from ... import shipped
from ...config.data import StatsConfig
from ...corpus.statistics import Clip, Statistics, gather, histogram, most_speakers
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
    """Writes `report.html`, `stats.json` and `*.png`. Durations are read from the headers of the audio files."""
    rules, rejected, rows = TagRules.of(config.tags), Counter(), count_rows(config.manifest)
    asked = config.model_dump(mode="json")
    inputs = {"manifest": fingerprint_files([config.manifest]), "tags": fingerprint_files([shipped.find(config.tags.table)])}
    facts = {"rows": rows, "output": config.output}
    if options.dry_run:
        check_output(config.output, "data stats", asked, inputs, options)
        with progress("reading", rows, "clips") as bar:
            if next(_clips(config, rules, rejected, bar), None) is None:
                raise _nothing_read(config, rejected)
        return Report("plan: data stats", facts)
    run = Run.open(config.output, "data stats", asked, inputs, options, [config.manifest])
    with Tracker(config.tracking, "data stats", run.path, config) as tracker:
        with progress("reading", rows, "clips") as bar:
            try:
                found = gather(_clips(config, rules, rejected, bar), rules.taxonomy)
            except ValueError:
                raise _nothing_read(config, rejected) from None
        pictures = _pictures(found)
        for name, png in pictures.items():
            write_atomic(run.path / f"{name}.png", png)
        content = found.to_json() | {"rows": rows, "rejected": rejected.total()}
        run.write_json("stats.json", content)
        run.write_text("report.html", render("Corpus statistics", str(config.manifest), _sections(found, pictures, rejected)))
        clips = sum(found.clips.values())
        metrics = {"clips": clips, "hours": sum(found.hours.values()), "untagged_share": found.untagged_share}
        tracker.summary(metrics)
    run.finish(metrics, fingerprint_files([run.path / "stats.json"]))
    facts |= {
        "clips": f"{clips}, {rejected.total()} rejected" if rejected else clips,
        "hours of audio": f"{metrics['hours']:.2f}",
        "without tags": f"{found.untagged_share:.0%}",
        "report": config.output / "report.html",
    }
    return Report("data stats", facts, table="\n".join(f"- {line}" for line in found.advice))


def _nothing_read(config: StatsConfig, rejected: Counter) -> UsageError:
    return all_rejected("no row can be read", rejected.total(), config.manifest, next(iter(rejected)))


def _clips(config: StatsConfig, rules: TagRules, rejected: Counter, bar: Progress) -> Iterator[Clip]:
    for row in iter_manifest(config.manifest, rules):
        bar.advance()
        if isinstance(row, Rejected):
            rejected[row.reason] += 1
            continue
        try:
            yield Clip(row.split, duration_of(row.audio), row.text, row.speaker, row.license)
        except RowError as error:
            rejected[Rejected.of(config.manifest, row.line, row.id, error).reason] += 1


def _pictures(found: Statistics) -> dict[str, bytes]:
    edges, counts = zip(*histogram(found.durations_s), strict=True)
    splits = list(found.clips)
    by_count = sorted(found.tags, key=lambda tag: -sum(found.tags[tag].values()))
    tags_per_clip = found.tags_per_clip
    pictures = {
        "durations": plots.histogram(edges, counts, "length of the clip (s)"),
        "tags-per-clip": plots.columns(list(tags_per_clip), list(tags_per_clip.values()), "tags in the clip", "clips"),
        "tags": plots.stacked_rows(
            by_count, {split: [found.tags[tag][split] for tag in by_count] for split in splits}, "clips with the tag"
        ),
    }
    if found.together:
        seen = [tag for tag in found.tags if sum(found.tags[tag].values())]
        pairs = {frozenset(pair): count for *pair, count in found.together}
        values = [[0 if one == other else pairs.get(frozenset((one, other)), 0) for other in seen] for one in seen]
        pictures["together"] = plots.heatmap(seen, seen, values, "clips that hold both tags")
    if found.speakers:
        speakers = most_speakers(found)
        pictures["speakers"] = plots.stacked_rows(list(speakers), {"hours": list(speakers.values())}, "hours", decimals=2)
    return pictures


def _sections(found: Statistics, pictures: dict[str, bytes], rejected: Counter) -> list[Section]:
    splits = list(found.clips)
    overview = [[split, f"{found.clips[split]:,}", f"{found.hours[split]:.2f}"] for split in splits]
    overview.append(["together", f"{sum(found.clips.values()):,}", f"{sum(found.hours.values()):.2f}"])
    tags = [
        [
            f"[{tag}]",
            *(f"{counts[split]:,}" for split in splits),
            f"{sum(counts.values()):,}",
            f"{found.occurrences.get(tag, 0):,}",
        ]
        for tag, counts in found.tags.items()
    ]
    lengths = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found.duration_s.items())
    lengths += f"; {found.words_per_second:.1f} words per second."
    sections = [
        Section("Overview", table=Table(("split", "clips", "hours"), overview)),
        Section("Advice", text="" if found.advice else "Nothing stands out.", points=found.advice),
        Section(
            "Length",
            text=lengths,
            pictures={"lengths": pictures["durations"]},
        ),
        Section(
            "Tags per clip",
            text=f"{found.untagged_share:.0%} of the clips are without tags.",
            pictures={"tags per clip": pictures["tags-per-clip"]},
        ),
        Section(
            "Tags",
            table=Table(("tag", *splits, "clips", "times"), tags),
            pictures={"clips with each tag": pictures["tags"]},
        ),
    ]
    if "together" in pictures:
        sections.append(Section("Tags together", pictures={"clips with both tags": pictures["together"]}))
    if "speakers" in pictures:
        what = f"{len(found.speakers)} speakers."
        sections.append(Section("Speakers", text=what, pictures={"hours of each speaker": pictures["speakers"]}))
    licenses = [[name, f"{count:,}"] for name, count in found.licenses.items()]
    sections.append(Section("Licenses", table=Table(("license", "clips"), licenses)))
    if rejected:
        reasons = [[reason, f"{count:,}"] for reason, count in rejected.most_common(20)]
        sections.append(Section("Rejected", text="These rows are in no figure above.", table=Table(("reason", "rows"), reasons)))
    return sections
