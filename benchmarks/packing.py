"""Packing: how much faster than real time one core is, what a second process gains, and whether memory stays flat.

    python benchmarks/packing.py [--rows 20000] [--clips 2000] [--processes 2] [--json FILE]

The corpus is spoken by espeak-ng once (16 kHz FLAC); with more rows than clips, rows share audio files, which costs packing
the same. Every figure is of the command `evoxtral data pack` as a user calls it, start included; ratios are of runs in turn.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import yaml
from measuring import machine, ratio

from evoxtral_train.data.audio import duration_of

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the large corpus")
    parser.add_argument("--small", type=int, default=2_000, help="rows of the small one")
    parser.add_argument("--clips", type=int, default=2_000, help="different audio files")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="of the large corpus, each way in turn")
    parser.add_argument("--folder", type=Path, help="keep the corpus there, to use it again")
    parser.add_argument("--json", type=Path, help="write the figures there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        manifests = {rows: corpus(folder, rows, asked.clips) for rows in (asked.small, asked.rows)}
        results = measure(asked, folder, manifests)
    print(json.dumps(results, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


def measure(asked: argparse.Namespace, folder: Path, manifests: dict[int, Path]) -> dict:
    output, processes = folder / "packed", asked.processes
    _, small = pack(manifests[asked.small], output, processes)
    reading = {asked.small: read(output)}
    one, many, large = [], [], (0.0, 0.0)
    for _ in range(asked.rounds):
        one.append(pack(manifests[asked.rows], output, 1)[0])
        seconds, peak = pack(manifests[asked.rows], output, processes)
        many.append(seconds)
        large = tuple(map(max, large, peak))
    reading[asked.rows] = read(output)
    size = sum(each.stat().st_size for each in output.rglob("*") if each.is_file())
    shutil.rmtree(output)
    audio_s = 3600 * hours_of(manifests[asked.rows])
    return {
        "machine": machine(), "rows": asked.rows, "hours of audio": round(audio_s / 3600, 2),
        "seconds, one process": [round(each, 1) for each in one],
        f"seconds, {processes} processes": [round(each, 1) for each in many],
        f"{processes} processes against one": ratio(one, many),
        "times real time, one process": round(audio_s / float(np.median(one))),
        f"times real time per core, {processes} processes": round(audio_s / float(np.median(many)) / processes),
        "peak memory of the largest process and of all together, MB": {asked.small: small, asked.rows: large},
        "peak memory, large against small": round(large[1] / small[1], 3),
        "reading": reading,
        "GB on disk": round(size / 1e9, 2), "KB on disk per second of audio": round(size / 1e3 / audio_s, 1),
    }  # fmt: skip


def corpus(folder: Path, rows: int, clips: int) -> Path:
    """A manifest of so many rows over `clips` spoken clips."""
    spoken = folder / "spoken"
    if not (spoken / "complete.json").is_file():
        split = {"train": round(0.8 * clips), "validation": round(0.1 * clips), "test": round(0.1 * clips)}
        overrides = [f"clips.{name}={count}" for name, count in split.items()]
        evoxtral("data", "synth", ROOT / "configs/synth.yaml", "--overwrite", *sets(f"output={spoken}", *overrides))
    found = [json.loads(line) for line in (spoken / "manifest.jsonl").read_text("utf-8").splitlines()]
    path = spoken / f"manifest-{rows}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for index in range(rows):
            row = found[index % len(found)]
            file.write(json.dumps(row | {"id": f"{row['id']}-{index // len(found)}"}) + "\n")
    return path


def hours_of(manifest: Path) -> float:
    paths = [json.loads(line)["audio"] for line in manifest.read_text("utf-8").splitlines()]
    seconds = {path: duration_of(manifest.parent / path) for path in set(paths)}
    return sum(seconds[path] for path in paths) / 3600


def pack(manifest: Path, output: Path, processes: int) -> tuple[float, tuple[float, float]]:
    """(seconds, (peak memory of the largest process, of all of them together, in MB))."""
    config = yaml.safe_load((ROOT / "configs/demo/pack.yaml").read_text("utf-8"))
    config |= {"manifest": str(manifest), "output": str(output), "processes": processes}
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config), "utf-8")
    peak = Peak()
    started = time.perf_counter()
    evoxtral("data", "pack", path, "--overwrite", on_start=peak.watch)
    return time.perf_counter() - started, peak.stop()


def read(output: Path) -> dict[str, float]:
    """Open the training split and read 2,000 rows in random order, as training does."""
    code = f"""
import json, time, numpy as np, psutil
from pathlib import Path
from evoxtral_train.dataset.reader import PackedSplit
def own():
    memory = psutil.Process().memory_info()
    return (memory.rss - memory.shared) / 1e6
before, started = own(), time.perf_counter()
split = PackedSplit(Path({str(output)!r}), "train")
opened = time.perf_counter()
for index in np.random.default_rng(0).integers(len(split), size=2000).tolist():
    split.examples[index], split.mel_of(index, int(split.row_tokens[index]))
seconds = time.perf_counter() - opened
print(json.dumps({{"rows": len(split), "ms to open": round(1e3 * (opened - started), 1),
    "ms per row": round(seconds / 2, 2), "MB of memory": round(own() - before, 1)}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


class Peak:
    """The memory of a process and its children that is their own, sampled ten times a second: pages of files that are
    mapped belong to the system, which takes them back when it needs them."""

    def __init__(self):
        self._largest, self._together, self._done = 0, 0, threading.Event()

    def watch(self, process: subprocess.Popen) -> None:
        self._thread = threading.Thread(target=self._sample, args=(psutil.Process(process.pid),))
        self._thread.start()

    def _sample(self, root: psutil.Process) -> None:
        while not self._done.wait(0.1):
            sizes = []
            try:
                for each in [root, *root.children(recursive=True)]:
                    memory = each.memory_info()
                    sizes.append(memory.rss - memory.shared)
            except psutil.NoSuchProcess:
                continue
            self._largest, self._together = max(self._largest, *sizes), max(self._together, sum(sizes))

    def stop(self) -> tuple[float, float]:
        self._done.set()
        self._thread.join()
        return round(self._largest / 1e6), round(self._together / 1e6)


def sets(*overrides: str) -> list[str]:
    return [each for override in overrides for each in ("--set", override)]


def evoxtral(*arguments, on_start=lambda process: None) -> None:
    command = [sys.executable, "-m", "evoxtral_train.cli", *map(str, arguments), "--set", "tracking.mode=disabled"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    on_start(process)
    output, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{output}{errors}")


if __name__ == "__main__":
    main()
