"""`evoxtral eval`: any number of systems on one split, decoded greedily, scored side by side."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import processes
from ..config.schema import EvalConfig, System
from ..data.packed import Example, PackedSplit
from ..decoding.decoder import Completion, Decoding, Request, decode, requests_of
from ..decoding.emission import tag_confidences
from ..decoding.sampling import Sampling
from ..errors import UsageError
from ..modeling.adapters import Adapter, load_adapter
from ..modeling.audio_cache import AudioSource, LiveAudio
from ..modeling.realtime import load_model, pick_device, place_audio_path, place_language_model
from ..progress import format_seconds, progress
from ..records import Prediction, read_rows
from ..reporting._shim import declared
from ..reporting.results import Evaluation, sentences
from ..reporting.text import last_lines, markdown
from ..runs import Options, Run, check_plan, fingerprint_files, fingerprint_text
from ..scoring.calibration import filtered
from ..scoring.gates import failed_gates
from ..scoring.significance import compare_all
from ..scoring.summary import summarize
from ..scoring.tables import per_tag_rows
from ..text.taxonomy import Taxonomy
from ..tracking import Tracker
from .inputs import Base, open_adapter, open_base, open_for_decoding, times_of_tags
from .plans import count_rows, plan_adapter, plan_decoding, plan_model
from .report import Report
from .report_pages import clip_audio, filters_of, write_page
from .training_history import training_of

BASE = "base"


@dataclass(frozen=True)
class _Written:
    """What a system wrote for a clip. `tags_written`: see `Prediction.written`."""

    text: str
    tags_written: list[dict] | None = None
    confidences: list[float] | None = None


def run(config: EvalConfig, options: Options) -> Report:
    """Writes `predictions/<system>.jsonl`, `metrics.json`, `table.md`, `report.html` and its pictures. Exit code 3 when
    a gate is not passed.

    Each adapter is decoded once; a system that differs only by its filter reuses the predictions. Where the target holds
    words, the base is always among the systems: without it nobody knows what an adapter costs in WER.
    """
    asked = config.model_dump(mode="json")
    if options.dry_run:
        check_plan(config.output, "eval", asked, options)
        facts = _asked(config, config.systems, count_rows(config.dataset, config.split)) | plan_model(config.model)
        facts |= plan_decoding(config.model, config.decode.batch_tokens)
        adapters = dict.fromkeys(system.adapter for system in config.systems if system.adapter)
        return Report("plan: eval", facts | {f"adapter {path}": plan_adapter(path)[0]["adapter"] for path in adapters})
    taxonomy = Taxonomy.load(config.tags_table)
    processes.join(config.model.device)
    split = PackedSplit(config.dataset, config.split)
    systems = _with_base(config, split)
    facts = _asked(config, systems, len(split))
    base = open_base(config.model, split)
    adapters = {system.adapter: open_adapter(system.adapter, base, config.model) for system in systems if system.adapter}
    inputs = {"dataset": split.fingerprint, "base": base.fingerprint}
    inputs |= {f"adapter {path}": adapter.fingerprint for path, adapter in adapters.items()}
    given = {system.predictions: _read_predictions(system.predictions, split) for system in systems if system.predictions}
    inputs |= {f"predictions {path}": fingerprint_files([path]) for path in given}
    run = processes.first(lambda: Run.open(config.output, "eval", asked, inputs, options))
    started = time.monotonic()
    with Tracker(config.tracking, "eval", config.output, config) as tracker:
        decoded = list(dict.fromkeys(system.adapter for system in systems if not system.predictions))
        written = _decode_all(config, base, split, decoded, adapters)
        decoded_s = time.monotonic() - started
        scored = processes.first(lambda: _score(run, config, systems, taxonomy, split, written | given, tracker))
    summary, failed = scored
    facts["time"] = f"{format_seconds(time.monotonic() - started)}, {format_seconds(decoded_s)} of it to decode"
    return Report("eval", facts, table=summary, exit_code=3 if failed else 0)


def _with_base(config: EvalConfig, split: PackedSplit) -> list[System]:
    """The systems, and the base where it has to be among them. Raises UsageError for a name that it would take, and for a
    gate whose baseline is none of them."""
    systems = config.systems
    if split.target != "tags" and all(system.adapter or system.predictions for system in systems):
        if BASE in [system.name for system in systems]:
            raise UsageError(f"the name {BASE!r} is the base model's, which is measured too", where="systems", fix="rename yours")
        systems = [System(name=BASE), *systems]
    names = [system.name for system in systems]
    if config.gates.wer_regression_max is not None and config.gates.baseline not in names:
        what = f"{config.gates.baseline!r} is none of the systems: {', '.join(names)}"
        raise UsageError(what, where="gates.baseline", fix="name one of them")
    return systems


def _score(
    run: Run, config: EvalConfig, systems: list[System], taxonomy: Taxonomy, split: PackedSplit,
    written: dict[Path | None, dict[str, _Written]], tracker: Tracker,
) -> tuple[str, list[str]]:  # fmt: skip
    """Everything that is written; returns the last lines to print, and the gates that were not passed."""
    reports, rows = {}, {}
    examples = list(split.examples)
    for system in systems:
        texts = written[system.predictions or system.adapter]
        rows[system.name] = [_prediction(example, texts[example.id], system) for example in examples]
        run.write_rows(f"predictions/{system.name}.jsonl", rows[system.name])
        with_words = split.target != "tags"
        reports[system.name] = summarize(rows[system.name], with_words, taxonomy, config.bootstrap, config.placement)
    filters = filters_of(systems)
    comparisons = compare_all(rows, config.bootstrap.samples, config.bootstrap.seed, config.bootstrap.permutations)
    comparisons = declared(comparisons, filters)
    failed = failed_gates(config.gates, reports) if config.gates.system else []
    adapters = {system.name: system.adapter for system in systems if system.adapter and not system.is_filtered}
    found = Evaluation(
        f"Evaluation on {config.split}", str(config.output), reports, rows, comparisons, failed, split.target != "tags",
        training_of(adapters), lambda identity: clip_audio(split, identity), config.clips_shown, list(filters),
    )  # fmt: skip
    whole = markdown(found)
    run.write_text("table.md", whole)
    pictures = write_page(run.path, found)
    metrics = {"split": config.split, "systems": reports, "comparisons": comparisons, "gates_not_passed": failed}
    tracker.summary(reports)
    columns = ["system", "micro_f1", "macro_f1", "card_f1", "false_tags_per_untagged_clip"]
    tracker.table("eval/systems", columns, [[name, *_headline(report)] for name, report in reports.items()])
    header, tag_rows = per_tag_rows(reports)
    tracker.table("eval/per_tag", header, tag_rows)
    tracker.table("eval/differences", ["outcome"], [[each] for each in sentences(comparisons)])
    tracker.artifact(f"{run.path.name}-predictions", "predictions", sorted((run.path / "predictions").glob("*.jsonl")))
    tracker.artifact(f"{run.path.name}-report", "report", [run.path / "report.html", run.path / "table.md", *pictures])
    run.finish(metrics, fingerprint_text(whole))
    return last_lines(found, [run.path / name for name in ("table.md", "metrics.json", "report.html")]), failed


def _asked(config: EvalConfig, systems: list[System], clips: int | str) -> dict:
    names = ", ".join(system.name for system in systems)
    return {"clips": f"{clips} of split {config.split}", "systems": names, "output": config.output}


def _read_predictions(path: Path, split: PackedSplit) -> dict[str, _Written]:
    """A file of predictions from elsewhere; it must hold each clip of the split once, and no other."""
    rows = read_rows(path, Prediction)
    found = {row.id: _Written(row.prediction, row.written, row.confidences) for row in rows}
    missing, unknown = set(split.index_of) - set(found), set(found) - set(split.index_of)
    if missing or unknown or len(found) != len(rows):
        twice = len(rows) - len(found)
        first = f", the first missing is {min(missing)!r}" if missing else ""
        raise UsageError(
            f"does not hold the clips of {split.split}: {len(missing)} missing, {len(unknown)} unknown, {twice} twice{first}",
            where=str(path),
            fix="write one row {id, reference, prediction} for each clip; an empty prediction is one too",
        )
    return found


def _decode_all(
    config: EvalConfig, base: Base, split: PackedSplit, paths: list[Path | None], adapters: dict[Path, Adapter]
) -> dict[Path | None, dict[str, _Written]]:
    """adapter path (None: the base) -> clip id -> what was written."""
    if not paths:
        return {}
    wanted = config.decode
    decoding = Decoding(1, Sampling(), wanted.max_new_tokens, wanted.batch_tokens, wanted.compile)
    model = load_model(config.model)
    written = {}
    with progress("decoding", len(paths) * len(split), "clips") as bar:
        for path in paths:
            system = load_adapter(model, adapters[path]) if path else model
            audio = _audio(config, path, system, base, split)
            requests = sorted(_requests(path, base, split), key=lambda request: len(request.prompt))
            texts = []
            for completions in decode(system, base.clock, audio, processes.share(requests), decoding):
                texts += [(each.utterance_id, _read(each, base, split)) for each in completions]
                bar.advance(processes.count() * len(completions), note=str(path or BASE))
            written[path] = dict(processes.gather(texts))
            if path:
                model = system.unload()
    return written


def _audio(config: EvalConfig, path: Path | None, model, base: Base, split: PackedSplit) -> AudioSource:
    """The cache of a `packed` dataset ends soon after the prompt; the base alone reads on to the clip's end."""
    if path is None and split.target != "tags" and split.layout == "packed":
        device = pick_device(config.model.device)
        place_audio_path(model, device)
        place_language_model(model, device)
        return LiveAudio(model, split)
    return open_for_decoding(config, model, base, split, config.decode.max_new_tokens)


