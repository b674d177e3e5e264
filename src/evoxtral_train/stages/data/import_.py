"""`evoxtral data import`: converts a corpus to a manifest."""

import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ... import shipped
from ...config.data import ImportConfig
from ...corpus.sources import SourceRow, files_in, place_audio, read_source
from ...corpus.transcripts import forbids_commercial_use, tagged_transcript
from ...data.manifest import Rejected, check_fields, rename_events
from ...data.splits import SPLITS, UNLABELLED, deal
from ...errors import RowError, UsageError
from ...files import fingerprint_files, fingerprint_text
from ...progress import Progress, format_seconds
from ...reading import parse_json, shown, writable
from ...records import JsonlAppender, read_jsonl
from ...runs import Options, Run, check_output
from ...synthesis.scripts import check_script
from ...text.languages import language_code
from ...text.normalize import normalize_words
from ...text.tags import find_tags, strip_tags
from ...text.taxonomy import TagRules, describe_changes
from ...tracking import Tracker
from ..report import Report, all_rejected

_PART = "rows.part.jsonl"
_AT_ONCE = 64


def run(config: ImportConfig, options: Options) -> Report:
    """Writes `manifest.jsonl`, `rejected.jsonl`, and `audio/` if the source contains audio bytes; rows in = imported + rejected.

    Existing audio files are not copied; the manifest refers to them where they are.
    """
    _check_license(config.license, config)
    if config.language:
        _check_language(config.language)
    rules = TagRules.of(config.tags)
    facts: dict[str, Any] = {"source": f"{config.source.kind} {config.source.path}", "output": config.output}
    if config.license:
        facts["license"] = _license_fact(config.license)
    resolved = config.model_dump(mode="json")
    inputs = {"tags": fingerprint_files([shipped.find(config.tags.table)])}
    path = Path(config.source.path)
    if path.is_file():
        inputs["source"] = fingerprint_files([path])
    elif path.is_dir():
        sizes = (f"{writable(str(file))}\0{file.stat().st_size}\n" for file in files_in(path))
        inputs["source"] = fingerprint_text("".join(sizes))
    check_output(config.output, "data import", resolved, inputs, options, [path])
    source = _rows(config)
    first = next(source, None)  # errors of the source as a whole show here, before anything is written
    if first is None:
        raise UsageError("contains no rows", where=config.source.path)
    if options.dry_run:
        good = _first_good(config, rules, chain([first], source))
        return Report("plan: data import", facts | {"columns": ", ".join(good.columns)})
    run = Run.open(config.output, "data import", resolved, inputs, options, [path])
    started = time.monotonic()
    with Tracker(config.tracking, "data import", run.path, config) as tracker:
        _import_all(run, config, rules, chain([first], source))
        rows, unlabelled, tally, splits = _deal(run.path / _PART, config)
        run.write_rows("rejected.jsonl", (entry["rejected"] for entry in _entries(run.path / _PART) if "rejected" in entry))
        if not splits:
            rejected = run.path / "rejected.jsonl"
            raise _nothing_imported(config, rows, next(read_jsonl(rejected))[1], rejected)
        run.write_rows("manifest.jsonl", _manifest_rows(run.path / _PART, splits))
        (run.path / _PART).unlink()
        changes, counts = describe_changes(tally), Counter(splits)
        metrics = {"imported": len(splits), "unlabelled": unlabelled, "rejected": rows - len(splits), "tags_changed": changes}
        metrics["splits"] = dict(counts)
        metrics["seconds"] = time.monotonic() - started
        tracker.summary(metrics)
    run.finish(metrics, fingerprint_files([run.path / "manifest.jsonl"]))
    facts["rows"] = f"{rows} = {len(splits)} imported + {rows - len(splits)} rejected"
    facts |= {f"split {split}": counts[split] for split in SPLITS if counts[split]}
    if unlabelled:
        facts["without text"] = f"{unlabelled}, for RAFT alone"
    facts |= {f"tags {change}": count for change, count in changes.items()}
    if rows > len(splits):
        first = next(read_jsonl(config.output / "rejected.jsonl"))[1]
        facts["first rejected"] = Rejected(**first)
        facts["all rejected"] = config.output / "rejected.jsonl"
    facts |= {"time": format_seconds(metrics["seconds"]), "manifest": config.output / "manifest.jsonl"}
    return Report("data import", facts)


def _first_good(config: ImportConfig, rules: TagRules, source: Iterable[SourceRow]) -> SourceRow:
    """The first row that can be imported; its files go to a temporary folder. Raises UsageError if there is none."""
    first, count = None, 0
    with TemporaryDirectory() as folder:
        for row in source:
            entry = _import_row(row, config, rules, Path(folder), {})
            if "row" in entry:
                return row
            first, count = first or entry["rejected"], count + 1
    raise _nothing_imported(config, count, first)


