"""`evoxtral eval`: any number of systems on one split, decoded greedily, scored side by side."""

import time
from collections.abc import Sequence
from pathlib import Path

from .. import processes
from ..config.evaluation import EvalConfig, System
from ..dataset.reader import Example, PackedSplit
from ..decoding.greedy import Written
from ..errors import UsageError
from ..families.base import Network
from ..files import fingerprint_files
from ..modeling.adapter_thresholds import THRESHOLDS, require_thresholds
from ..modeling.bases import Base, open_adapter, open_base_of
from ..progress import format_seconds
from ..records import Prediction, read_rows
from ..reporting.results import Evaluation, sentences
from ..reporting.tables import per_tag_rows
from ..reporting.text import last_lines, markdown
from ..runs import Options, Run, check_plan
from ..scoring.calibration import filtered
from ..scoring.gates import failed_gates
from ..scoring.metrics import sums, units_of
from ..scoring.significance import PRIMARY_LEVEL, compare_pairs, declared, difference
from ..scoring.summary import summarize
from ..scoring.tag_filter import TagFilter, Thresholds
from ..text.normalize import normalize_words
from ..text.tags import find_tags, format_tags, strip_tags
from ..text.taxonomy import Taxonomy
from ..tracking import Tracker
from .greedy import BASE, decode_greedily
from .plans import plan_adapter, plan_decoded_audio, plan_decoding, plan_labelled, plan_model
from .report import Report
from .report_pages import clip_audio, write_page
from .training_history import training_of
from .yardsticks import chance_answer, check_probe, probe_answers


def run(config: EvalConfig, options: Options) -> Report:
    """Writes `predictions/<system>.jsonl`, `metrics.json`, `table.md`, `report.html` and its pictures. Exit code 3 if
    a gate fails.

    Each adapter is decoded once; a system that differs only by its filter reuses the predictions. If the target contains
    words, the base is always among the systems: without it, the adapter's cost in WER is unknown.
    """
    settings = config.model_dump(mode="json")
    if options.dry_run:
        check_plan(config.output, "eval", settings, options)
        facts = _plan_facts(config, config.systems, plan_labelled(config.dataset, config.split)) | plan_model(config.model)
        facts |= plan_decoding(config.model, config.decode.batch_tokens)
        facts |= plan_decoded_audio(config, _decoded(config.systems))
        adapters = dict.fromkeys(system.adapter for system in config.systems if system.adapter)
        return Report("plan: eval", facts | {f"adapter {path}": plan_adapter(path)["adapter"] for path in adapters})
    taxonomy = Taxonomy.load(config.tags_table)
    processes.join(config.model.device)
    split = PackedSplit(config.dataset, config.split)
    systems = sorted(_with_base(config, split), key=lambda system: not system.is_yardstick)  # yardsticks first in every table
    pairs = _compared(config, systems)
    _require_speakers(config, split)
    yardsticks = {system.yardstick for system in systems if system.is_yardstick}
    if "probe" in yardsticks:
        check_probe(config)
    facts = _plan_facts(config, systems, split.describe_labelled())
    base = open_base_of(split, config.model)
    adapters = {system.adapter: open_adapter(system.adapter, base, config.model) for system in systems if system.adapter}
    inputs = {"dataset": split.fingerprint, "base": base.fingerprint}
    inputs |= {f"adapter {path}": adapter.fingerprint for path, adapter in adapters.items()}
    thresholds = {system.adapter: require_thresholds(adapters[system.adapter]) for system in systems if system.thresholds}
    inputs |= {f"thresholds {path}": fingerprint_files([adapters[path].folder / THRESHOLDS]) for path in thresholds}
    filters = {system.name: _filter(system, thresholds) for system in systems}
    given = {system.predictions: _read_predictions(system.predictions, split) for system in systems if system.predictions}
    inputs |= {f"predictions {path}": fingerprint_files([path]) for path in given}
    sources = [config.dataset, base.family.folder, *adapters, *given]
    run = processes.first(lambda: Run.open(config.output, "eval", settings, inputs, options, sources))
    started = time.monotonic()
    with Tracker(config.tracking, "eval", run.path, config) as tracker:
        decoded = _decoded(systems)
        network = base.family.load(config.model.dtype) if decoded or "probe" in yardsticks else None
        measured, notes = _measure_yardsticks(config, yardsticks, network, base, split)
        written = measured | decode_greedily(config, network, base, split, decoded, adapters)
        decoded_s = time.monotonic() - started
        scored = processes.first(lambda: _score(run, config, systems, filters, pairs, taxonomy, split, written | given, tracker))
    summary, failed, metrics = scored
    processes.first(
        lambda: run.finish(metrics, fingerprint_files([*run.path.glob("predictions/*.jsonl"), run.path / "table.md"]))
    )
    facts |= notes
    for name, report in metrics["systems"].items():
        if report["cut_clips"]:
            cut = f"{report['cut_clips']} clips, at decode.max_new_tokens or the end of their row"
            facts[f"cut short, {name}"] = cut
    facts["report"] = config.output / "report.html"
    facts["time"] = f"{format_seconds(time.monotonic() - started)}, {format_seconds(decoded_s)} of it to decode"
    return Report("eval", facts, table=summary, exit_code=3 if failed else 0)


