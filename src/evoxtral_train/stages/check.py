"""`evoxtral data check`: everything that packing would reject, and what would train badly, before any time is spent."""

from collections import Counter
from pathlib import Path

from ..config.schema import PackConfig
from ..corpus.checks import Corpus, Finding, Sound, check_sound
from ..data.clock import Clock
from ..data.manifest import Rejected, count_rows, iter_manifest
from ..data.packed_rows import prepare_row
from ..data.processor import load_processor, resolve_base
from ..errors import RowError
from ..files import write_atomic
from ..progress import progress
from ..records import dump_row, row_place
from ..text.tags import find_tags
from ..text.taxonomy import TagRules, describe_changes
from .report import Report

_SHOWN = 50


def run(config: PackConfig, findings: Path | None = None) -> Report:
    """Reads every row and every clip as packing does. Writes nothing but `findings`, a JSONL of {line, id, kind, reason}."""
    rules, tally, corpus = TagRules.of(config.tags), Counter(), Corpus()
    rows = count_rows(config.manifest)
    processor = load_processor(resolve_base(config.base, config.revision, weights=False))
    clock = Clock.of(processor)
    found: list[Finding] = []
    seconds, tags, untagged, good = 0.0, 0, 0, 0
    with progress("checking", rows, "clips") as bar:
        for row in iter_manifest(config.manifest, rules, tally):
            bar.advance()
            if isinstance(row, Rejected):
                found.append(Finding(row.line, row.id, "rejected", row.reason))
                continue
            try:
                prepared = prepare_row(row, config, processor, clock)
            except RowError as error:
                found.append(Finding(row.line, row.id, "rejected", Rejected.of(config.manifest, row.line, row.id, error).reason))
                continue
            sound = Sound.of(prepared.samples)
            found += check_sound(row, sound, config.check)
            corpus.add(row, sound)
            count = len(find_tags(row.text))
            seconds, tags, untagged, good = seconds + sound.duration_s, tags + count, untagged + (count == 0), good + 1
    found = sorted([*found, *corpus.findings(config.check)], key=lambda each: (each.line, each.kind))
    counts = Counter(each.kind for each in found)
    telling = [each for each in found if each.kind not in config.check.allow]
    facts = {
        "rows": f"{good + counts['rejected']} = {good} good + {counts['rejected']} rejected",
        "hours of audio": f"{seconds / 3600:.2f}",
        "mean length": f"{seconds / good:.1f} s" if good else "—",
        "tags per clip": f"{tags / good:.2f}" if good else "—",
        "without tags": f"{untagged / good:.0%}" if good else "—",
    }
    facts |= {f"tags {change}": count for change, count in describe_changes(tally).items()}
    for kind, count in sorted(counts.items()):
        facts[kind.replace("_", " ")] = f"{count}, allowed by check.allow" if kind in config.check.allow else count
    if findings:
        write_atomic(findings, "".join(map(dump_row, found)))
        facts["all findings"] = findings
    places = [f"{row_place(config.manifest, each.line)}: {each.id or '(no id)'}" for each in telling[:_SHOWN]]
    lines = [f"{place}: {each.kind}: {each.reason}" for place, each in zip(places, telling, strict=False)]
    if len(telling) > _SHOWN:
        more = f"… and {len(telling) - _SHOWN} more"
        lines.append(more if findings else f"{more}: write them all to a file with --findings FILE")
    if not good:
        lines.append("no row is good: packing would have nothing to do")
    return Report("data check", facts, table="\n".join(lines), exit_code=2 if not good else int(bool(telling)))