def _nothing_imported(config: ImportConfig, rows: int, first: dict, written: Path | None = None) -> UsageError:
    return all_rejected("no row can be imported", rows, config.source.path, str(Rejected(**first)), written)


def _check_license(name: str | None, config: ImportConfig, error: type[UsageError] = UsageError) -> None:
    if forbids_commercial_use(name) and config.accept_license != name:
        raise error(
            f"the license {name} forbids commercial use of the data and of models trained on it",
            where=config.source.path if error is UsageError else None,
            fix=f"if you accept that, set accept_license: {name}",
        )


def _check_language(name: str) -> None:
    try:
        language_code(name)
    except RowError as error:
        raise UsageError(error.what, where="language", fix=error.fix) from None


def _license_fact(name: str) -> str:
    return f"{name}: NO COMMERCIAL USE, accepted in the config" if forbids_commercial_use(name) else name


def _rows(config: ImportConfig) -> Iterator[SourceRow]:
    named = config.columns.model_dump()
    if not config.has_texts or (config.source.kind == "folder" and config.transcript.missing == UNLABELLED):
        named.pop("text")  # no row has one, or a file may lack its .txt or .json
    needed = [column for column in named.values() if column is not None]
    if config.transcript.leading_tag:
        needed.append(config.transcript.leading_tag.column)
    return read_source(config.source, config.columns.audio, needed)


def _import_all(run: Run, config: ImportConfig, rules: TagRules, source: Iterable[SourceRow]) -> None:
    """Write every row, imported or rejected, to one file in order; skip the rows that an earlier run did."""
    with JsonlAppender(run.path / _PART) as appender:
        ids, done = {}, 0
        for entry in _entries(run.path / _PART):
            done += 1
            if "row" in entry:
                ids[entry["row"]["id"]] = entry["number"]
        bar = Progress("importing", config.source.max_rows, "rows")
        bar.skip(done)
        waiting = []
        for index, row in enumerate(source):
            if index < done:
                continue
            waiting.append(_import_row(row, config, rules, run.path, ids))
            if len(waiting) == _AT_ONCE:
                appender.append(waiting)
                bar.advance(len(waiting))
                waiting = []
        appender.append(waiting)
        bar.close()


def _import_row(row: SourceRow, config: ImportConfig, rules: TagRules, output: Path, ids: dict[str, int]) -> dict:
    """{"number", "row", "changes"} or {"rejected"}."""
    identity = None
    try:
        if "(error)" in row.columns:
            raise RowError(row.columns["(error)"])
        if row.columns.get("(no header)"):
            raise RowError("more fields than the header names", fix="quote fields that hold the delimiter")
        identity = _identity(row, config)
        check_fields({"id": identity})
        tally: Counter = Counter()
        content = _manifest_row(row, identity, config, rules, tally)
        if identity in ids:
            raise RowError(f"duplicate id, first seen in row {ids[identity]}", fix="give each clip its own id")
        path = place_audio(_value(row, config.columns.audio), row, output, identity)
        content["audio"] = os.path.relpath(path, output)
        check_fields(content)
        ids[identity] = row.number
        return {"number": row.number, "row": content, "changes": [[*change, count] for change, count in tally.items()]}
    except RowError as error:
        return {"rejected": vars(Rejected.of(row.file, row.number, identity, error))}


def _manifest_row(row: SourceRow, identity: str, config: ImportConfig, rules: TagRules, tally: Counter) -> dict:
    """The manifest row without its audio. Raises RowError for anything that a manifest does not accept."""
    columns = config.columns
    content = {"id": identity, "audio": ""}
    text, split = _text(row, config, rules, tally), _given_split(row, config)
    content |= {"split": split or UNLABELLED} if text is None else {"text": text, "split": split}
    content["source"] = config.source.path
    license_name = _name(row, columns.license) if columns.license else config.license
    if license_name:
        _check_license(license_name, config, RowError)
        content["license"] = license_name
    if language := columns.language and _name(row, columns.language) or config.language:
        content["language"] = language_code(language)
    if columns.speaker and (speaker := _name(row, columns.speaker)):
        content["speaker"] = speaker
    if columns.words:
        content["words"] = _listed(row, columns.words)
    if columns.events:
        content["events"] = _listed(row, columns.events)
    check_fields(content)
    if columns.events:
        content["events"] = rename_events(content["events"], rules)
    return content


