"""Kill every stage at random points, fill its disk, start it twice: `make chaos`. docs/reliability.md lists the promises.

    python benchmarks/chaos.py [--kills 20] [--disks 10] [--seed 0] [--stages synth sft …] [--document docs/reliability.md]

Each stage runs once undisturbed. Then, on the same inputs:

- *kills*: it is killed at a random moment of its running time, by SIGKILL or SIGTERM in turn, and resumed with `--resume`;
- *full disks*: no file may grow past a random size (RLIMIT_FSIZE); it must end with an error that names a file, and resume;
- *at once*: a second call on its output while it runs must be refused at once.

In the end the result must equal the undisturbed one, byte for byte. The stages are real command lines; each runs in a fork of a
process that has imported torch already, which saves seconds of each call.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from measuring import machine
from studies import publish

from evoxtral_train.reporting.tables import markdown_table
from evoxtral_train.run_folders import partial

WORK = Path("runs/chaos")
_TRIES = 20
TINY = ["model.base=data/tiny-base", "model.dtype=float32", "model.device=cpu", "tracking.mode=disabled"]
SMALL_TRAIN = ["train.epochs=3", "train.batch_size=8", "train.warmup_steps=1", "train.evaluate_every_steps=2"]
RAFT = [
    "configs/demo/raft.yaml", f"dataset={WORK}/whole/pack", f"adapter={WORK}/whole/sft", "output={out}",
    "generate.candidates=2", "generate.max_new_tokens=20", *SMALL_TRAIN, *TINY,
]  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """`words`: the command, then its settings. `files`: patterns of the compared files, in the folder `result` of the output.
    `needs`: folders of the undisturbed output that the stage needs."""

    words: list[str]
    files: tuple[str, ...]
    result: str = ""
    needs: tuple[str, ...] = ()

    def command(self, out: Path) -> list[str]:
        words = [word.replace("{out}", str(out)) for word in self.words]
        first = next(place for place, word in enumerate(words) if "=" in word)
        return [*words[:first], *(part for setting in words[first:] for part in ("--set", setting))]

    def bytes_in(self, out: Path) -> dict[str, bytes]:
        folder = out / self.result
        return {str(path.relative_to(folder)): path.read_bytes() for each in self.files for path in sorted(folder.glob(each))}


def raft(step: str, result: str, files: tuple[str, ...], needs: tuple[str, ...] = ()) -> Stage:
    return Stage(["raft", step, *RAFT], files, f"round-1/{result}", tuple(f"round-1/{each}" for each in needs))


STAGES = {
    "synth": Stage(
        ["data", "synth", "configs/demo/synth.yaml", "output={out}", "clips={train: 24, validation: 6, test: 8, raft: 12}",
         "tracking.mode=disabled"],
        ("manifest.jsonl", "audio/*"),
    ),
    "import": Stage(
        ["data", "import", "configs/import.yaml", f"source.path={WORK}/whole/synth/manifest.jsonl", "source.kind=jsonl",
         "output={out}", "columns={audio: audio, text: text, id: id, split: split}", "tracking.mode=disabled"],
        ("manifest.jsonl", "rejected.jsonl"),
    ),
    "pack": Stage(
        ["data", "pack", "configs/demo/pack.yaml", f"manifest={WORK}/whole/synth/manifest.jsonl", "output={out}", "processes=1",
         "tracking.mode=disabled"],
        ("shards/*", "*.arrow", "dataset.json", "rejected.jsonl"),
    ),
    "sft": Stage(
        ["sft", "configs/demo/sft.yaml", f"dataset={WORK}/whole/pack", "output={out}", *SMALL_TRAIN, *TINY],
        ("adapter/adapter_model.safetensors",),
    ),
    "generate": raft("generate", "candidates", ("candidates.jsonl", "greedy.jsonl")),
    "score": raft("score", "scores", ("scores.jsonl",), ("candidates",)),
    "curate": raft("curate", "curated", ("curated.jsonl", "dropped.jsonl"), ("candidates", "scores")),
    "train": raft("train", "train", ("adapter/adapter_model.safetensors",), ("candidates", "scores", "curated")),
    "eval": Stage(
        ["eval", "configs/demo/eval-sft.yaml", f"dataset={WORK}/whole/pack", "output={out}", "decode.max_new_tokens=20",
         f"systems=[{{name: base}}, {{name: SFT, adapter: {WORK}/whole/sft}}]", "bootstrap.samples=50", "clips_shown=2", *TINY],
        ("predictions/*", "table.md"),
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--disks", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--document", type=Path)
    options = parser.parse_args()
    import_everything()
    shutil.rmtree(WORK, ignore_errors=True)
    rows, failures = [], []
    for name in STAGES:
        out = WORK / "whole" / ("raft" if STAGES[name].words[0] == "raft" else name)
        started = time.monotonic()
        done = Call(STAGES[name].command(out)).wait()
        if done.code:
            raise SystemExit(f"{name}: {done.error}")
        if name in options.stages:
            row, failed = disturb(name, STAGES[name], out, time.monotonic() - started, options)
            rows.append(row)
            failures += failed
            print(json.dumps(row), flush=True)
    results = {"seed": options.seed, "machine": machine(), "stages": rows, "failures": failures}
    (WORK / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(table(results), *failures, sep="\n")
    if options.document:
        publish(options.document, {"chaos": table(results)}, results)
    sys.exit(bool(failures))


def disturb(name: str, stage: Stage, whole: Path, seconds: float, options: argparse.Namespace) -> tuple[dict, list[str]]:
    """(the row of the table, a line for each trial that broke a promise)."""
    random_of = random.Random(f"{options.seed} {name}")
    expected, failed = stage.bytes_in(whole), []
    row = {
        "stage": name,
        "seconds": round(seconds, 1),
        "kills": 0,
        "killed_while_running": 0,
        "disks": 0,
        "disks_full": 0,
        "at_once": 0,
    }

    def check(trial: str, out: Path, problem: str | None) -> bool:
        found = stage.bytes_in(out)
        if problem is None and found != expected:
            different = sorted({*found, *expected} - {each for each in found if found[each] == expected.get(each)})
            problem = f"other bytes: {', '.join(different[:3])}"
        if problem is not None:
            failed.append(f"{name}, {trial}: {problem}")
        shutil.rmtree(out, ignore_errors=True)
        return problem is None

    for number in range(options.kills):
        kind = (signal.SIGKILL, signal.SIGTERM)[number % 2]
        for _ in range(_TRIES):  # until the signal arrives while the stage runs
            moment, out = random_of.uniform(0, seconds), prepared(stage, whole, f"{name}-kill-{number}")
            call = Call(stage.command(out))
            call.kill_after(moment, kind)
            if call.wait().killed:
                row["killed_while_running"] += 1
                break
        row["kills"] += check(f"{kind.name} after {moment:.2f} s", out, resumed(stage, out))
    largest = max(len(content) for content in expected.values())
    for number in range(options.disks):
        limit = int(1000 * (largest / 1000) ** random_of.uniform(0, 1))
        out = prepared(stage, whole, f"{name}-disk-{number}")
        done = Call(stage.command(out), limit).wait()
        problem = None
        if done.code and ("could not be written" not in done.error or "Traceback" in done.error):
            problem = f"exit code {done.code}: {done.error.strip()[-200:]}"
        row["disks_full"] += bool(done.code)
        row["disks"] += check(f"files of at most {limit} bytes", out, problem or resumed(stage, out))
    out = prepared(stage, whole, f"{name}-twice")
    first = Call(stage.command(out))
    folder = partial(out / stage.result)
    while first.is_running() and not (folder / "run.json").is_file():
        time.sleep(0.005)
    refused, problem = [], None
    for option in ("--overwrite", "--resume"):
        if first.is_running():
            os.kill(first.pid, signal.SIGSTOP)
            refused.append(Call([*stage.command(out), option]).wait())
            os.kill(first.pid, signal.SIGCONT)
    if first.wait().code or any(each.code != 2 or "another process is making this run" not in each.error for each in refused):
        problem = f"not refused: {[(each.code, each.error.strip()[-200:]) for each in refused]}"
    row["at_once"] = len(refused) if check("twice at once", out, problem) else 0
    return row, failed


def prepared(stage: Stage, whole: Path, name: str) -> Path:
    """An output folder with the stage's inputs."""
    out = WORK / "whole" / name  # beside the undisturbed ones: relative paths in the results are the same
    shutil.rmtree(out, ignore_errors=True)
    for each in stage.needs:
        shutil.copytree(whole / each, out / each)
    return out


