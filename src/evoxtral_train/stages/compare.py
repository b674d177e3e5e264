"""`evoxtral compare`: the systems of several evaluations in one table, and on one page."""

import json
from collections.abc import Callable
from pathlib import Path

import yaml

from ..config.schema import EvalConfig, System
from ..data.packed import PackedSplit
from ..errors import EvoxtralError, UsageError
from ..records import Prediction, read_rows
from ..reporting.evaluation import Evaluation, page, sentences
from ..runs import read_run, require_complete, write_atomic
from ..scoring.significance import compare_pairs, declared
from ..scoring.tables import per_tag_table, systems_table
from .report import Report
from .report_pages import clip_audio
from .training_history import training_of

_NOTE = "Values with 95% intervals over clips (BCa). P precision, R recall; docs/evaluation.md defines each."


def run(folders: list[Path], output: Path | None) -> Report:
    """Writes `<output>.json`, `<output>.md` and `<output>.html`. Raises UsageError when the runs are not of one dataset
    and split, or when one name stands for two different systems."""
    systems: dict[str, dict] = {}
    rows: dict[str, list[Prediction]] = {}
    adapters: dict[str, Path] = {}
    configs: list[EvalConfig] = []
    first = None
    for folder in folders:
        require_complete(folder, "eval", "evoxtral eval configs/eval.yaml")
        content = json.loads((folder / "metrics.json").read_text("utf-8"))
        corpus = (read_run(folder)["inputs"]["dataset"], content["split"])
        if first is not None and corpus != first:
            raise UsageError(f"is an evaluation of another dataset or split than {folders[0]}", where=str(folder))
        first = corpus
        config = _config(folder)
        configs.append(config)
        for name, report in content["systems"].items():
            if systems.get(name, report) != report:
                raise UsageError(f"the name {name!r} stands for two different systems", where=str(folder), fix="rename one")
            if "confusion" not in report:
                raise UsageError("was evaluated by an older version", where=str(folder), fix="evaluate it again with --overwrite")
            systems[name], rows[name] = report, read_rows(folder / "predictions" / f"{name}.jsonl", Prediction)
        adapters |= {each.name: each.adapter for each in config.systems if each.adapter and not each.is_filtered}
    with_words = any("wer" in report for report in systems.values())
    comparisons = _comparisons(configs, list(systems), rows, with_words)
    table, said = systems_table(systems), "\n".join(f"- {each}" for each in sentences(comparisons))
    facts: dict = {"runs": len(folders), "clips": next(iter(systems.values()))["clips"]}
    if output:
        paths = [output.with_suffix(suffix) for suffix in (".json", ".md", ".html")]
        content = {"dataset": first[0], "split": first[1], "runs": [str(folder) for folder in folders]}
        content |= {"systems": systems, "comparisons": comparisons}
        write_atomic(paths[0], json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        write_atomic(paths[1], f"{table}\n\n{_NOTE}\n\n{said}\n\n{per_tag_table(systems)}\n")
        found = Evaluation(
            f"Comparison on {first[1]}", ", ".join(map(str, folders)), systems, rows, comparisons, [], with_words,
            training_of(adapters), _audio(config, first[0]), config.clips_shown,
        )  # fmt: skip
        write_atomic(paths[2], page(found)[0])
        facts["written"] = ", ".join(map(str, paths))
    return Report("compare", facts, table=f"{table}\n\n{said}" if said else table)


def _comparisons(configs: list[EvalConfig], names: list[str], rows: dict[str, list[Prediction]], with_words: bool) -> list[dict]:
    """What the runs' systems in this order declare, and what a config names; each by the settings of the run that holds `after`,
    so that a pair is judged here as on its own run's page."""
    known = {system.name: (system, config) for config in reversed(configs) for system in config.systems}
    systems = [known[name][0] if name in known else System(name=name) for name in names]  # the base may be in no config
    pairs = dict.fromkeys([*declared(systems), *((p.before, p.after) for config in configs for p in config.comparisons or ())])
    found = []
    for pair in pairs:
        config = known[pair[1]][1] if pair[1] in known else configs[0]
        found += compare_pairs([pair], rows, with_words, config.bootstrap)
    return found


def _config(folder: Path) -> EvalConfig:
    return EvalConfig.model_validate(yaml.safe_load((folder / "config.yaml").read_text("utf-8")))


def _audio(config: EvalConfig, fingerprint: str) -> Callable[[str], bytes | None]:
    """The clips of the dataset that was evaluated, if it is still where it was."""
    try:
        split = PackedSplit(config.dataset, config.split)
    except EvoxtralError:
        return lambda identity: None
    return lambda identity: clip_audio(split, identity) if split.fingerprint == fingerprint else None