def _decoded(systems: list[System]) -> list[Path | None]:
    """The adapters that are decoded, each once; None: the base."""
    return list(dict.fromkeys(system.adapter for system in systems if not (system.predictions or system.yardstick)))


def _with_base(config: EvalConfig, split: PackedSplit) -> list[System]:
    """The systems, with the base if it is required. Raises UsageError for a system that has the base's name, and for a
    gate whose baseline is not among the systems."""
    systems = config.systems
    if split.target != "tags" and all(system.source for system in systems):
        if BASE in [system.name for system in systems]:
            raise UsageError(f"the name {BASE!r} is reserved for the base model", where="systems", fix="rename yours")
        systems = [System(name=BASE), *systems]
    names = [system.name for system in systems]
    if config.gates.wer_regression_max is not None and config.gates.baseline not in names:
        what = f"{config.gates.baseline!r} is not one of the systems: {', '.join(names)}"
        raise UsageError(what, where="gates.baseline", fix="name one of them")
    return systems


def _score(
    run: Run, config: EvalConfig, systems: list[System], filters: dict[str, TagFilter], pairs: list[tuple[str, str]],
    taxonomy: Taxonomy, split: PackedSplit, written: dict[Path | str | None, dict[str, Written]], tracker: Tracker,
) -> tuple[str, list[str], dict]:  # fmt: skip
    """Write all files; returns the last lines to print, the failed gates, and the metrics."""
    reports, rows, with_words = {}, {}, split.target != "tags"
    examples = list(split.labelled_examples())
    for system in systems:
        texts = written[system.source]
        rows[system.name] = [_prediction(example, texts[example.id], system, filters[system.name]) for example in examples]
        run.write_rows(f"predictions/{system.name}.jsonl", rows[system.name])
        words_measured = with_words and not system.is_yardstick
        reports[system.name] = summarize(rows[system.name], words_measured, taxonomy, config.bootstrap, config.placement)
        reports[system.name]["cut_clips"] = sum(texts[example.id].is_cut for example in examples)
    comparisons = compare_pairs(pairs, rows, with_words, config.bootstrap)
    failed = failed_gates(config.gates, reports, _wer_rise(config, rows, with_words)) if config.gates.system else []
    adapters = {system.name: system.adapter for system in systems if system.adapter and not system.is_filtered}
    evaluation = Evaluation(
        f"Evaluation on {config.split}", str(config.output), systems, reports, rows, comparisons, failed, with_words,
        training_of(adapters), lambda identity: clip_audio(split, identity), config.clips_shown,
    )  # fmt: skip
    run.write_text("table.md", markdown(evaluation))
    pictures = write_page(run.path, evaluation)
    metrics = {"split": config.split, "systems": reports, "comparisons": comparisons, "gates_not_passed": failed}
    metrics["yardsticks"] = [system.name for system in systems if system.is_yardstick]
    tracker.summary(reports)
    columns = ["system", "micro_f1", "macro_f1", "card_f1", "false_tags_per_untagged_clip"]
    tracker.table("eval/systems", columns, [[name, *_headline(report)] for name, report in reports.items()])
    header, tag_rows = per_tag_rows(reports)
    tracker.table("eval/per_tag", header, tag_rows)
    tracker.table("eval/differences", ["outcome"], [[each] for each in sentences(comparisons)])
    tracker.artifact(f"{config.output.name}-tables", "report", [run.path / "table.md", *pictures])
    tracker.media_artifact(f"{config.output.name}-page", "report", [run.path / "report.html"])
    tracker.media_artifact(f"{config.output.name}-predictions", "predictions", sorted((run.path / "predictions").glob("*.jsonl")))
    files = [config.output / name for name in ("table.md", "metrics.json", "report.html")]
    return last_lines(evaluation, files), failed, metrics


def _compared(config: EvalConfig, systems: list[System]) -> list[tuple[str, str]]:
    """The config's comparisons, or by default `declared(systems)`. Raises UsageError for an unknown system."""
    if config.comparisons is None:
        return declared(systems)
    pairs = [(pair.before, pair.after) for pair in config.comparisons]
    names = [system.name for system in systems if not system.is_yardstick]
    for name in (name for pair in pairs for name in pair if name not in names):
        raise UsageError(f"{name!r} is not one of the systems: {', '.join(names)}", where="comparisons", fix="name two of them")
    return pairs