def _text(row: SourceRow, config: ImportConfig, rules: TagRules, tally: Counter) -> str | None:
    """The tagged transcript; None for a clip that has none. Raises RowError if it should have one."""
    columns, may_be_missing = config.columns, config.transcript.missing == UNLABELLED
    if not config.has_texts:
        return None
    text = row.columns.get(columns.text) if may_be_missing else _value(row, columns.text)
    if text is None or text == "" or str(text).isspace():
        if may_be_missing:
            return None
        fix = "write its transcript, or keep such clips for RAFT alone with transcript.missing: raft"
        raise RowError(f"`{columns.text}` is empty", fix=fix)
    check_fields({"text": text})
    tagged = tagged_transcript(text, row.columns, config.transcript)
    named = rules.apply(tagged, tally)
    if columns.plain_text or columns.tags_used:
        check_script(tagged, *(_value(row, name) if name else None for name in (columns.plain_text, columns.tags_used)))
    if not named:
        raise RowError(f"nothing is left of `{columns.text}`: {shown(text)}", fix="keep its tags, or leave the row out")
    return named


def _identity(row: SourceRow, config: ImportConfig) -> str:
    if config.columns.id:
        identity = _name(row, config.columns.id)
        if not identity.strip():
            raise RowError(f"`{config.columns.id}` is empty", fix="give each clip its own id, or set columns.id to null")
        return identity
    return row.part if config.source.kind == "folder" else f"{row.part}-{row.number:06d}"


def _name(row: SourceRow, column: str) -> str:
    """The id, speaker, license or split in a column as text; numbers are converted, a missing value is ""."""
    value = _value(row, column)
    if value is None:
        return ""
    if not isinstance(value, str | int | float) or isinstance(value, bool) or value != value or value in (math.inf, -math.inf):
        raise RowError(f"`{column}` is {shown(value)}, not a name", fix="write text or a number")
    return str(value)


def _value(row: SourceRow, column: str) -> Any:
    if column not in row.columns:
        raise RowError(f"there is no column {column!r}", fix=f"this row has {', '.join(map(repr, row.columns))}: set `columns`")
    return row.columns[column]


def _listed(row: SourceRow, column: str) -> Any:
    """The words or events, which a table's cell may hold as JSON; not checked yet."""
    value = _value(row, column)
    if isinstance(value, str):
        try:
            value = parse_json(value or "[]")
        except RowError as error:
            raise RowError(f"`{column}` is {error}") from None
    return value or []


def _given_split(row: SourceRow, config: ImportConfig) -> str | None:
    """Our name for the source's split, or None if `deal` will assign one."""
    if not config.deal.keep_given:
        return None
    given = _name(row, config.columns.split) if config.columns.split else row.split
    if not given:
        return None
    split = config.source.splits.get(given) if config.source.splits else given
    if split not in SPLITS:
        known = ", ".join(config.source.splits or SPLITS)
        raise RowError(f"unknown split {shown(given)}", fix=f"known: {known}; set source.splits, or deal.keep_given to false")
    return split


def _deal(part: Path, config: ImportConfig) -> tuple[int, int, Counter, list[str]]:
    """(rows in, imported rows without text, changes to tags, the split of each imported row)."""
    rows, unlabelled, tally, splits = 0, 0, Counter(), []
    tags: list[list[str]] = []
    groups: list[list[str]] = []
    for entry in _entries(part):
        rows += 1
        if "rejected" in entry:
            continue
        for name, tag, count in entry["changes"]:
            tally[name, tag] += count
        row = entry["row"]
        unlabelled += "text" not in row
        splits.append(row["split"] or "")
        if not row["split"]:
            tags.append(find_tags(row["text"]))
            groups.append(_groups(row, config))
    dealt = iter(deal(tags, groups, dict(config.deal.shares), config.deal.seed))
    return rows, unlabelled, tally, [split or next(dealt) for split in splits]


def _groups(row: dict, config: ImportConfig) -> list[str]:
    """The groups that must stay in one split; a clip without any is a group of its own."""
    groups = []
    if "speaker" in config.deal.group_by and row.get("speaker"):
        groups.append(f"speaker {row['speaker']}")
    if "sentence" in config.deal.group_by and (words := normalize_words(strip_tags(row["text"]))):
        groups.append(f"sentence {words}")
    return groups or [f"clip {row['id']}"]


def _manifest_rows(part: Path, splits: list[str]) -> Iterator[dict]:
    remaining = iter(splits)
    for entry in _entries(part):
        if "row" in entry:
            yield entry["row"] | {"split": next(remaining)}


def _entries(part: Path) -> Iterator[dict]:
    return (entry for _, entry in read_jsonl(part))
