"""Errors that a user can act on.

Every message says what is wrong, where, and how to fix it. The command line prints it on
one line and exits with `exit_code`; `--debug` adds the traceback.
"""


class EvoxtralError(Exception):
    """A stage failed although the call was correct (exit code 1)."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None):
        self.what, self.where, self.fix = what, where, fix
        parts = [f"{where}: {what}" if where else what]
        if fix:
            parts.append(fix)
        super().__init__(" — ".join(parts))


class UsageError(EvoxtralError):
    """Something in the call, the config or the data that the user can fix (exit code 2)."""

    exit_code = 2


class ConfigError(UsageError):
    """A YAML file or a `--set` that does not match the schema."""


class RowError(UsageError):
    """One bad manifest row or clip; the stage rejects the row, reports it and continues."""
