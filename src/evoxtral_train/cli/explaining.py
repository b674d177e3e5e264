"""Turns any exception into one line that says what to do. Imported only when there is an error."""

import json

from ..errors import EvoxtralError
from ..files import refused

_AROUND = 20  # characters shown on either side of a bad one


def explained(error: BaseException | None) -> tuple[str, int]:
    """(message, exit code). An unexpected error keeps its own message and points to `--debug`."""
    if isinstance(error, EvoxtralError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        refusal = refused(error, "could not be opened", str(error.filename))
        return str(refusal), refusal.exit_code
    if isinstance(error, OSError) and error.errno is not None:
        refusal = refused(error, "the system refused a file or a connection", None)
        return str(refusal), refusal.exit_code
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error):
        return "not enough memory — lower `batch_tokens`, `batch_size` or `processes`, or use a larger machine", 1
    if isinstance(error, RecursionError):
        return "the input is nested too deeply — look for a config or a row with very many brackets", 2
    if isinstance(error, UnicodeDecodeError):
        return f"a file is not UTF-8 text: {_near(error)} — save it as UTF-8", 2
    if isinstance(error, UnicodeEncodeError):
        return f"text cannot be encoded as UTF-8: {_near(error)} — remove the lone surrogate (half a character)", 2
    if isinstance(error, json.JSONDecodeError):
        start = max(error.pos - _AROUND, 0)
        return f"a file is not JSON: {error.msg} near {error.doc[start : error.pos + _AROUND]!r} — was it edited or truncated?", 2
    if isinstance(error, ImportError):
        return f"a package cannot be imported: {error} — reinstall evoxtral with -c constraints.txt", 1
    name, text = type(error).__name__, str(error).strip() or "no message"
    return f"{name}: {text.splitlines()[0]} — run `evoxtral --debug …` for the traceback", 1


def _near(error: UnicodeError) -> str:
    around = error.object[max(error.start - _AROUND, 0) : error.end + _AROUND]
    return f"{error.reason} at {error.start:,}, near {around!r}"
