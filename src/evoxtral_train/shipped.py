"""The files that come with evoxtral: configs, the tag table, the grammar, the tiny bases and a tagger for one.

A clone has them at its top level; a wheel has them inside the package (see pyproject.toml).
"""

from pathlib import Path

_PACKAGE = Path(__file__).parent
_IN_WHEEL = _PACKAGE / "shipped"

TAGS = Path("data/tags.yaml")
GRAMMAR = Path("data/scripts/grammar.yaml")
TINY_BASE = Path("data/tiny-base")
TINY_OFFLINE_BASE = Path("data/tiny-offline-base")
TINY_TAGGER = Path("data/tiny-tagger")

_FILES = (TAGS, GRAMMAR, TINY_BASE, TINY_OFFLINE_BASE, TINY_TAGGER)


def is_checkout() -> bool:
    """Whether this is a clone of the repository, including one installed with `pip install -e`."""
    return not _IN_WHEEL.is_dir()


def root() -> Path:
    """The folder with the shipped `configs/` and `data/`."""
    return _PACKAGE.parents[1] if is_checkout() else _IN_WHEEL


def find(path: Path) -> Path:
    """`path`, relative to the current folder. If it is one of the five above and does not exist there, the shipped one."""
    return root() / path if path in _FILES and not path.exists() else path
