"""Every error is one line that says what, where and how to fix it; a traceback only under `--debug`."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evoxtral_train.cli.explaining import explained
from evoxtral_train.errors import EvoxtralError, UsageError
from evoxtral_train.files import disk_errors
from evoxtral_train.plain_text import printable
from evoxtral_train.tracking import Tracker

REPO = Path(__file__).parents[2]
TINY_BASE = REPO / "data" / "tiny-base"
EVOXTRAL = str(Path(sys.executable).with_name("evoxtral"))


def run(*arguments, **options) -> subprocess.CompletedProcess:
    named = {"cwd": REPO, "capture_output": True, "text": True, "errors": "surrogateescape", "timeout": 120, "check": False}
    return subprocess.run([EVOXTRAL, *map(str, arguments)], **named | options)


def require_one_line(done: subprocess.CompletedProcess, code: int, *parts: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1, done.stderr
    for part in parts:
        assert part in errors[0]


@pytest.fixture
def odd_predictions(tmp_path) -> Path:
    path = tmp_path / "odd.jsonl"
    row = {"id": "a", "reference": "[sighs] hi", "prediction": "[si\x9b2J\u202e] hi"}
    path.write_text(json.dumps(row) + "\n", "utf-8")
    return path


def test_half_a_character_is_printed_as_an_escape(odd_predictions, tmp_path):
    done = run("eval-predictions", odd_predictions)
    assert done.returncode == 0, done.stderr
    assert "si\x9b2j\u202e" in json.loads(done.stdout)["per_tag"], "it is JSON all the same"
    half = tmp_path / "half.jsonl"
    half.write_text(json.dumps({"id": "a", "reference": "hi", "prediction": "h\ud800"}) + "\n", "utf-8")
    what = r"half.jsonl:1: `prediction` is 'h\ud800', which contains a lone surrogate"
    require_one_line(run("eval-predictions", half), 2, what)
    done = run("eval-predictions", os.fsdecode(b"/tmp/\xff\xfe.jsonl"))
    require_one_line(done, 2, r"/tmp/\udcff\udcfe.jsonl: no such file")


def test_a_terminal_that_knows_ascii_alone(odd_predictions):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    assert run("eval-predictions", odd_predictions, env=environment).returncode == 0
    require_one_line(run("sft", "no\u00e9.yaml", env=environment), 2, r"no\xe9.yaml: no such config file \u2014 copy")


@pytest.mark.slow
def test_no_message_can_command_the_terminal(clip_row, write_manifest):
    manifest = write_manifest([clip_row("good"), clip_row("bad") | {"id": "\x1b]0;owned\x07\x9b2J\u202e", "text": "[sighs"}])
    done = run("data", "check", "configs/demo/pack.yaml", "--set", f"manifest={manifest}")
    assert r"\x1b]0;owned\x07\x9b2J\u202e" in done.stdout
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(done.stdout + done.stderr)
    assert printable("two\nlines\tand 😂") == "two\nlines\tand 😂"


def shell(command: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", "-c", command], cwd=REPO, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("command", ["doctor | true", "doctor | head -n 1", "--help | true", "doctor 2>&1 | head -n 1"])
def test_a_reader_that_leaves_ends_it_quietly(command):
    assert shell(f"{EVOXTRAL} {command}").stderr == ""


def test_an_output_that_takes_nothing(odd_predictions):
    require_one_line(shell(f"{EVOXTRAL} eval-predictions {odd_predictions} >/dev/full"), 1, "No space left on device")
    done = shell(f"{EVOXTRAL} eval-predictions {odd_predictions} >&-")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("output", "parts"),
    [
        ("file/run", ("file/run", "a file or a broken link is where a folder should be")),
        ("x" * 300, ("File name too long", "choose a shorter name")),
        ("loop/run", ("loop/run", "a file or a broken link is where a folder should be")),
        ("/proc/nothing/run", ("/proc/nothing", "No such file or directory — check the path")),
    ],
)
def test_an_output_that_cannot_be_made(clip_row, write_manifest, tmp_path, output, parts):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    manifest = write_manifest([clip_row("a")])
    sets = ("--set", f"manifest={manifest}", "--set", f"output={tmp_path / output}", "--set", "tracking.mode=disabled")
    done = run("data", "stats", "configs/stats.yaml", *sets)
    require_one_line(done, 2, *parts)
    assert "free some space" not in done.stderr


@pytest.mark.parametrize(
    ("number", "kind", "fix"),
    [
        (errno.ENOSPC, EvoxtralError, "free some space"),
        (errno.EDQUOT, EvoxtralError, "free some space"),
        (errno.EFBIG, EvoxtralError, "ulimit -f"),
        (errno.EACCES, UsageError, "change the permissions"),
        (errno.EROFS, UsageError, "not read-only"),
        (errno.ENOENT, UsageError, "may have been moved"),
        (errno.EISDIR, UsageError, "it is a folder, not a file"),
    ],
)
def test_what_the_disk_refuses_says_what_to_do(number, kind, fix):
    with pytest.raises(EvoxtralError) as caught, disk_errors(Path("runs/a")):
        raise OSError(number, os.strerror(number), "runs/a")
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"runs/a: could not be written: {os.strerror(number)} — ")
    assert fix in str(caught.value)
    assert ("free some space" in str(caught.value)) == (kind is EvoxtralError)


def decoding_error() -> UnicodeError:
    try:
        b"caf\xe9 and more".decode("utf-8")
    except UnicodeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 2, "a/b: could not be opened: Permission denied — change"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a/b"), 2, "a/b: could not be opened: No such file — check the path"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a/b"), 2, "a/b: could not be opened: Is a directory — check the"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device — free some space"),
        (MemoryError(), 1, "not enough memory — lower `batch_tokens`"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "not enough memory"),
        (RecursionError("maximum recursion depth exceeded"), 2, "nested too deeply — look for"),
        (decoding_error(), 2, "not UTF-8 text: invalid continuation byte at 3, near b'caf\\xe9 and more' — save it as UTF-8"),
        (UnicodeEncodeError("utf-8", "half \ud800", 5, 6, "surrogates not allowed"), 2, "'half \\ud800' — remove the lone"),
        (json.JSONDecodeError("Expecting value", '{"a": }', 6), 2, "a file is not JSON: Expecting value near '{\"a\": }'"),
        (ModuleNotFoundError("No module named 'peft'"), 1, "a package cannot be imported: No module named 'peft' — reinstall"),
        (KeyError("inputs"), 1, "KeyError: 'inputs' — run `evoxtral --debug …` for the traceback"),
        (ValueError(""), 1, "ValueError: no message — run `evoxtral"),
    ],
)  # fmt: skip
def test_what_python_raises_in_plain_words(error, code, message):
    text, exit_code = explained(error)
    assert exit_code == code
    assert message in text


@pytest.mark.slow
def test_workers_of_a_pool_show_no_traceback(clip_row, tmp_path):
    base, row = tmp_path / "base", clip_row("a")
    shutil.copytree(TINY_BASE, base)
    (base / "preprocessor_config.json").write_text('{"feature_extractor_type": "NoSuchThing"}', "utf-8")
    rows = [row | {"id": f"c{number}", "text": f"[sighs] number {number}"} for number in range(300)]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows), "utf-8")
    settings = {"manifest": tmp_path / "manifest.jsonl", "base": base, "output": tmp_path / "out", "processes": 2}
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = run("data", "pack", "configs/demo/pack.yaml", *sets, "--set", "tracking.mode=disabled")
    require_one_line(done, 1, f"{base}: its processor cannot be loaded")


OUTSIDE = """
import sys, threading
from evoxtral_train.cli import main
from evoxtral_train.stages import doctor
from evoxtral_train.stages.report import Report

