"""`evoxtral data join`: one manifest of several, for a dataset with labelled clips and recordings that have no text."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ...errors import RowError, UsageError
from ...files import open_atomic
from ...reading import why_not_a_file
from ...records import dump_row, iter_jsonl, row_place
from ..report import Report


def run(manifests: list[Path], output: Path) -> Report:
    """Writes `output`, a manifest: every row of every manifest in order, with the path of its audio relative to `output`. Other
    columns are not read: `data check` and `data pack` judge them. Raises UsageError for a row that cannot be read, and for an
    id that two manifests use; then nothing is written."""
    _check(manifests, output)
    counts: Counter[Path] = Counter()
    with open_atomic(output) as file:
        for manifest, row in _rows(manifests):
            counts[manifest] += 1
            file.write(dump_row(row | {"audio": _moved(row["audio"], manifest.parent, output.parent)}).encode("utf-8"))
    facts = {str(manifest): f"{counts[manifest]:,} rows" for manifest in manifests}
    return Report("data join", facts | {"rows": f"{counts.total():,}", "output": output})


def _check(manifests: list[Path], output: Path) -> None:
    if len({path.resolve() for path in manifests}) < max(len(manifests), 2):
        raise UsageError("joins two or more different manifests", where="MANIFEST …", fix="name each once")
    for path in manifests:
        if reason := why_not_a_file(path):
            raise UsageError(reason, where=str(path), fix="make one with: evoxtral data import, or evoxtral data synth")
    if output.exists():
        raise UsageError("exists already", where=str(output), fix="choose another --output, or remove it")


def _rows(manifests: list[Path]) -> Iterator[tuple[Path, dict]]:
    first_places: dict[str, str] = {}
    for manifest in manifests:
        for line, row in iter_jsonl(manifest):
            place = row_place(manifest, line)
            if isinstance(row, RowError):
                raise UsageError(str(row), where=place)
            identity, audio = row.get("id"), row.get("audio")
            if not (isinstance(identity, str) and isinstance(audio, str) and identity and audio):
                raise UsageError("`id` or `audio` is missing, or not text", where=place, fix="every row needs both")
            if identity in first_places:
                what = f"the id {identity!r} is used before, in {first_places[identity]}"
                raise UsageError(what, where=place, fix="rename one, in its manifest")
            first_places[identity] = place
            yield manifest, row


def _moved(audio: str, folder: Path, target: Path) -> str:
    return audio if Path(audio).is_absolute() else os.path.relpath((folder / audio).resolve(), target.resolve())
