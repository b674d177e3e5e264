"""Shared by the studies: running the project's commands in phases, and scoring over several seeds.

A study is a list of phases. The commands of one phase are independent and run `jobs` at a time, each with its
share of the cores. Finished commands are skipped, so an interrupted study resumes when it is run again.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from scipy.stats import t as student_t

from evoxtral_train.config.evaluation import Bootstrap
from evoxtral_train.files import write_atomic
from evoxtral_train.progress import Progress, format_seconds
from evoxtral_train.records import Prediction, read_jsonl, read_rows
from evoxtral_train.run_folders import is_complete
from evoxtral_train.scoring.metrics import evaluate, sums
from evoxtral_train.scoring.significance import PRIMARY_LEVEL, difference

DEMO = Path("configs/demo")
YARDSTICKS = ("chance", "probe")
SAMPLES, BOOTSTRAP_SEED = 2000, 0
DIFFERENCES = ("micro_f1", "hallucination", "false_tags_per_untagged_clip", "tags_per_clip")


@dataclass(frozen=True)
class Command:
    """An `evoxtral` command. It is finished if `result` is a finished run."""

    words: Sequence[str]
    result: Path

    @classmethod
    def of(cls, command: str, config: Path, output: Path, result: str = "", **settings) -> "Command":
        """Double underscores stand for dots: of("sft", "sft.yaml", out, train__seed=1). `result`: the subfolder of
        `output` that becomes the finished run, if it is not `output` itself."""
        changes = {"output": output, "tracking.mode": "disabled"}
        changes |= {name.replace("__", "."): value for name, value in settings.items()}
        sets = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
        return cls([*command.split(), str(config), *sets], output / result)

    def __str__(self) -> str:
        return shlex.join(["evoxtral", *self.words])


def options_of(description: str, name: str) -> argparse.ArgumentParser:
    """The options that all studies have; each adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/studies") / name)
    parser.add_argument("--document", type=Path, help="Markdown file whose tables to update")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of adapter initialisation and row order")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="commands to run at a time; use 1 on a GPU")
    return parser


def run_phases(phases: Sequence[Iterable[Command]], jobs: int, logs: Path) -> None:
    """Run all unfinished commands. The first failure ends the study and prints the end of its log."""
    phases = [list(phase) for phase in phases]
    everything = [command for phase in phases for command in phase]
    finished = sum(is_complete(command.result) for command in everything)
    logs.mkdir(parents=True, exist_ok=True)
    write_atomic(logs / "commands.txt", "".join(f"{command}\n" for command in everything))
    print(f"{len(everything)} commands ({logs / 'commands.txt'}), {finished} finished before, {jobs} at a time", flush=True)
    bar = Progress("study", len(everything), "commands")
    bar.skip(finished)
    for phase in phases:
        waiting = [command for command in phase if not is_complete(command.result)]
        with ThreadPoolExecutor(jobs) as pool:
            for command, seconds in pool.map(lambda command: _run(command, jobs, logs), waiting):
                bar.advance(1)
                print(f"{format_seconds(seconds):>12}  {command.result}", flush=True)
    bar.close()


