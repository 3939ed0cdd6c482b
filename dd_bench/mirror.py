"""An optional mirror of reports on Weights & Biases; no number lives only there, and its failures stop nothing.

Each process is a wandb run of its own; those that work on one set share a group.
"""

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dd_bench.errors import InterruptedRunError

_INIT_SECONDS = 30.0  # that a server may take to answer
_FINISH_SECONDS = 60.0  # that uploading may take at the end; the rest stays on disk for `wandb sync`


class Mirror:
    """One wandb run, a context manager: the run is marked as failed if the block ends with an exception.

    ``mode`` is ``online`` or ``offline``; offline runs land in ``<folder>/wandb``, for ``wandb sync``.
    """

    def __init__(
        self, mode: Literal["online", "offline"], *, folder: Path, name: str, job: str, config: Mapping[str, Any],
        group: str | None = None,
    ) -> None:  # fmt: skip
        self._run: Any = None
        self._stages: set[str] = set()

        def start() -> None:
            import wandb

            folder.mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                project="ddbench", name=name, group=group, job_type=job, config=dict(config), dir=str(folder),
                mode=mode,
                settings=wandb.Settings(
                    silent=True, console="off",  # its copy of stderr would hold each redrawn line
                    init_timeout=_INIT_SECONDS, finish_timeout=_FINISH_SECONDS, finish_timeout_raises=True,
                ),
            )  # fmt: skip

        self._guard(start)

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._attempt(lambda run: run.finish(exit_code=0 if kind is None else 1))
        self._run = None

    def part(self, name: str) -> "MirrorPart":
        """Returns the mirror of one piece of work, whose curves and facts bear its name."""
        return MirrorPart(self, name)

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Mirrors the values of one stage, each as ``stage/name`` over ``stage/step``."""
        stage = _plain(stage)

        def send(run: Any) -> None:
            if stage not in self._stages:  # without it every curve lies over wandb's own count of all calls
                run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
                self._stages.add(stage)
            run.log({f"{stage}/{name}": value for name, value in values.items()} | {f"{stage}/step": step})

        self._attempt(send)

    def log_card(self, path: Path) -> None:
        """Mirrors a set's card."""

        def send(run: Any) -> None:
            import wandb

            run.log({"card": wandb.Image(str(path))})

        self._attempt(send)

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Mirrors final facts: a set's id and bytes, a record's path and scores."""
        self._attempt(lambda run: run.summary.update({_plain(name): value for name, value in values.items()}))

    def _attempt(self, action: Callable[[Any], object]) -> None:
        run = self._run
        if run is not None:
            self._guard(lambda: action(run))

    def _guard(self, action: Callable[[], object]) -> None:
        """Does something with wandb; whatever it trips over, the run it mirrors goes on, and wandb is asked no more."""
        try:
            action()
        except InterruptedRunError:
            raise
        except Exception as error:
            self._run = None
            reason = " ".join(str(error).split()) or type(error).__name__
            warnings.warn(f"wandb failed ({reason:.300}); the run goes on without it", stacklevel=2)
            with suppress(Exception):  # else what is left of it speaks up when the process ends
                import wandb

                wandb.teardown(exit_code=1)


def _plain(name: str) -> str:
    """Returns a name without dots, at which wandb would take it apart: the x-axis of ``…-x0.25/loss`` would be lost."""
    return name.replace(".", "_")


@dataclass(frozen=True)
class MirrorPart:
    """A mirror of one piece of work among several, such as a student: ``name`` stands before all that it tells."""

    mirror: Mirror
    name: str

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Mirrors the values of one stage."""
        self.mirror.log(f"{self.name}/{stage}", step, values)

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Mirrors final facts."""
        self.mirror.summarise({f"{self.name}/{key}": value for key, value in values.items()})