def resumed(stage: Stage, out: Path) -> str | None:
    """Resume the stage until it is finished; returns the problem, or None."""
    if (out / stage.result / "complete.json").is_file():
        return None
    done = Call([*stage.command(out), "--resume"]).wait()
    if done.code and "this run is finished" not in done.error:
        return f"could not be resumed: exit code {done.code}: {done.error.strip()[-300:]}"
    return None


@dataclass(frozen=True)
class Done:
    """`killed`: by a signal, while it ran."""

    code: int
    killed: bool
    error: str


class Call:
    """A command line in a fork of this process. `largest_file_bytes`: what RLIMIT_FSIZE allows."""

    def __init__(self, words: list[str], largest_file_bytes: int | None = None):
        self._output = WORK / f"stderr-{time.monotonic_ns()}"
        self._output.parent.mkdir(parents=True, exist_ok=True)
        self._killer = None
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(self._run(words, largest_file_bytes))

    def _run(self, words: list[str], largest_file_bytes: int | None) -> int:
        from evoxtral_train.cli.main import app

        error = os.open(self._output, os.O_WRONLY | os.O_CREAT)
        os.dup2(error, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if largest_file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file_bytes, largest_file_bytes))
        sys.argv = ["evoxtral", *words]
        try:
            app()
        except SystemExit as done:
            return done.code if isinstance(done.code, int) else int(done.code is not None)
        return 0

    def kill_after(self, seconds: float, kind: signal.Signals) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.is_running():
            time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, kind)

    def is_running(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def wait(self) -> Done:
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        error = self._output.read_text("utf-8", "replace") if self._output.exists() else ""
        self._output.unlink(missing_ok=True)
        return Done(code, code < 0 or code in (130, 143), error)


def import_everything() -> None:
    """Import the stages' modules once; no thread runs yet, so forking is safe."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    import importlib

    from evoxtral_train.cli.commands import COMMANDS

    for command in COMMANDS.values():
        importlib.import_module(f"evoxtral_train.stages.{command.stage}")
    import torch

    torch.set_num_threads(1)


def table(results: dict) -> str:
    header = [
        "stage", "undisturbed (s)", "killed, resumed to the same bytes", "while running", "disk full, resumed to the same bytes",
        "full", "second call refused",
    ]  # fmt: skip
    names = ("stage", "seconds", "kills", "killed_while_running", "disks", "disks_full", "at_once")
    rows = markdown_table(header, [[str(row[name]) for name in names] for row in results["stages"]])
    return f"{rows}\n\nSeed {results['seed']}; {results['machine']}."


if __name__ == "__main__":
    main()
