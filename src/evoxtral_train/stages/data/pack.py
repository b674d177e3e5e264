"""`evoxtral data pack`: manifest to packed dataset."""

import time
from collections import Counter
from pathlib import Path

from ... import shipped
from ...config.data import PackConfig
from ...data.manifest import Rejected, count_rows, iter_manifest
from ...data.splits import UNLABELLED
from ...data.workers import usable_cores
from ...dataset.rows import layout_name, with_family_defaults
from ...dataset.writer import CHUNK_ROWS, FORMAT, chunks, finish, pack_chunks
from ...errors import UsageError
from ...families.checkpoint import assumption, family_for, processor_fingerprint, resolve_base
from ...files import fingerprint_files
from ...progress import format_seconds, progress
from ...runs import Options, Run, check_output
from ...text.taxonomy import TagRules, describe_changes
from ...tracking import Tracker
from ..report import Report, all_rejected


def run(config: PackConfig, options: Options) -> Report:
    """Writes `shards/`, an index of each split, `dataset.json` and `rejected.jsonl`; rows in = packed + rejected.

    Several processes pack chunks of rows; `--resume` continues after the last whole chunk.
    """
    family = family_for(config.base, config.revision, config.family)[0]
    config = with_family_defaults(config, family)
    rules, tally = TagRules.of(config.tags), Counter()
    rows = count_rows(config.manifest)
    processes = min(config.processes or usable_cores(), -(-rows // CHUNK_ROWS) or 1)
    facts = {
        "rows": rows,
        "layout": f"{layout_name(config, family)}, target {config.target}",
        "pre-padding": f"{config.audio.prepad_samples:,} samples",
        "processes": processes,
        "output": config.output,
    }
    if said := assumption(config.base, config.revision, config.family, "family"):
        facts["family"] = said
    resolved = config.model_dump(mode="json", exclude={"check"})
    inputs = {"manifest": fingerprint_files([config.manifest]), "tags": fingerprint_files([shipped.find(config.tags.table)])}
    if options.dry_run:
        check_output(config.output, "data pack", resolved, inputs, options)
        bad = [row for row in iter_manifest(config.manifest, rules) if isinstance(row, Rejected)]
        if len(bad) == rows:
            raise _nothing_packed(config, bad)
        return Report("plan: data pack", facts | {"rejected (audio not checked)": len(bad)})
    folder = resolve_base(config.base, config.revision, weights=False)
    run = Run.open(config.output, "data pack", resolved, inputs, options, [config.manifest, config.base])
    started = time.monotonic()
    with Tracker(config.tracking, "data pack", run.path, config) as tracker:
        with progress("packing", rows, "clips") as bar:
            parts = chunks(iter_manifest(config.manifest, rules, tally))
            pack_chunks(
                parts, config, run.path, folder, processes, lambda count, fresh: (bar.advance if fresh else bar.skip)(count)
            )
        packed = finish(run.path)
        run.write_rows("rejected.jsonl", packed.rejected)
        count = sum(packed.rows.values())
        if not count:
            raise _nothing_packed(config, packed.rejected, run.path / "rejected.jsonl")
        run.write_json(
            "dataset.json",
            {
                "format": FORMAT, "rows": packed.rows, "unlabelled": packed.unlabelled, "shards": packed.shards, **packed.layout,
                "target": config.target, "prepad_samples": config.audio.prepad_samples, "tags": _known_tags(rules, tally),
                "processor_fingerprint": processor_fingerprint(folder), "fingerprint": packed.fingerprint,
            },
        )  # fmt: skip
        changes = describe_changes(tally)
        metrics = {"packed": count, "rejected": len(packed.rejected), **packed.rows, "unlabelled": packed.unlabelled}
        metrics["tags_changed"] = changes
        metrics["seconds"] = time.monotonic() - started
        tracker.summary(metrics)
    run.finish(metrics, packed.fingerprint)
    facts |= {"packed": count, "rejected": len(packed.rejected)}
    facts |= {f"split {split}": number for split, number in packed.rows.items()}
    if packed.unlabelled:
        facts[f"split {UNLABELLED}"] = f"{packed.rows[UNLABELLED]}, {packed.unlabelled} of them without text, for RAFT alone"
    facts |= {f"tags {change}": number for change, number in changes.items()}
    facts["time"] = format_seconds(metrics["seconds"])
    if packed.rejected:
        facts["first rejected"] = packed.rejected[0]
        facts["all rejected"] = config.output / "rejected.jsonl"
    return Report("data pack", facts)


def _known_tags(rules: TagRules, tally: Counter) -> list[str]:
    """Those of the table, and unknown ones that were kept."""
    kept = {tag for name, tag in tally if name == tag} - set(rules.taxonomy.tags)
    return [*rules.taxonomy.tags, *sorted(kept)]


def _nothing_packed(config: PackConfig, rejected: list[Rejected], written: Path | None = None) -> UsageError:
    return all_rejected("no row can be packed", len(rejected), config.manifest, str(rejected[0]), written)
