"""`evoxtral data check`: finds what packing would reject, and what would train badly, before any time is spent on it."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ...config.data import PackConfig
from ...corpus.checks import Corpus, Finding, Sound, check_sound
from ...data.manifest import ManifestRow, Rejected, count_rows, iter_manifest
from ...data.workers import in_order, usable_cores, worker_pool
from ...dataset.rows import prepare_row, with_family_defaults
from ...dataset.writer import Chunk, chunks
from ...errors import RowError, UsageError
from ...families.checkpoint import family_for, open_family, resolve_base
from ...files import write_atomic
from ...progress import progress
from ...reading import why_not_a_file
from ...records import dump_row, iter_jsonl, row_place
from ...text.tags import find_tags
from ...text.taxonomy import TagRules, describe_changes
from ..report import Report

_SHOWN = 50
_CHUNK_ROWS = 64


def run(config: PackConfig, findings: Path | None = None) -> Report:
    """Reads every row and clip as packing does, in several processes; the findings do not depend on how many. Only writes
    `findings`, a JSONL of {line, id, kind, reason}."""
    if findings:
        _require_own(findings)
    config = with_family_defaults(config, family_for(config.base, config.revision, config.family)[0])
    rules, tally, corpus = TagRules.of(config.tags), Counter(), Corpus()
    rows = count_rows(config.manifest)
    folder = resolve_base(config.base, config.revision, weights=False)
    all_findings: list[Finding] = []
    seconds, tags, untagged, labelled, good, languages = 0.0, 0, 0, 0, 0, Counter()
    with progress("checking", rows, "clips") as bar:
        for row, sound in _sounds(config, folder, chunks(iter_manifest(config.manifest, rules, tally), _CHUNK_ROWS), rows):
            bar.advance()
            if isinstance(sound, str):
                all_findings.append(Finding(row.line, row.id, "rejected", sound))
                continue
            all_findings += check_sound(row, sound, config.check)
            corpus.add(row, sound)
            languages[row.language or "not given"] += 1
            seconds, good = seconds + sound.duration_s, good + 1
            if row.text is not None:
                count = len(find_tags(row.text))
                tags, untagged, labelled = tags + count, untagged + (count == 0), labelled + 1
    all_findings = sorted([*all_findings, *corpus.findings(config.check)], key=lambda finding: (finding.line, finding.kind))
    counts = Counter(finding.kind for finding in all_findings)
    failing = [finding for finding in all_findings if finding.kind not in config.check.allow]
    facts = {
        "rows": f"{good + counts['rejected']} = {good} good + {counts['rejected']} rejected",
        "hours of audio": f"{seconds / 3600:.2f}",
        "mean length": f"{seconds / good:.1f} s" if good else "—",
        "tags per clip": f"{tags / labelled:.2f}" if labelled else "—",
        "without tags": f"{untagged / labelled:.0%}" if labelled else "—",
    }
    if labelled < good:
        facts["without text"] = f"{good - labelled}, for RAFT alone"
    if set(languages) - {"not given"}:
        facts["languages"] = ", ".join(f"{name} {count}" for name, count in languages.most_common())
    facts |= {f"tags {change}": count for change, count in describe_changes(tally).items()}
    for kind, count in sorted(counts.items()):
        facts[kind.replace("_", " ")] = f"{count}, allowed by check.allow" if kind in config.check.allow else count
    if findings:
        write_atomic(findings, "".join(map(dump_row, all_findings)))
        facts["all findings"] = findings
    places = [f"{row_place(config.manifest, finding.line)}: {finding.id or '(no id)'}" for finding in failing[:_SHOWN]]
    lines = [f"{place}: {finding.kind}: {finding.reason}" for place, finding in zip(places, failing, strict=False)]
    if len(failing) > _SHOWN:
        more = f"… and {len(failing) - _SHOWN} more"
        lines.append(more if findings else f"{more}: write them all to a file with --findings FILE")
    if not good:
        lines.append("no row is good: there would be nothing to pack")
    return Report("data check", facts, table="\n".join(lines), exit_code=2 if not good else int(bool(failing)))


def _require_own(path: Path) -> None:
    """Raises UsageError when something is there that no check wrote: the manifest itself, say."""
    reason = why_not_a_file(path)
    if reason and reason != "does not exist":
        raise UsageError(reason, where=str(path), fix="choose another file for --findings")
    first = None if reason else next(iter_jsonl(path), None)
    if first and not (isinstance(first[1], dict) and first[1].keys() == {"line", "id", "kind", "reason"}):
        raise UsageError("no check wrote this file", where=str(path), fix="choose another one for --findings, or move it away")


def _sounds(
    config: PackConfig, folder: Path, parts: Iterator[Chunk], rows: int
) -> Iterator[tuple[ManifestRow | Rejected, Sound | str]]:
    """Every row in order, with its sound or the reason for rejecting it."""
    processes = min(config.processes or usable_cores(), -(-rows // _CHUNK_ROWS))
    if processes <= 1:
        _start(config, folder)
        for part in parts:
            yield from _listen(part)
        return
    with worker_pool(processes, config.manifest, _start, config, folder) as pool:
        for heard in in_order(pool, _listen, parts, ahead=2 * processes):
            yield from heard


_reader: tuple | None = None  # per process: the config, the base's family


def _start(config: PackConfig, folder: Path) -> None:
    global _reader
    _reader = config, open_family(folder)


def _listen(part: Chunk) -> list[tuple[ManifestRow | Rejected, Sound | str]]:
    heard = []
    for row in part.entries:
        try:
            heard.append((row, row.reason if isinstance(row, Rejected) else Sound.of(prepare_row(row, *_reader).samples)))
        except RowError as error:
            heard.append((row, Rejected.of(_reader[0].manifest, row.line, row.id, error).reason))
    return heard
