"""Expensive parts of sets, kept under ``home()`` by what determines them, so that sets that share one make it once."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dd_bench.checkpoint import load_tree, peek_tree, save_tree
from dd_bench.errors import InvalidSetError
from dd_bench.files import home, locked
from dd_bench.run import Run
from dd_bench.sets import digest_json

_FILE = re.compile(r"[0-9a-f]{16}\.safetensors")


def remember(kind: str, key: Mapping[str, Any], run: Run, make: Callable[[], Tensor]) -> Tensor:
    """Returns the tensor that ``make`` makes in stages of ``run``, from the cache if it has been made before.

    The seconds of its making count towards ``run`` either way: a set costs what it takes to make, whoever made the
    parts.

    Args:
        kind: what it is, the name of its folder.
        key: JSON of everything that determines it.
        run: the run that works on it, or is spared the work.
        make: makes it, on the CPU.
    """
    path = home() / kind / f"{digest_json(key)[:16]}.safetensors"
    with locked(f"{kind} {path.name}"):
        if not path.exists():
            before = run.seconds
            made = make()
            save_tree(path, {kind: made, "seconds": run.seconds - before})
            return made
    cached: Any = load_tree(path)
    run.seconds += cached["seconds"]
    return cached[kind]  # type: ignore[no-any-return]


def remembered_files() -> Iterator[Path]:
    """Yields every file that ``remember`` has left, whatever its kind; all can be made again.

    They are known by their names and by what they say of themselves. A damaged one says nothing and is not among them.
    """
    for path in sorted(home().glob("*/*.safetensors")):
        if _FILE.fullmatch(path.name) and _kind_in(path) == path.parent.name:
            yield path


def _kind_in(path: Path) -> str | None:
    """Returns what kind of part a file says that it holds, or None if it holds anything else."""
    try:
        tree: Any = peek_tree(path)
        kind, seconds = tree
    except (InvalidSetError, OSError, TypeError, ValueError):
        return None
    return kind if isinstance(kind, str) and seconds == "seconds" else None
