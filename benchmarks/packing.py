"""Packing: speed of one core relative to real time, gain from a second process, and whether memory stays constant.

    python benchmarks/packing.py [--rows 20000] [--clips 2000] [--processes 2] [--json FILE]

espeak-ng speaks the corpus once (16 kHz FLAC). If there are more rows than clips, rows share audio files, which takes packing
just as long. All figures are for the command `evoxtral data pack` including its startup; ratios are of alternating runs.
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
    parser.add_argument("--small", type=int, default=2_000, help="rows of the small corpus")
    parser.add_argument("--clips", type=int, default=2_000, help="different audio files")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="runs of the large corpus for each number of processes")
    parser.add_argument("--folder", type=Path, help="keep the corpus there for the next run")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        manifests = {rows: corpus(folder, rows, arguments.clips) for rows in (arguments.small, arguments.rows)}
        results = measure(arguments, folder, manifests)
    print(json.dumps(results, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


def measure(arguments: argparse.Namespace, folder: Path, manifests: dict[int, Path]) -> dict:
    output, processes = folder / "packed", arguments.processes
    _, small = pack(manifests[arguments.small], output, processes)
    reading = {arguments.small: read(output)}
    one, many, large = [], [], (0.0, 0.0)
    for _ in range(arguments.rounds):
        one.append(pack(manifests[arguments.rows], output, 1)[0])
        seconds, peak = pack(manifests[arguments.rows], output, processes)
        many.append(seconds)
        large = tuple(map(max, large, peak))
    reading[arguments.rows] = read(output)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    shutil.rmtree(output)
    audio_s = 3600 * hours_of(manifests[arguments.rows])
    return {
        "machine": machine(), "rows": arguments.rows, "hours of audio": round(audio_s / 3600, 2),
        "seconds, one process": [round(seconds, 1) for seconds in one],
        f"seconds, {processes} processes": [round(seconds, 1) for seconds in many],
        f"{processes} processes against one": ratio(one, many),
        "times real time, one process": round(audio_s / float(np.median(one))),
        f"times real time per core, {processes} processes": round(audio_s / float(np.median(many)) / processes),
        "peak memory of the largest process and of all together, MB": {arguments.small: small, arguments.rows: large},
        "peak memory, large against small": round(large[1] / small[1], 3),
        "reading": reading,
        "GB on disk": round(size / 1e9, 2), "KB on disk per second of audio": round(size / 1e3 / audio_s, 1),
    }  # fmt: skip


def corpus(folder: Path, rows: int, clips: int) -> Path:
    """A manifest of `rows` rows over `clips` spoken clips."""
    spoken = folder / "spoken"
    if not (spoken / "complete.json").is_file():
        split = {"train": round(0.8 * clips), "validation": round(0.1 * clips), "test": round(0.1 * clips)}
        overrides = [f"clips.{name}={count}" for name, count in split.items()]
        evoxtral("data", "synth", ROOT / "configs/synth.yaml", "--overwrite", *sets(f"output={spoken}", *overrides))
    clip_rows = [json.loads(line) for line in (spoken / "manifest.jsonl").read_text("utf-8").splitlines()]
    path = spoken / f"manifest-{rows}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for index in range(rows):
            row = clip_rows[index % len(clip_rows)]
            file.write(json.dumps(row | {"id": f"{row['id']}-{index // len(clip_rows)}"}) + "\n")
    return path


def hours_of(manifest: Path) -> float:
    paths = [json.loads(line)["audio"] for line in manifest.read_text("utf-8").splitlines()]
    seconds = {path: duration_of(manifest.parent / path) for path in set(paths)}
    return sum(seconds[path] for path in paths) / 3600


def pack(manifest: Path, output: Path, processes: int) -> tuple[float, tuple[float, float]]:
    """(seconds, (peak memory of the largest process, of all processes together, in MB))."""
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
    """The private memory of a process and its children, sampled ten times a second. Pages of mapped files do not count: the
    system reclaims them when it needs memory."""

    def __init__(self):
        self._largest, self._together, self._done = 0, 0, threading.Event()

    def watch(self, process: subprocess.Popen) -> None:
        self._thread = threading.Thread(target=self._sample, args=(psutil.Process(process.pid),))
        self._thread.start()

    def _sample(self, root: psutil.Process) -> None:
        while not self._done.wait(0.1):
            sizes = []
            try:
                for process in [root, *root.children(recursive=True)]:
                    memory = process.memory_info()
                    sizes.append(memory.rss - memory.shared)
            except psutil.NoSuchProcess:
                continue
            self._largest, self._together = max(self._largest, *sizes), max(self._together, sum(sizes))

    def stop(self) -> tuple[float, float]:
        self._done.set()
        self._thread.join()
        return round(self._largest / 1e6), round(self._together / 1e6)


def sets(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def evoxtral(*arguments, on_start=lambda process: None) -> None:
    command = [sys.executable, "-m", "evoxtral_train.cli", *map(str, arguments), "--set", "tracking.mode=disabled"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    on_start(process)
    output, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{output}{errors}")


if __name__ == "__main__":
    main()
