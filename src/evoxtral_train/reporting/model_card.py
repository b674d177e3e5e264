"""The model card in the hub's format, made only from the records of the runs.

A card is meant to be shared, so it names files and folders without their paths. Strings from data, configs and records are quoted
as code or escaped, so that no manifest can add a heading, a table or a number to the results.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from .. import shipped
from ..config.evaluation import ExportConfig
from ..families.base import Family
from ..modeling.adapter_thresholds import THRESHOLDS, Calibration
from ..plain_text import code, escape_markdown, listed, one_line
from .results import sentences
from .tables import markdown_table, systems_table

_METRICS = (
    (("micro", "f1"), "f1", "tag F1, micro"), (("micro", "precision"), "precision", "tag precision, micro"),
    (("micro", "recall"), "recall", "tag recall, micro"), (("macro", "f1"), "f1", "tag F1, macro"),
    (("card", "f1"), "f1", "tag F1, as on the Evoxtral-Realtime cards"),
    (("bench", "f1"), "f1", "tag F1, Evoxtral-Bench"), (("bench", "precision"), "precision", "tag precision, Evoxtral-Bench"),
    (("bench", "recall"), "recall", "tag recall, Evoxtral-Bench"),
    (("bench", "hallucination"), "hallucination", "tag hallucination, Evoxtral-Bench"),
    (("bench", "emphasis_f1"), "f1", "emphasis F1, Evoxtral-Bench"),
    (("bench", "wer"), "wer", "WER, Evoxtral-Bench"), (("bench", "cer"), "cer", "CER, Evoxtral-Bench"),
    (("false_tags_per_untagged_clip",), "false_tags_per_untagged_clip", "false tags per untagged clip"),
    (("wer", "micro"), "wer", "WER"), (("cer", "micro"), "cer", "CER"),
)  # fmt: skip
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_WHAT = {
    "tags": "writes expressive tags such as `[sighs]` from audio, and no words",
    "text": "writes the words of an utterance",
    "tagged_text": "writes the words of an utterance with expressive tags such as `[sighs]` among them",
}


@dataclass(frozen=True)
class Evaluated:
    """`metrics`: what the evaluation measured. `system`: the name of this adapter in it, with or without its thresholds."""

    system: str
    metrics: dict[str, Any]
    dataset: str
    dataset_fingerprint: str
    with_thresholds: bool = False


@dataclass(frozen=True)
class Trained:
    """One of the runs that made the adapter: its stage, config, metrics, record, and its dataset's records."""

    stage: str
    config: dict[str, Any]
    metrics: dict[str, Any]
    record: dict[str, Any]
    data: dict[str, Any]


def model_card(
    config: ExportConfig, family: Family, method: str, runs: list[Trained], evaluated: Evaluated | None,
    calibration: Calibration | None,
) -> ModelCard:  # fmt: skip
    """The card; missing facts appear as unknown. `family`: the base's. `method`: as in `train.method`."""
    results = "\n\n".join([_results(evaluated), *([_thresholds(calibration, evaluated)] if calibration else [])])
    data = runs[-1].data if runs else {}
    layout, target = data.get("layout", "unknown"), data.get("target", family.default_target)
    base, on_hub = public_name(config.model.base), _is_on_hub(config.model.base)
    text = _template().render(
        title=escape_markdown(config.card.name), stock_class=family.stock_class, method=method, what=_WHAT[target],
        layout=code(layout), usage=f"\n{family.usage}\n" if family.usage else "",
        base=json.dumps(base if on_hub else f"path/to/{base}", ensure_ascii=False), dtype=config.model.dtype,
        base_link=f"[`{base}`](https://huggingface.co/{base})" if on_hub else f"the base {code(base)}",
        intended_use=f"{escape_markdown(config.card.intended_use)}\n\n" if config.card.intended_use else "",
        repository=json.dumps(one_line(config.push_to or "path/to/this/folder"), ensure_ascii=False),
        layout_note=data.get("layout_note", "the records of its training were not available."), results=results,
        recipe=_points(_recipe(runs)), data=_points(_data(runs)), limits=_points(_limits(config, runs, evaluated)),
        provenance=_points(_provenance(runs, evaluated)),
    )  # fmt: skip
    about = ModelCardData(
        base_model=base if on_hub else None, library_name="peft" if method == "lora" else "transformers",
        license=one_line(config.card.license),
        language=[one_line(language) for language in config.card.language], pipeline_tag="automatic-speech-recognition",
        model_name=one_line(config.card.name), eval_results=_eval_results(evaluated),
        tags=[
            *(["lora", "peft"] if method == "lora" else []), family.hub_tag,
            "expressive-tags", "evoxtral",
        ],
    )  # fmt: skip
    return ModelCard(f"---\n{about.to_yaml()}\n---\n\n{text}\n")


