"""`evoxtral eval`: any number of systems on one split, decoded greedily, scored side by side."""

import time
from pathlib import Path

from .. import processes
from ..config.schema import EvalConfig
from ..data.packed import Example, PackedSplit
from ..decoding.decoder import Completion, Decoding, decode, requests_of
from ..decoding.sampling import Sampling
from ..modeling.adapters import Adapter, load_adapter
from ..modeling.realtime import load_model
from ..progress import format_seconds, progress
from ..records import Prediction
from ..runs import Options, Run, check_plan, fingerprint_text
from ..scoring.metrics import evaluate
from ..scoring.tables import per_tag_table, systems_table
from ..text.tags import keep_first_tags
from ..tracking import Tracker
from .inputs import Base, open_adapter, open_base, open_for_decoding, times_of_tags
from .plans import count_rows, plan_adapter, plan_decoding, plan_model
from .report import Report

Text = tuple[str, list[dict] | None]


def run(config: EvalConfig, options: Options) -> Report:
    """Writes `predictions/<system>.jsonl`, `metrics.json` and `table.md`.

    Each adapter is decoded once; a system that differs only by its filter reuses the predictions.
    """
    asked = config.model_dump(mode="json")
    paths = list(dict.fromkeys(system.adapter for system in config.systems))
    if options.dry_run:
        check_plan(config.output, "eval", asked, options)
        facts = _asked(config, count_rows(config.dataset, config.split)) | plan_model(config.model)
        facts |= plan_decoding(config.model, config.decode.batch_tokens)
        facts |= {f"adapter {path}": plan_adapter(path)[0]["adapter"] for path in paths if path}
        return Report("plan: eval", facts)
    processes.join(config.model.device)
    split = PackedSplit(config.dataset, config.split)
    facts = _asked(config, len(split))
    base = open_base(config.model, split)
    adapters = {path: open_adapter(path, base, config.model) for path in paths if path}
    inputs = {"dataset": split.fingerprint, "base": base.fingerprint}
    inputs |= {f"adapter {path}": adapter.fingerprint for path, adapter in adapters.items()}
    run = processes.first(lambda: Run.open(config.output, "eval", asked, inputs, options))
    started = time.monotonic()
    with Tracker(config.tracking, "eval", config.output, config) as tracker:
        written = _decode_all(config, base, split, paths, adapters)
        table = processes.first(lambda: _score(run, config, split, written, tracker))
    facts["time"] = format_seconds(time.monotonic() - started)
    return Report("eval", facts, table=table)


def _score(
    run: Run, config: EvalConfig, split: PackedSplit, written: dict[Path | None, dict[str, Text]], tracker: Tracker
) -> str:
    """Everything that is written; returns the table."""
    reports = {}
    for system in config.systems:
        rows = [_prediction(example, *written[system.adapter][example.id], system.top_k) for example in split.examples]
        run.write_rows(f"predictions/{system.name}.jsonl", rows)
        reports[system.name] = evaluate(
            rows, split.target != "tags", config.bootstrap.samples, config.bootstrap.seed, config.placement
        )
    table = systems_table(reports)
    run.write_text("table.md", f"{table}\n\n{per_tag_table(reports)}\n")
    tracker.summary(reports)
    columns = ["system", "micro_f1", "macro_f1", "card_f1", "false_tags_per_untagged_clip"]
    tracker.table("eval/systems", columns, [[name, *_headline(report)] for name, report in reports.items()])
    tracker.artifact(f"{run.path.name}-predictions", "predictions", sorted((run.path / "predictions").glob("*.jsonl")))
    run.finish({"split": config.split, "systems": reports}, fingerprint_text(table))
    return table


def _asked(config: EvalConfig, clips: int | str) -> dict:
    names = ", ".join(system.name for system in config.systems)
    return {"clips": f"{clips} of split {config.split}", "systems": names, "output": config.output}


def _decode_all(
    config: EvalConfig, base: Base, split: PackedSplit, paths: list[Path | None], adapters: dict[Path, Adapter]
) -> dict[Path | None, dict[str, Text]]:
    """adapter path (None: the base) -> clip id -> text, and when its tags were written."""
    requests = sorted(requests_of(split, base.clock), key=lambda request: len(request.prompt))
    wanted = config.decode
    decoding = Decoding(1, Sampling(), wanted.max_new_tokens, wanted.batch_tokens, wanted.compile)
    model = load_model(config.model)
    written = {}
    with progress("decoding", len(paths) * len(split), "clips") as bar:
        for path in paths:
            system = load_adapter(model, adapters[path]) if path else model
            audio = open_for_decoding(config, system, base, split, wanted.max_new_tokens)
            texts = []
            for completions in decode(system, base.clock, audio, processes.share(requests), decoding):
                texts += [(each.utterance_id, _read(each, base, split)) for each in completions]
                bar.advance(processes.count() * len(completions), note=str(path or "base"))
            written[path] = dict(processes.gather(texts))
            if path:
                model = system.unload()
    return written


def _read(completion: Completion, base: Base, split: PackedSplit) -> tuple[str, list[dict] | None]:
    """The text, and for `aligned`, whose positions are times, when each tag was written."""
    return base.tokenizer.decode(completion.token_ids).strip(), times_of_tags(completion.token_ids, base, split)


def _prediction(example: Example, text: str, written: list[dict] | None, top_k: int | None) -> Prediction:
    written = written if written is None else written[:top_k]
    return Prediction(example.id, example.text, _filtered(text, top_k), example.timed_events, written)


def _filtered(text: str, top_k: int | None) -> str:
    return keep_first_tags(text, top_k) if top_k else text


def _headline(report: dict) -> list[float | None]:
    measures = (report["micro"]["f1"], report["macro"]["f1"], report["card"]["f1"], report["false_tags_per_untagged_clip"])
    return [measure["value"] for measure in measures]
