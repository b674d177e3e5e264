"""`evoxtral compare`: the systems of several evaluations in one table, and on one page."""

import json
from collections.abc import Callable
from pathlib import Path

import yaml

from ..config.schema import EvalConfig, System
from ..data.packed import PackedSplit
from ..errors import EvoxtralError, UsageError
from ..records import Prediction, read_rows
from ..reporting._shim import declared
from ..reporting.evaluation import page
from ..reporting.results import Evaluation
from ..reporting.text import last_lines, markdown
from ..runs import read_run, require_complete, write_atomic
from ..scoring.significance import compare_all
from .report import Report
from .report_pages import clip_audio, filters_of
from .training_history import training_of


def run(folders: list[Path], output: Path | None) -> Report:
    """Writes `<output>.json`, `<output>.md` and `<output>.html`. Raises UsageError when the runs are not of one dataset
    and split, or when one name stands for two different systems."""
    systems: dict[str, dict] = {}
    rows: dict[str, list[Prediction]] = {}
    adapters: dict[str, Path] = {}
    defined: list[System] = []
    first = None
    for folder in folders:
        require_complete(folder, "eval", "evoxtral eval configs/eval.yaml")
        content = json.loads((folder / "metrics.json").read_text("utf-8"))
        corpus = (read_run(folder)["inputs"]["dataset"], content["split"])
        if first is not None and corpus != first:
            raise UsageError(f"is an evaluation of another dataset or split than {folders[0]}", where=str(folder))
        first = corpus
        config = _config(folder)
        for name, report in content["systems"].items():
            if systems.get(name, report) != report:
                raise UsageError(f"the name {name!r} stands for two different systems", where=str(folder), fix="rename one")
            if "confusion" not in report:
                raise UsageError("was evaluated by an older version", where=str(folder), fix="evaluate it again with --overwrite")
            systems[name], rows[name] = report, read_rows(folder / "predictions" / f"{name}.jsonl", Prediction)
        defined += config.systems
        adapters |= {each.name: each.adapter for each in config.systems if each.adapter and not each.is_filtered}
    filters, bootstrap = filters_of(defined), config.bootstrap
    comparisons = compare_all(rows, bootstrap.samples, bootstrap.seed, bootstrap.permutations)
    comparisons = declared(comparisons, filters)
    found = Evaluation(
        f"Comparison on {first[1]}", ", ".join(map(str, folders)), systems, rows, comparisons, [],
        any("wer" in report for report in systems.values()), training_of(adapters), _audio(config, first[0]), config.clips_shown,
        list(filters),
    )  # fmt: skip
    files = [output.with_suffix(suffix) for suffix in (".md", ".json", ".html")] if output else []
    if files:
        content = {"dataset": first[0], "split": first[1], "runs": [str(folder) for folder in folders]}
        content |= {"systems": systems, "comparisons": comparisons}
        texts = (markdown(found), json.dumps(content, indent=2, ensure_ascii=False) + "\n", page(found)[0])
        for path, text in zip(files, texts, strict=True):
            write_atomic(path, text)
    facts = {"runs": len(folders), "clips": f"{next(iter(systems.values()))['clips']} of split {first[1]}"}
    return Report("compare", facts, table=last_lines(found, files))


def _config(folder: Path) -> EvalConfig:
    return EvalConfig.model_validate(yaml.safe_load((folder / "config.yaml").read_text("utf-8")))


def _audio(config: EvalConfig, fingerprint: str) -> Callable[[str], bytes | None]:
    """The clips of the dataset that was evaluated, if it is still where it was."""
    try:
        split = PackedSplit(config.dataset, config.split)
    except EvoxtralError:
        return lambda identity: None
    return lambda identity: clip_audio(split, identity) if split.fingerprint == fingerprint else None