def public_name(path: str) -> str:
    """What a release calls a base: its id on the hub, that of the shipped one, or the last part of its path."""
    return path if _is_on_hub(path) or Path(path) == shipped.TINY_BASE else _folder(path)


def _folder(path: str) -> str:
    return one_line(Path(path).name)


def _is_on_hub(path: str) -> bool:
    return bool(_HUB_ID.fullmatch(path)) and not shipped.find(Path(path)).exists()


def _template():
    loader = PackageLoader(__package__, "templates")
    return Environment(loader=loader, undefined=StrictUndefined, autoescape=False).get_template("card.md.j2")


def _points(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _results(evaluated: Evaluated | None) -> str:
    if evaluated is None:
        return "None: this adapter was exported without an evaluation."
    systems = evaluated.metrics["systems"]
    shown = {name: report for name, report in systems.items() if name in ("base", evaluated.system)}
    pairs = [pair for pair in evaluated.metrics["comparisons"] if {pair["before"], pair["after"]} <= set(shown)]
    clips = systems[evaluated.system]["clips"]
    split = code(evaluated.metrics["split"])
    head = f"{clips:,} clips of split {split}, greedy decoding; values with 95% intervals over clips."
    pairs = [pair | {side: escape_markdown(pair[side]) for side in ("before", "after")} for pair in pairs]
    parts = (head, systems_table(shown), _lag(systems[evaluated.system]), _points(sentences(pairs)))
    return "\n\n".join(part for part in parts if part)


def _lag(report: dict[str, Any]) -> str:
    """How late the tags are written, for a layout that writes them in time."""
    lag = (report.get("placed") or {}).get("latency_s") or {"tags": 0}
    if not lag["tags"]:
        return ""
    return (
        f"A tag is complete {lag['median']:.2f} s after the end of its event in the median, and within {lag['p90']:.2f} s in 90% "
        f"of the {lag['tags']:,d} tags in the right place."
    )


def _thresholds(calibration: Calibration, evaluated: Evaluated | None) -> str:
    """What `thresholds.json` is, and what was measured with it."""
    fitted = f"`{THRESHOLDS}` has the confidence that each tag needs to be kept, fitted on {calibration.clips:,} clips of split "
    fitted += f"{code(calibration.split)}; aim: {escape_markdown(calibration.aim)}."
    parts = {"before": calibration.before, "after": calibration.after, "clips left out of the fit": calibration.held_out}
    names = {"micro_f1": "micro F1", "false_tags_per_untagged_clip": "false tags per untagged clip"}
    figures = {name: [part.get(name) for part in parts.values()] for name in names}
    rows = [[names[name], *("—" if value is None else f"{value:.3f}" for value in row)] for name, row in figures.items()]
    with_them = "" if evaluated is None else f" The figures above are {'with' if evaluated.with_thresholds else 'without'} them."
    return f"{fitted}{with_them}\n\n{markdown_table(['', *parts], rows)}"


def _eval_results(evaluated: Evaluated | None) -> list[EvalResult] | None:
    if evaluated is None:
        return None
    report, results = evaluated.metrics["systems"][evaluated.system], []
    for path, kind, name in _METRICS:
        measure: Any = report
        for part in path:
            measure = (measure or {}).get(part)
        if measure and measure["value"] is not None:
            results.append(EvalResult(
                task_type="automatic-speech-recognition", dataset_type="custom",
                dataset_name=_folder(evaluated.dataset), dataset_split=one_line(evaluated.metrics["split"]),
                dataset_revision=evaluated.dataset_fingerprint, metric_type=kind,
                metric_name=name, metric_value=round(measure["value"], 4),
                metric_args={"low": measure["low"], "high": measure["high"], "level": 0.95},
            ))  # fmt: skip
    return results


def _recipe(runs: list[Trained]) -> list[str]:
    lines = []
    if runs and runs[0].config.get("adapter"):
        lines.append("the adapter that it started from is no longer available and not described here")
    for run in runs:
        train = run.config["train"]
        steps = f"{train['epochs']:g} epochs at batch {train['batch_size']:d} × {train['gradient_accumulation']:d}"
        rate = f"learning rate {train['learning_rate']:g}, {escape_markdown(train['schedule'])}"
        line = f"{code(run.stage)}: {steps}, {rate}, seed {train['seed']:d}"
        if train.get("method") == "full":
            line += "; all weights" + ("" if train["train_audio_tower"] else " but the audio tower's")
        elif "lora" in run.config:
            lora = run.config["lora"]
            line += f"; LoRA r {lora['r']:d}, alpha {lora['alpha']:g} on {code(lora['target_modules'])}"
        if "generate" in run.config:
            generate, score = run.config["generate"], run.config["score"]
            line += f"; {generate['candidates']:d} candidates per clip at temperature {generate['temperature']:g}, top-p "
            line += f"{generate['top_p']:g}, reward {code(score['profile'])}"
        if "kept_round" in run.metrics:
            line += f"; {len(run.config['rounds'])} rounds, of which round {run.metrics['kept_round']:d} was kept"
        if "steps" in run.metrics:
            line += f"; {run.metrics['steps']:d} optimizer steps"
        lines.append(line)
    return lines or ["unknown: the adapter was exported without the records of its run"]


def _data(runs: list[Trained]) -> list[str]:
    lines = []
    for run in runs:
        data, dataset = run.data, code(_folder(run.config["dataset"]))
        if not data:
            lines.append(f"{code(run.stage)}: {dataset}, which is no longer available")
            continue
        rows = ", ".join(f"{code(name)} {count:,d}" for name, count in data["rows"].items() if count)
        line = f"{code(run.stage)}: split {code(run.config.get('split', 'train'))} of {dataset} ({rows})"
        if "sources" in data:
            sources, licenses = (listed([code(value) for value in data[name]]) for name in ("sources", "licenses"))
            line += f"; sources: {sources}; licenses: {licenses}; {data['speakers']:,d} speakers"
        lines.append(line)
    return lines or ["unknown"]


def _limits(config: ExportConfig, runs: list[Trained], evaluated: Evaluated | None) -> list[str]:
    limits = [escape_markdown(limit) for limit in config.card.limits]
    if not runs or any(not run.data for run in runs):
        limits.append("The records of its training data were not available for this card.")
    sources = {source for run in runs for source in run.data.get("sources", [])}
    if sources & {"espeak-ng"}:
        limits.append("Trained on synthetic speech by espeak-ng with exaggerated tags; expect different results on real speech.")
    if any(source.startswith("elevenlabs") for source in sources):
        limits.append("Trained on synthetic speech by ElevenLabs.")
    if evaluated is None:
        limits.append("Not evaluated.")
    else:
        report = evaluated.metrics["systems"][evaluated.system]
        weak = sorted(tag for tag, row in report["per_tag"].items() if row["support"] and (row["f1"] or 0) < 0.5)
        if weak:
            limits.append(f"Tags with an F1 below 0.5 in the evaluation: {listed([code(tag) for tag in weak])}.")
        if "wer" not in report:
            limits.append("Word error rates were not measured: it writes no words.")
    return limits


def _provenance(runs: list[Trained], evaluated: Evaluated | None) -> list[str]:
    lines = []
    for run in runs:
        inputs, commit = run.record["inputs"], run.record.get("git_commit")
        versions = ", ".join(escape_markdown(f"{name} {version}") for name, version in run.record["versions"].items() if version)
        made_from = f"dataset {code(inputs['dataset'])}, base {code(inputs['base'])}"
        made_from += f", commit {code(commit[:12])}" if commit else ""
        lines.append(f"{code(run.stage)}: {made_from}; {versions}")
    if evaluated:
        lines.append(f"evaluated on dataset {code(evaluated.dataset_fingerprint)}, system {code(evaluated.system)}")
    return lines or ["unknown"]