def _require_speakers(config: EvalConfig, split: PackedSplit) -> None:
    if config.bootstrap.unit == "speaker":
        unknown = [example.id for example in split.labelled_examples() if not example.speaker]
        if unknown:
            what = f"{len(unknown)} of {split.labelled.sum()} clips of {split.split} have no speaker, the first is {unknown[0]!r}"
            fix = "give each row of the manifest a `speaker` and pack again, or use clip"
            raise UsageError(what, where="bootstrap.unit", fix=fix)


def _wer_rise(config: EvalConfig, rows: dict[str, list[Prediction]], with_words: bool) -> dict | None:
    """The paired difference of WER that `gates.wer_regression_max` judges."""
    gates, bootstrap = config.gates, config.bootstrap
    if gates.wer_regression_max is None or not with_words:
        return None
    before, after = (sums(rows[name], with_words=True)["wer"] for name in (gates.baseline, gates.system))
    units = units_of(rows[gates.system], bootstrap.unit)
    return difference(before, after, units, PRIMARY_LEVEL, bootstrap.permutations, bootstrap.seed)


def _plan_facts(config: EvalConfig, systems: list[System], clips: str) -> dict:
    names = ", ".join(system.name for system in systems)
    return {"clips": clips, "systems": names, "output": config.output}


def _read_predictions(path: Path, split: PackedSplit) -> dict[str, Written]:
    """Predictions from another program; the file must contain each clip of the split that has a text exactly once, and no clip of
    another split."""
    rows = read_rows(path, Prediction)
    found = {row.id: Written(row.prediction, row.written, row.confidences) for row in rows}
    words = {example.id: normalize_words(strip_tags(example.text)) for example in split.labelled_examples()}
    missing, unknown = set(words) - set(found), set(found) - set(split.index_of)
    if missing or unknown or len(found) != len(rows):
        twice = len(rows) - len(found)
        first = f", the first missing is {min(missing)!r}" if missing else ""
        raise UsageError(
            f"does not contain the clips of {split.split}: {len(missing)} missing, {len(unknown)} unknown, {twice} twice{first}",
            where=str(path),
            fix="write one row {id, reference, prediction} for each clip; an empty prediction counts too",
        )
    for row in rows:
        if row.id in words and row.reference and normalize_words(strip_tags(row.reference)) != words[row.id]:
            fix = "is this a prediction for another corpus, or for an earlier version of this one?"
            raise UsageError(f"clip {row.id!r} has a different `reference` in {split.folder}", where=str(path), fix=fix)
        if row.confidences is not None and len(row.confidences) != len(find_tags(row.prediction)):
            what = f"clip {row.id!r} has {len(row.confidences)} `confidences` for {len(find_tags(row.prediction))} tags"
            raise UsageError(what, where=str(path), fix="write one for each tag of the prediction, or leave them out")
    return found


def _measure_yardsticks(
    config: EvalConfig, yardsticks: set[str], network: Network | None, base: Base, split: PackedSplit
) -> tuple[dict[str, dict[str, Written]], dict[str, str]]:
    """(yardstick -> clip id -> output, yardstick -> note for the report)."""
    written, notes = {}, {}
    if "chance" in yardsticks:
        answer = chance_answer(split)
        written["chance"] = dict.fromkeys(split.index_of, Written(answer))
        notes["chance"] = f"writes {answer or 'nothing'} for every clip"
    if "probe" in yardsticks:
        probe, written["probe"] = probe_answers(config, network, base, split)
        notes["probe"] = f"{len(probe.tags)} of {len(probe.tags + probe.too_rare)} tags fitted, C {probe.cost:g}"
        if probe.too_rare:
            notes["probe"] += f"; never written, as too few training clips have or lack them: {format_tags(probe.too_rare)}"
    return written, notes


def _filter(system: System, thresholds: dict[Path, Thresholds]) -> TagFilter:
    fitted = thresholds[system.adapter] if system.thresholds else None
    return TagFilter(system.top_k, system.top_k_by, system.min_confidence, fitted)


def _prediction(example: Example, written: Written, system: System, tag_filter: TagFilter) -> Prediction:
    try:
        return filtered(written.prediction_of(example), tag_filter)
    except ValueError as error:
        raise UsageError(
            str(error), where=f"system {system.name}", fix="filter by order, or add `confidences` to the file"
        ) from None


def _headline(report: dict) -> Sequence[float | None]:
    measures = (report["micro"]["f1"], report["macro"]["f1"], report["card"]["f1"], report["false_tags_per_untagged_clip"])
    return [measure["value"] for measure in measures]
