"""`evoxtral data pack`: manifest to packed dataset."""

import time
from dataclasses import asdict

from ..config.schema import PackConfig
from ..data.clock import Clock
from ..data.manifest import read_manifest
from ..data.packing import FORMAT, pack_row, write_splits
from ..data.processor import load_processor, processor_fingerprint, resolve_base
from ..errors import UsageError
from ..progress import track
from ..runs import Options, Run, check_output, fingerprint_files
from ..tracking import Tracker
from .report import Report


def run(config: PackConfig, options: Options) -> Report:
    """Writes `<split>.arrow`, `dataset.json` and `rejected.jsonl`; rows in = packed + rejected."""
    rows, rejected = read_manifest(config.manifest, tuple(config.tags))
    facts = {
        "rows": len(rows) + len(rejected),
        "layout": f"{config.layout.kind}, target {config.target}",
        "pre-padding": f"{config.audio.prepad_samples:,} samples",
        "output": config.output,
    }
    asked, inputs = config.model_dump(mode="json"), {"manifest": fingerprint_files([config.manifest])}
    if options.dry_run:
        check_output(config.output, "data pack", asked, inputs, options)
        return Report("plan: data pack", facts | {"rejected by the manifest alone": len(rejected)})
    folder = resolve_base(config.base, config.revision, weights=False)
    processor = load_processor(folder)
    clock = Clock.of(processor)
    run = Run.open(config.output, "data pack", asked, inputs, options)
    started = time.monotonic()
    with Tracker(config.tracking, "data pack", config.output, config) as tracker:
        counts, unfit, fingerprint = write_splits(
            run.path,
            track(rows, "packing", len(rows), "clips"),
            lambda row: pack_row(row, config, processor, clock),
            config.manifest,
        )
        rejected = sorted([*rejected, *unfit], key=lambda each: each.line)
        run.write_rows("rejected.jsonl", rejected)
        packed = sum(counts.values())
        if not packed:
            raise UsageError("no row could be packed", where=str(config.manifest), fix=f"first reason: {rejected[0].reason}")
        run.write_json(
            "dataset.json",
            {
                "format": FORMAT, "rows": counts, "layout": config.layout.kind, "target": config.target,
                "room_tokens": config.layout.room_tokens, "clock": asdict(clock),
                "processor_fingerprint": processor_fingerprint(folder), "fingerprint": fingerprint,
            },
        )  # fmt: skip
        metrics = {"packed": packed, "rejected": len(rejected), **counts, "seconds": time.monotonic() - started}
        tracker.summary(metrics)
        run.finish(metrics, fingerprint)
    facts |= {"packed": packed, "rejected": len(rejected)}
    facts |= {f"split {split}": count for split, count in counts.items()}
    if rejected:
        facts["first rejected"] = f"line {rejected[0].line}: {rejected[0].reason}"
        facts["all rejected"] = run.path / "rejected.jsonl"
    return Report("data pack", facts)
