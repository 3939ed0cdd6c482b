"""wandb's offline files, read without wandb's own code: a log in LevelDB's format of protocol buffers."""

import json
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from wandb.proto import wandb_internal_pb2

_BLOCK, _HEAD = 32_768, 7
_WHOLE, _LAST = 1, 4
_PATIENCE = 30.0  # seconds


class WandbFile:
    """What one run told wandb.

    Attributes:
        config: by name.
        about: name, project, group and job type of the run.
        axes: by the pattern of curves, the metric that they lie over.
        history: rows in the order of logging; nested names are tuples.
        summary: the last value of each.
        files: that belong to it.
        exit_code: of its end; None while it has none.
    """

    def __init__(self, path: Path) -> None:
        self.config: dict[str, Any] = {}
        self.about: dict[str, str] = {}
        self.axes: dict[str, str] = {}
        self.history: list[dict[str | tuple[str, ...], Any]] = []
        self.summary: dict[str | tuple[str, ...], Any] = {}
        self.files: list[str] = []
        self.exit_code: int | None = None
        for content in _records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            self._take(record)

    @classmethod
    def finished(cls, path: Path) -> Self:
        """Returns what is in the file once its run has ended: wandb's own process writes it, and may be late."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            with suppress(AssertionError):  # the end of the file is under way
                if (run := cls(path)).exit_code is not None:
                    return run
            time.sleep(0.1)
        return cls(path)

    def _take(self, record: Any) -> None:
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                self.config |= {one.key: json.loads(one.value_json) for one in run.config.update}
                self.about = {"name": run.display_name, "project": run.project, "group": run.run_group,
                              "job": run.job_type}  # fmt: skip
            case "metric":
                self.axes[record.metric.glob_name] = record.metric.step_metric
            case "history":
                self.history.append({_name(one): json.loads(one.value_json) for one in record.history.item})
            case "summary":
                self.summary |= {_name(one): json.loads(one.value_json) for one in record.summary.update}
            case "files":
                self.files += [one.path for one in record.files.files]
            case "exit":
                self.exit_code = record.exit.exit_code

    def curve(self, metric: str, axis: str) -> list[tuple[float, float]]:
        """Returns the points of a metric: what the rows that hold it have on an axis, and its value."""
        return [(row[axis], row[metric]) for row in self.history if metric in row]


def _name(item: Any) -> str | tuple[str, ...]:
    parts = tuple(item.nested_key) or (item.key,)
    return parts[0] if len(parts) == 1 else parts


def _records(raw: bytes) -> list[bytes]:
    assert raw[:4] == b":W&B"
    place, found, parts = _HEAD, [], b""
    while place + _HEAD <= len(raw):
        if (left := _BLOCK - place % _BLOCK) < _HEAD:  # no room for a head: zeros to the end of the block
            place += left
            continue
        _checksum, length, kind = struct.unpack("<IHB", raw[place : place + _HEAD])
        content = raw[place + _HEAD : place + _HEAD + length]
        assert len(content) == length, "a record is cut off"
        place, parts = place + _HEAD + length, parts + content
        if kind in (_WHOLE, _LAST):
            found.append(parts)
            parts = b""
    return found
