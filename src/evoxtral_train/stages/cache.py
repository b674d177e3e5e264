"""`evoxtral cache`: list and remove the audio caches in some folders."""

from collections.abc import Callable
from pathlib import Path

from ..errors import UsageError
from ..modeling.cache_files import CacheFiles, find_caches
from ..reporting.tables import aligned_table
from .report import Report, gigabytes


def listing(paths: list[Path]) -> Report:
    """A row per cache: its dataset and split; the base, dtype and device that it was made for; its size; its state."""
    caches = _find(paths)
    return Report("cache list", _facts(caches), table=_table(caches))


def remove(paths: list[Path], every: bool, confirmed: Callable[[str], bool]) -> Report:
    """Removes the invalid caches, or with `every` all of them; stages rebuild them when needed. `confirmed` is asked first. Only
    the caches' own files are removed."""
    caches = [cache for cache in _find(paths) if every or cache.fault()]
    if not caches:
        return Report("cache remove", {"removed": "nothing: all caches here are valid; --all removes valid ones too"})
    facts, table = _facts(caches), _table(caches)
    if not confirmed(f"{table}\nremove {facts['caches']}, {facts['size']}?"):
        return Report("cache remove", {"removed": "nothing"})
    for cache in caches:
        cache.remove()
    return Report("cache remove", {"removed": facts["caches"], "freed": facts["size"]})


def _find(paths: list[Path]) -> list[CacheFiles]:
    for path in paths:
        if not path.is_dir():
            raise UsageError("no such folder", where=str(path), fix="name a packed dataset, or a folder that contains some")
    return list(dict.fromkeys(cache for path in paths for cache in find_caches(path.resolve())))


def _facts(caches: list[CacheFiles]) -> dict:
    return {"caches": len(caches), "size": gigabytes(sum(cache.size_bytes() for cache in caches))}


def _table(caches: list[CacheFiles]) -> str:
    if not caches:
        return ""
    rows = []
    for cache in caches:
        base, dtype, device = cache.folder.name.split("-", 2)
        rows.append(
            [str(cache.dataset), cache.split, base, dtype, device, gigabytes(cache.size_bytes()), cache.fault() or "valid"]
        )
    return aligned_table(["dataset", "split", "base", "dtype", "device", "size", "state"], rows)
