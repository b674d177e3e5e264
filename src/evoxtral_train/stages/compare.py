"""`evoxtral compare`: the systems of several evaluations in one table and on one page."""

import json
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from ..config.evaluation import EvalConfig, System
from ..dataset.reader import PackedSplit
from ..errors import EvoxtralError, UsageError
from ..files import write_atomic
from ..plain_text import one_line
from ..reading import read_record
from ..records import Prediction, read_rows
from ..reporting.evaluation import page
from ..reporting.results import Evaluation
from ..reporting.text import last_lines, markdown
from ..runs import read_run
from ..scoring.significance import compare_pairs, declared
from .finished_runs import require_evaluation
from .report import Report
from .report_pages import clip_audio
from .training_history import training_of


def run(folders: list[Path], output: Path | None) -> Report:
    """Writes `<output>.json`, `<output>.md` and `<output>.html`. Raises UsageError if the runs are not of the same dataset and
    split, or if one name is used for two different systems."""
    files = _own_files(output) if output else []
    systems: dict[str, dict] = {}
    rows: dict[str, list[Prediction]] = {}
    adapters: dict[str, Path] = {}
    configs: list[EvalConfig] = []
    first = None
    for folder in folders:
        require_evaluation(folder)
        content = read_record(folder / "metrics.json")
        corpus = (read_run(folder)["inputs"]["dataset"], content["split"])
        if first is not None and corpus != first:
            raise UsageError(f"is an evaluation of another dataset or split than {folders[0]}", where=str(folder))
        first = corpus
        if not content["systems"]:
            raise UsageError("holds no system", where=str(folder / "metrics.json"), fix="evaluate it again with --overwrite")
        config = _config(folder)
        configs.append(config)
        for name, report in content["systems"].items():
            if systems.get(name, report) != report:
                raise UsageError(f"the name {name!r} is used for two different systems", where=str(folder), fix="rename one")
            if "confusion" not in report:
                raise UsageError("was evaluated by an older version", where=str(folder), fix="evaluate it again with --overwrite")
            systems[name], rows[name] = report, read_rows(folder / "predictions" / f"{name}.jsonl", Prediction)
        adapters |= {system.name: system.adapter for system in config.systems if system.adapter and not system.is_filtered}
    with_words = any("wer" in report for report in systems.values())
    defined = _systems(configs, list(systems))
    evaluation = Evaluation(
        f"Comparison on {first[1]}", ", ".join(map(str, folders)), defined, systems, rows,
        _comparisons(configs, defined, rows, with_words), [], with_words, training_of(adapters), _audio(config, first[0]),
        config.clips_shown,
    )  # fmt: skip
    if files:
        content = {"dataset": first[0], "split": first[1], "runs": [str(folder) for folder in folders]}
        content |= {"systems": systems, "comparisons": evaluation.comparisons}
        texts = (markdown(evaluation), json.dumps(content, indent=2, ensure_ascii=False) + "\n", page(evaluation)[0])
        for path, text in zip(files, texts, strict=True):
            write_atomic(path, text)
    facts = {"runs": len(folders), "clips": f"{next(iter(systems.values()))['clips']} of split {first[1]}"}
    return Report("compare", facts, table=last_lines(evaluation, files))


def _own_files(output: Path) -> list[Path]:
    """Where the comparison is written. Raises UsageError when a file is there that no comparison wrote."""
    if output.name in ("", ".."):
        raise UsageError("is a folder", where=str(output), fix="name a file in it for --output, without a suffix")
    files = [output.with_name(f"{output.name}{suffix}") for suffix in (".md", ".json", ".html")]
    there = [path for path in files if path.exists()]
    if there and not (files[1].is_file() and {"systems", "comparisons"} <= read_record(files[1]).keys()):
        raise UsageError("no comparison wrote this file", where=str(there[0]), fix="choose another --output, or move it away")
    return files


def _systems(configs: list[EvalConfig], names: list[str]) -> list[System]:
    """The systems as their configs define them; the base may be in none."""
    known = {system.name: system for config in reversed(configs) for system in config.systems}
    return [known.get(name, System(name=name)) for name in names]


def _comparisons(
    configs: list[EvalConfig], systems: list[System], rows: dict[str, list[Prediction]], with_words: bool
) -> list[dict]:
    """The pairs that the configs list, or else those that the order of the systems declares. Each uses the settings of the run
    with `after`, so that a pair gets the same verdict here as on its own run's page."""
    bootstraps = {system.name: config.bootstrap for config in reversed(configs) for system in config.systems}
    named = dict.fromkeys((pair.before, pair.after) for config in configs for pair in config.comparisons or ())
    return [
        comparison
        for before, after in named or declared(systems)
        for comparison in compare_pairs([(before, after)], rows, with_words, bootstraps.get(after, configs[0].bootstrap))
    ]


def _config(folder: Path) -> EvalConfig:
    try:
        return EvalConfig.model_validate(read_record(folder / "config.yaml"))
    except ValidationError as error:
        what = f"its config cannot be read: {one_line(error, 200)}"
        raise UsageError(what, where=str(folder), fix="evaluate it again with --overwrite") from None


def _audio(config: EvalConfig, fingerprint: str) -> Callable[[str], bytes | None]:
    """The audio of the evaluated clips, if the dataset is still there."""
    try:
        split = PackedSplit(config.dataset, config.split)
    except EvoxtralError:
        return lambda identity: None
    return lambda identity: clip_audio(split, identity) if split.fingerprint == fingerprint else None
