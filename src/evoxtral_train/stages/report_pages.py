"""Shared by `eval`, `compare` and `probe`: writing the page, and the clips' audio in it."""

from collections.abc import Sequence
from pathlib import Path

from ..data.audio import encode_flac, read_audio
from ..dataset.reader import PackedSplit
from ..errors import RowError
from ..files import write_atomic
from ..reporting.evaluation import page
from ..reporting.page import Section
from ..reporting.results import Evaluation


def write_page(folder: Path, evaluation: Evaluation, more: Sequence[Section] = ()) -> list[Path]:
    """Writes `report.html` and its pictures into `folder`; returns the pictures' paths. `more`: as in `page`."""
    html, pictures = page(evaluation, more)
    for name, png in pictures.items():
        write_atomic(folder / f"{name}.png", png)
    write_atomic(folder / "report.html", html)
    return [folder / f"{name}.png" for name in pictures]


def clip_audio(split: PackedSplit, identity: str) -> bytes | None:
    """The clip as the model hears it, as 16 kHz FLAC; None if its file is gone."""
    try:
        return encode_flac(read_audio(split.audio_of(split.index_of[identity]), float("inf")))
    except (RowError, KeyError):
        return None