def work():
    threading.Thread(target=lambda: [][1]).start()
    return Report("doctor", {"a": object.__new__(Unprintable)})

class Unprintable:
    def __format__(self, form):
        raise RuntimeError("the unforeseen\\nin two lines")

doctor.run = work
main.app()
"""


def test_threads_and_printing_show_no_traceback():
    named = {"cwd": REPO, "capture_output": True, "text": True, "timeout": 120, "check": False}
    done = subprocess.run([sys.executable, "-c", OUTSIDE, "doctor"], **named)
    assert done.returncode == 1
    assert sorted(done.stderr.splitlines()) == [
        "error: IndexError: list index out of range — run `evoxtral --debug …` for the traceback",
        "error: RuntimeError: the unforeseen — run `evoxtral --debug …` for the traceback",
    ]
    done = subprocess.run([sys.executable, "-c", OUTSIDE, "--debug", "doctor"], **named)
    assert done.stderr.count("Traceback") == 2


def test_tracking_that_fails_in_any_words_is_one_line(monkeypatch, tmp_path, capsys):
    import wandb

    from evoxtral_train.config.sections import Section, Tracking

    for message in ("", "two\nlines \ud800\x1b[2J", "x" * 9_000):
        monkeypatch.setattr(wandb, "init", lambda message=message, **_: (_ for _ in ()).throw(RuntimeError(message)))
        with Tracker(Tracking(), "sft", tmp_path, Section()) as tracker:
            tracker.log({"loss": 1.0}, step=1)
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("W&B is off for this run: RuntimeError: ")
        assert len(line) < 300
        assert line.isprintable()
