"""One calm line for work that takes time: step, loss, rate, elapsed, remaining.

On a terminal the line moves in place and a finished stage leaves one line behind; elsewhere (CI, a log file) there is
one line a minute, and one at the end.
"""

import sys
import time
from collections import deque
from collections.abc import Mapping

from rich.console import Console
from rich.live import Live
from rich.text import Text

_QUIET_SECONDS = 2.0  # a stage shorter than this says nothing
_LOG_SECONDS = 60.0
_RATE_SECONDS = 60.0


class Progress:
    """The progress line of one stage; a context manager.

    ``earlier_seconds`` is what former processes spent on the same stage before step ``first``: elapsed time counts
    them, the rate and the ETA do not, so both are right just after a restart. They are those of the last minute, or of
    the last step if that took longer, so that a slow beginning is soon forgotten. The time of day is never asked.
    """

    def __init__(self, label: str, total: int, *, first: int = 0, earlier_seconds: float = 0.0) -> None:
        self.label, self.total, self.first, self.earlier_seconds = label, total, first, earlier_seconds
        self._console = Console(file=sys.stderr, highlight=False)
        self._live: Live | None = None
        self._started = self._shown = time.monotonic()
        self._step = first
        self._marks = deque([(self._started, first)])  # when which step was done, a second or more apart
        self._values: Mapping[str, float] = {}

    def __enter__(self) -> "Progress":
        self._started = self._shown = time.monotonic()
        self._marks = deque([(self._started, self.first)])
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if error[0] is None and time.monotonic() - self._started > _QUIET_SECONDS:
            self._console.print(self._line(), soft_wrap=True)

    @property
    def seconds(self) -> float:
        """Wall seconds spent on the stage by this process and the ones before it."""
        return self.earlier_seconds + time.monotonic() - self._started

    def update(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Shows that ``step`` steps are done, with the latest known ``values``; cheap enough for every step."""
        self._step = step
        self._values = values or self._values
        now = time.monotonic()
        if now - self._marks[-1][0] >= 1:
            self._marks.append((now, step))
            while now - self._marks[1][0] >= _RATE_SECONDS and step > self._marks[1][1]:
                self._marks.popleft()
        if self._console.is_terminal:
            if now - self._shown >= 0.2:
                self._shown = now
                self._refresh()
        elif now - self._shown >= _LOG_SECONDS and step < self.total:
            self._shown = now
            self._console.print(self._line(), soft_wrap=True)

    def _refresh(self) -> None:
        if self._live is None:
            self._live = Live(console=self._console, transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(self._line(), refresh=True)

    def _line(self) -> Text:
        since, step = self._marks[0] if self._step < self.total else (self._started, self.first)  # at the end: of all
        spent = time.monotonic() - since
        rate = (self._step - step) / spent if spent > 0 else 0.0
        parts = [f"{self.label}  {self._step}/{self.total}"]
        parts += [f"{name} {value:.4g}" for name, value in self._values.items()]
        parts += [f"{rate:.1f}/s" if rate >= 1 or rate == 0 else f"{1 / rate:.1f} s each", clock(self.seconds)]
        if rate > 0 and self._step < self.total:
            parts.append(f"{clock((self.total - self._step) / rate)} left")
        return Text("  ".join(parts), no_wrap=True, overflow="ellipsis")  # one line on a narrow terminal too


def clock(seconds: float) -> str:
    """Returns a duration for people, as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
