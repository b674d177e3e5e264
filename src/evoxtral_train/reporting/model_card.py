"""The model card in the hub's format, from the records of the runs: what they do not hold is not in it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..config.schema import ExportConfig
from ..scoring.tables import systems_table
from .results import sentences

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
_WHAT = {
    "tags": "writes expressive tags such as `[sighs]` from audio, and no words",
    "text": "writes the words of an utterance",
    "tagged_text": "writes the words of an utterance with expressive tags such as `[sighs]` among them",
}
_LAYOUT_NOTES = {
    "packed": "it writes right after the prompt of 39 tokens, when half a second has been heard.",
    "deferred": "it writes when the clip has been heard: feed [STREAMING_PAD] until then.",
    "aligned": "it writes each word and tag when it has been heard, as the base does.",
}


@dataclass(frozen=True)
class Evaluated:
    """`metrics`: what the evaluation's run measured, `system`: which line is this adapter's."""

    system: str
    metrics: dict[str, Any]
    dataset: str
    dataset_fingerprint: str


@dataclass(frozen=True)
class Trained:
    """One run of the adapter's making: its stage, config, metrics, record, and what its dataset's records say."""

    stage: str
    config: dict[str, Any]
    metrics: dict[str, Any]
    record: dict[str, Any]
    data: dict[str, Any]


def model_card(config: ExportConfig, runs: list[Trained], evaluated: Evaluated | None) -> ModelCard:
    """What is missing is said to be unknown."""
    data = runs[-1].data if runs else {}
    layout, target = data.get("layout", "unknown"), data.get("target", "tags")
    base, is_local = config.model.base, Path(config.model.base).is_dir()
    text = _template().render(
        title=config.card.name, base=base, dtype=config.model.dtype, what=_WHAT[target], layout=layout,
        base_link=f"the base in `{base}`" if is_local else f"[`{base}`](https://huggingface.co/{base})",
        intended_use=f"{config.card.intended_use}\n\n" if config.card.intended_use else "",
        repository=config.push_to or "path/to/this/folder",
        layout_note=_LAYOUT_NOTES.get(layout, "no run of its training was at hand."), results=_results(evaluated),
        recipe=_points(_recipe(runs)), data=_points(_data(runs)), limits=_points(_limits(config, runs, evaluated)),
        provenance=_points(_provenance(runs, evaluated)),
    )  # fmt: skip
    about = ModelCardData(
        base_model=None if is_local else base, library_name="peft", license=config.card.license, language=config.card.language,
        pipeline_tag="automatic-speech-recognition", model_name=config.card.name, eval_results=_eval_results(evaluated),
        tags=["lora", "peft", "voxtral-realtime", "expressive-tags", "evoxtral"],
    )  # fmt: skip
    return ModelCard(f"---\n{about.to_yaml()}\n---\n\n{text}\n")


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
    pairs = [each for each in evaluated.metrics["comparisons"] if {each["before"], each["after"]} <= set(shown)]
    clips = systems[evaluated.system]["clips"]
    head = f"{clips} clips of the split `{evaluated.metrics['split']}`, greedy decoding; values with 95% intervals over clips."
    return "\n\n".join(part for part in (head, systems_table(shown), _points(sentences(pairs))) if part)


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
                dataset_name=Path(evaluated.dataset).name,
                dataset_split=evaluated.metrics["split"], dataset_revision=evaluated.dataset_fingerprint, metric_type=kind,
                metric_name=name, metric_value=round(measure["value"], 4),
                metric_args={"low": measure["low"], "high": measure["high"], "level": 0.95},
            ))  # fmt: skip
    return results


def _recipe(runs: list[Trained]) -> list[str]:
    lines = []
    if runs and runs[0].config.get("adapter"):
        lines.append("what it started from is no longer where it was, and not described here")
    for run in runs:
        train = run.config["train"]
        steps = f"{train['epochs']:g} epochs at batch {train['batch_size']} × {train['gradient_accumulation']}"
        line = f"`{run.stage}`: {steps}, learning rate {train['learning_rate']:g}, {train['schedule']}, seed {train['seed']}"
        if "lora" in run.config:
            lora = run.config["lora"]
            line += f"; LoRA r {lora['r']}, alpha {lora['alpha']:g} on `{lora['target_modules']}`"
        if "generate" in run.config:
            generate, score = run.config["generate"], run.config["score"]
            line += f"; {generate['candidates']} candidates per clip at temperature {generate['temperature']:g}, top-p "
            line += f"{generate['top_p']:g}, reward `{score['profile']}`"
        if "kept_round" in run.metrics:
            line += f"; {len(run.config['rounds'])} rounds, the adapter of round {run.metrics['kept_round']} was kept"
        if "steps" in run.metrics:
            line += f"; {run.metrics['steps']} optimizer steps"
        lines.append(line)
    return lines or ["unknown: the adapter was exported from a folder without a run"]


def _data(runs: list[Trained]) -> list[str]:
    lines = []
    for run in runs:
        data = run.data
        if not data:
            lines.append(f"`{run.stage}`: {run.config['dataset']}, which is no longer there")
            continue
        rows = ", ".join(f"{name} {count}" for name, count in data["rows"].items() if count)
        line = f"`{run.stage}`: split `{run.config.get('split', 'train')}` of {run.config['dataset']} ({rows})"
        if "sources" in data:
            line += (
                f"; sources: {', '.join(data['sources'])}; licenses: {', '.join(data['licenses'])}; {data['speakers']} speakers"
            )
        lines.append(line)
    return lines or ["unknown"]


def _limits(config: ExportConfig, runs: list[Trained], evaluated: Evaluated | None) -> list[str]:
    limits = list(config.card.limits)
    if not runs or any(not run.data for run in runs):
        limits.append("The records of its training data were not at hand for this card.")
    sources = {source for run in runs for source in run.data.get("sources", [])}
    if sources & {"espeak-ng"}:
        limits.append("Trained on synthetic speech by espeak-ng, whose tags are exaggerated; real speech is another matter.")
    if any(source.startswith("elevenlabs") for source in sources):
        limits.append("Trained on synthetic speech by ElevenLabs.")
    if evaluated is None:
        limits.append("Not evaluated.")
    else:
        report = evaluated.metrics["systems"][evaluated.system]
        weak = sorted(tag for tag, row in report["per_tag"].items() if row["support"] and (row["f1"] or 0) < 0.5)
        if weak:
            limits.append(f"Tags with an F1 below 0.5 in the evaluation: {', '.join(weak)}.")
        if "wer" not in report:
            limits.append("Its words were not measured: it writes none.")
    return limits


def _provenance(runs: list[Trained], evaluated: Evaluated | None) -> list[str]:
    lines = []
    for run in runs:
        versions = ", ".join(f"{name} {version}" for name, version in run.record["versions"].items() if version)
        commit = f", commit {run.record['git_commit'][:12]}" if run.record.get("git_commit") else ""
        lines.append(
            f"`{run.stage}`: dataset {run.record['inputs']['dataset']}, base {run.record['inputs']['base']}{commit}; {versions}"
        )
    if evaluated:
        lines.append(f"evaluated on dataset {evaluated.dataset_fingerprint}, system {evaluated.system!r}")
    return lines or ["unknown"]
