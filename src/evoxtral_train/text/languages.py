"""The languages of clips, as codes of ISO 639-1."""

import re
from functools import cache

import pycountry

from ..errors import RowError


def language_code(value: str) -> str:
    """The code of a language by its own code or name: "de", "de-DE", "deu" and "German" give "de". Raises RowError."""
    code = _codes().get(re.split("[-_]", value.strip())[0].lower())
    if code is None:
        fix = "write its ISO 639-1 code: en, de, fr, vi, zh …"
        raise RowError(f"{value[:40]!r} is not a language with a code of two letters", fix=fix)
    return code


@cache
def _codes() -> dict[str, str]:
    """Every code and name in lower case -> the code of two letters. The other 7,700 languages of ISO 639-3 have none."""
    kinds = ("alpha_2", "alpha_3", "bibliographic", "name")
    known = [language for language in pycountry.languages if hasattr(language, "alpha_2")]
    return {getattr(each, kind).lower(): each.alpha_2 for each in known for kind in kinds if hasattr(each, kind)}
