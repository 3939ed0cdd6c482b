"""Everything ddbench refuses, under one base: each message says what was found, what was expected and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST = 4000  # characters of a message


class DDBenchError(Exception):
    """A fault in the input or in the surroundings; the command line prints it and exits with 2.

    Whatever a message quotes, it is one line of printable characters, of a length that people read.
    """

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class UnknownNameError(DDBenchError):
    """A name that is not in its list; the message holds the nearest known one and the whole list."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        super().__init__(f"unknown {kind} {name!r}{hint} Known: {', '.join(names) or 'none yet'}")


class ConfigError(DDBenchError):
    """A setting of the wrong type, out of range, or impossible beside the others."""


class DataError(DDBenchError):
    """A data set that is absent, incomplete or malformed."""


class HoldoutError(DDBenchError):
    """A second look at the test split by the same student."""


class InvalidSetError(DDBenchError):
    """A synthetic set (or a checkpoint, or a record) that is damaged, foreign or dangerous; nothing of it is used."""


class BusyError(DDBenchError):
    """Another process holds the lock of the work that was asked for."""


class NonFiniteError(DDBenchError):
    """A quantity became NaN or infinite; the message names it and the step."""


class DivergedError(DDBenchError):
    """An optimisation whose steps lead nowhere but up; the message names it and the setting to lower."""


class InterruptedRunError(DDBenchError):
    """SIGINT or SIGTERM arrived; the same command goes on from what is saved (all, but where it had to be at once)."""

    def __init__(self, signal_number: int, where: str) -> None:
        self.exit_code = 128 + signal_number
        kept = "what was last saved is kept" if where == "at once" else "everything so far is saved"
        super().__init__(f"stopped {where}; {kept}, and the same command goes on from there")


def one_line(message: str) -> str:
    """Returns a message with escapes for what would move a terminal's cursor or colours, and its middle left out."""
    line = "".join(
        char if char.isprintable() else " " if char.isspace() else char.encode("unicode_escape").decode()
        for char in message
    )  # fmt: skip
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST * 3 // 4]} … {line[-_LONGEST // 5 :]}"
