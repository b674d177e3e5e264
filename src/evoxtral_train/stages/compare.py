"""`evoxtral compare`: the systems of several evaluations in one table."""

import json
from pathlib import Path

from ..errors import UsageError
from ..runs import read_run, require_complete, write_atomic
from ..scoring.tables import per_tag_table, systems_table
from .report import Report


def run(folders: list[Path], output: Path | None) -> Report:
    """Writes `<output>.json` and `<output>.md`. Raises UsageError when the runs are not of one dataset
    and split, or when one name stands for two different systems."""
    systems: dict[str, dict] = {}
    first = None
    for folder in folders:
        require_complete(folder, "eval", "evoxtral eval configs/eval.yaml")
        content = json.loads((folder / "metrics.json").read_text("utf-8"))
        corpus = (read_run(folder)["inputs"]["dataset"], content["split"])
        if first is not None and corpus != first:
            raise UsageError(f"is an evaluation of another dataset or split than {folders[0]}", where=str(folder))
        first = corpus
        for name, report in content["systems"].items():
            if systems.get(name, report) != report:
                raise UsageError(f"the name {name!r} stands for two different systems", where=str(folder), fix="rename one")
            systems[name] = report
    table = systems_table(systems)
    facts: dict = {"runs": len(folders), "clips": next(iter(systems.values()))["clips"]}
    if output:
        content = {"dataset": first[0], "split": first[1], "runs": [str(folder) for folder in folders], "systems": systems}
        write_atomic(output.with_suffix(".json"), json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        note = "Values with 95% bootstrap intervals over clips. P precision, R recall; what each means: scoring/metrics.py."
        write_atomic(output.with_suffix(".md"), f"{table}\n\n{note}\n\n{per_tag_table(systems)}\n")
        facts["written"] = f"{output.with_suffix('.json')}, {output.with_suffix('.md')}"
    return Report("compare", facts, table=table)
