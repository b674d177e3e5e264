"""What is stopped or killed leaves no process behind, and its lock free."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import REPO, TINY_BASE, rows_of
from evoxtral_train.cli.running import Stopped, _stoppable
from evoxtral_train.data.audio import decode_audio, encode_flac
from evoxtral_train.run_folders import partial
from evoxtral_train.synthesis.espeak import Espeak

ROWS = 3000  # of the 36 clips, over and over: more work than is done before the signal


@pytest.fixture
def pack(spoken, tmp_path):
    """A command that packs for a minute, with two workers."""
    rows = rows_of(spoken)
    with (tmp_path / "manifest.jsonl").open("w", encoding="utf-8") as file:
        for number in range(ROWS):
            file.write(json.dumps(rows[number % len(rows)] | {"id": f"{number:05d}"}) + "\n")
    return [
        sys.executable, "-m", "evoxtral_train.cli", "data", "pack", "configs/demo/pack.yaml", "--set",
        f"manifest={tmp_path / 'manifest.jsonl'}", "--set", f"output={tmp_path / 'packed'}", "--set", f"base={TINY_BASE}",
        "--set", "processes=2", "--set", "tracking.mode=disabled",
    ]  # fmt: skip


def processes_of(session: int) -> list[int]:
    """The processes that are alive in a session: a command and all that it started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # gone meanwhile
            continue
        if int(its_session) == session and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def wait_for(what, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.05)


def as_from_a_terminal() -> None:
    """`nohup` and background jobs ignore these signals, and what they start does too."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(command, folder):
    """The command in a session of its own, once its workers are at work."""
    errors = (folder / "stderr.txt").open("w")
    process = subprocess.Popen(
        command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True, preexec_fn=as_from_a_terminal
    )
    shards = partial(folder / "packed") / "shards"
    wait_for(lambda: process.poll() is not None or list(shards.glob("*.arrow")), 60)
    assert process.poll() is None, (folder / "stderr.txt").read_text()
    return process


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="counts processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_pack_leaves_no_process_behind_and_its_lock_free(pack, tmp_path, number):
    process = start(pack, tmp_path)
    try:
        assert len(processes_of(process.pid)) >= 4, "the command, its server, two workers"
        os.kill(process.pid, number)
        code = process.wait(20)
        wait_for(lambda: not processes_of(process.pid), 5)
    finally:
        for pid in processes_of(process.pid):
            os.kill(pid, signal.SIGKILL)
    said = (tmp_path / "stderr.txt").read_text()
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 128 + number
        assert said.splitlines()[-1] == "stopped; resume with --resume"
        assert "Traceback" not in said
    refused = subprocess.run(pack, cwd=REPO, capture_output=True, text=True, timeout=50, check=False)
    assert refused.returncode == 2
    assert "there is an unfinished run here — use --resume" in refused.stderr, "not: another process is making this run"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="counts processes in /proc")
def test_a_closed_terminal_ends_all_of_it(pack, tmp_path):
    """SIGHUP goes to the command and to its workers at once."""
    process = start(pack, tmp_path)
    try:
        os.killpg(process.pid, signal.SIGHUP)
        assert process.wait(20) == 129
        wait_for(lambda: not processes_of(process.pid), 5)
    finally:
        for pid in processes_of(process.pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_training_ends_it_as_ctrl_c_does(packed, tmp_path, number):
    command = [
        sys.executable, "-m", "evoxtral_train.cli", "sft", "configs/demo/sft.yaml", "--set", f"dataset={packed['deferred']}",
        "--set", f"output={tmp_path / 'sft'}", "--set", "train.epochs=300", "--set", "train.batch_size=4", "--set",
        "train.evaluate_every_steps=2", "--set", "tracking.mode=disabled", "--set", "model.device=cpu",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=as_from_a_terminal
    )
    checkpoints = tmp_path / "sft.partial/checkpoints"
    wait_for(lambda: process.poll() is not None or list(checkpoints.glob("*/trainer_state.json")), 50)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert said.splitlines()[-1] == "stopped; resume with --resume"
    assert "Traceback" not in said


def test_what_nohup_ignores_stays_ignored(tmp_path):
    code = (
        "import os, signal; from evoxtral_train.cli.running import guarded\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "print(guarded(lambda: os.kill(os.getpid(), signal.SIGHUP) or 'finished'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "finished\n"


class Signalled(io.BytesIO):
    """A file whose first reading is interrupted by a signal."""

    number: int | None

    def readinto(self, buffer) -> int:
        if self.number is not None:
            number, self.number = self.number, None
            signal.raise_signal(number)
        return super().readinto(buffer)


@pytest.fixture
def by_default():
    """A background job ignores Ctrl-C, and so would the command."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("by_default")
@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)])
def test_a_signal_while_c_calls_back_is_neither_lost_nor_costs_a_piece_of_the_clip(number, kind):
    """What is raised in a callback is printed and forgotten: a good row was rejected as cut short, a clip spoken with a hole. The
    signal may come again before the clip is handed over: then there is none."""
    content = Signalled(encode_flac(np.linspace(-0.5, 0.5, 40_000)))
    content.number = number
    clips = []
    with pytest.raises(kind), _stoppable():
        clips.append(decode_audio(content))
        time.sleep(10)
    assert all(len(clip) == 40_000 for clip in clips)

    class Interrupted(Espeak):
        number = None

        def _receive(self, wav, count, events) -> int:
            if self.number is not None:
                number, self.number = self.number, None
                signal.raise_signal(number)
            return super()._receive(wav, count, events)

    espeak, spoken = Interrupted(), []
    whole = espeak.speak("come closer", voice="en-us", rate_wpm=170, pitch=50, pitch_range=50).samples
    espeak.number = number
    with pytest.raises(kind), _stoppable():
        spoken.append(espeak.speak("come closer", voice="en-us", rate_wpm=170, pitch=50, pitch_range=50).samples)
        time.sleep(10)
    assert all((samples == whole).all() for samples in spoken)