def _requests(path: Path | None, base: Base, split: PackedSplit) -> list[Request]:
    """As the split is laid out; but the base alone, where words are wanted, writes in the form in which it was trained to:
    each word once it has been heard."""
    if path is not None or split.target == "tags":
        return requests_of(split, base.clock)
    lengths = zip(split.utterance_tokens.tolist(), split.row_tokens.tolist(), strict=True)
    ids = list(split.index_of)
    return [Request.of(ids[index], "aligned", base.clock, *each, index) for index, each in enumerate(lengths)]


def _read(completion: Completion, base: Base, split: PackedSplit) -> _Written:
    """The text, how sure the model was of its tags, and for `aligned`, whose positions are times, when each was written."""
    return _Written(
        base.tokenizer.decode(completion.token_ids).strip(),
        times_of_tags(completion.token_ids, base, split),
        tag_confidences(base.tokenizer, completion.token_ids, completion.token_logprobs),
    )


def _prediction(example: Example, written: _Written, system: System) -> Prediction:
    row = Prediction(example.id, example.text, written.text, example.timed_events, written.tags_written, written.confidences)
    try:
        return filtered(row, system.top_k, system.top_k_by, system.min_confidence)
    except ValueError as error:
        raise UsageError(
            str(error), where=f"system {system.name}", fix="filter by order, or add `confidences` to the file"
        ) from None


def _headline(report: dict) -> Sequence[float | None]:
    measures = (report["micro"]["f1"], report["macro"]["f1"], report["card"]["f1"], report["false_tags_per_untagged_clip"])
    return [measure["value"] for measure in measures]