def _run(command: Command, jobs: int, logs: Path) -> tuple[Command, float]:
    started, log = time.monotonic(), logs / f"{'-'.join(command.result.parts[-3:])}.log"
    threads = str(max((os.cpu_count() or 1) // jobs, 1))
    with log.open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "evoxtral_train.cli", *command.words, "--resume"], stdout=file, stderr=file, check=False,
            env={**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1")},
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{command}\n{log.read_text('utf-8')[-2000:]}")
    return command, time.monotonic() - started


def measure_yardsticks(dataset: Path, output: Path) -> Command:
    """The first rows of every study's table: the best constant answer, and a linear probe on the frozen audio. They need
    only the corpus and the base, no adapter."""
    systems = ", ".join(f"{{name: {name}, yardstick: {name}}}" for name in YARDSTICKS)
    return Command.of("eval", DEMO / "eval-sft.yaml", output, dataset=dataset, systems=f"[{systems}]")


def yardsticks_of(folder: Path) -> dict[str, dict]:
    """name -> scores; yardsticks have no seeds."""
    rows = systems_of(folder)
    return {name: score_over_seeds({name: rows[name]}) | {"micro_f1_of_seeds": []} for name in YARDSTICKS}


def each_seed(report: dict) -> str:
    """A table cell with the micro F1 of each seed."""
    return ", ".join(f"{value:.3f}" for value in report["micro_f1_of_seeds"]) or "—"


def systems_of(folder: Path) -> dict[str, list[Prediction]]:
    """name -> predictions of an evaluation."""
    return {path.stem: read_rows(path, Prediction) for path in sorted((folder / "predictions").glob("*.jsonl"))}


def score_over_seeds(predictions: Mapping[str, list[Prediction]]) -> dict:
    """`evaluate` on all seeds pooled, plus each seed's micro F1. The intervals resample clips, keeping all seeds' answers
    to a clip together: they hold for these seeds only. `tags_that_are_none`: brackets whose content is not a tag of the
    references."""
    report = evaluate(
        [row for rows in predictions.values() for row in rows], False, Bootstrap(samples=SAMPLES, seed=BOOTSTRAP_SEED)
    )
    written = report.pop("per_tag")
    report["per_tag"] = {tag: row for tag, row in written.items() if row["support"]}
    report["tags_that_are_none"] = sum(row["predicted"] for row in written.values() if not row["support"])
    seeds = [evaluate(rows, False, Bootstrap(samples=1))["micro"]["f1"]["value"] for rows in predictions.values()]
    return report | {"micro_f1_of_seeds": seeds}


def differences(before: Sequence[Prediction], after: Sequence[Prediction]) -> dict[str, dict]:
    """`after` minus `before`, with 95% intervals over clips that keep all seeds' answers to a clip together."""
    first, second, clips = sums(before, False), sums(after, False), [row.id for row in before]
    return {name: difference(first[name], second[name], clips, PRIMARY_LEVEL, 10_000, BOOTSTRAP_SEED) for name in DIFFERENCES}


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Mean with its 95% interval over seeds, from Student's t: what another seed would change. Wide, with three of them."""
    mean = fmean(values)
    if len(values) < 2:
        return {"value": mean, "low": mean, "high": mean}
    half = student_t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return {"value": mean, "low": mean - half, "high": mean + half}


def signed(measure: Mapping[str, float]) -> str:
    """A table cell with a difference and its interval."""
    return f"{measure['value']:+.3f} [{measure['low']:+.3f}, {measure['high']:+.3f}]"


def with_events(rows: Sequence[Prediction], manifest: Path) -> list[Prediction]:
    """The predictions with the manifest's events, whatever their layout."""
    events = {row["id"]: row["events"] for _, row in read_jsonl(manifest)}
    return [replace(row, events=events[row.id]) for row in rows]


def slug(name: str) -> str:
    """ "packed, twice the steps" -> "packed-twice-the-steps"."""
    return name.replace(", ", "-").replace(" ", "-")


def finish(options: argparse.Namespace, content: dict, sections: Mapping[str, str]) -> None:
    """Write the results, print the tables, and update the document, if there is one."""
    (options.output / "results.json").write_text(json.dumps(content, indent=1), "utf-8")
    print("\n\n".join(sections.values()))
    if options.document:
        publish(options.document, sections, content)


def publish(document: Path, sections: Mapping[str, str], results: dict) -> None:
    """Write the results beside the document, and each section between its markers in the document:
    `<!-- name -->` … `<!-- end -->`. The text around them is written by hand."""
    write_atomic(document.with_suffix(".json"), json.dumps(results, ensure_ascii=False) + "\n")
    write_atomic(document, filled(document.read_text("utf-8"), sections))


def filled(text: str, sections: Mapping[str, str]) -> str:
    for name, content in sections.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not mark.search(text):
            raise SystemExit(f"the document has no place for {name!r}")
        text = mark.sub(lambda found, content=content: f"{found[1]}{content}\n{found[2]}", text)
    return text
