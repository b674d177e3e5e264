"""`evoxtral data check`: everything that packing would reject, found before any time is spent."""

from ..config.schema import PackConfig
from ..data.clock import Clock
from ..data.manifest import read_manifest
from ..data.packing import prepare_row
from ..data.processor import load_processor, resolve_base
from ..errors import RowError
from ..progress import track
from ..text.tags import find_tags
from .report import Report


def run(config: PackConfig) -> Report:
    """Reads every row and every clip as packing does, writes nothing."""
    rows, rejected = read_manifest(config.manifest, tuple(config.tags))
    processor = load_processor(resolve_base(config.base, config.revision, weights=False))
    clock = Clock.of(processor)
    problems = [(each.line, each.id, each.reason) for each in rejected]
    seconds, tags, untagged, good = 0.0, 0, 0, 0
    for row in track(rows, "checking", len(rows), "clips"):
        try:
            columns = prepare_row(row, config, processor, clock).columns
        except RowError as error:
            problems.append((row.line, row.id, str(error)))
            continue
        found = len(find_tags(row.text))
        seconds, tags, untagged, good = seconds + columns["duration_s"], tags + found, untagged + (found == 0), good + 1
    lines = [f"{config.manifest}:{line}: {identity or '(no id)'}: {reason}" for line, identity, reason in sorted(problems)]
    facts = {
        "rows": f"{good + len(problems)} = {good} good + {len(problems)} rejected",
        "hours of audio": f"{seconds / 3600:.2f}",
        "mean length": f"{seconds / good:.1f} s" if good else "—",
        "tags per clip": f"{tags / good:.2f}" if good else "—",
        "without tags": f"{untagged / good:.0%}" if good else "—",
    }
    return Report("data check", facts, table="\n".join(lines), failed=bool(problems))
