"""The manifest of a stored set: what its files are, what its tensors mean, and where all of it comes from.

A manifest is JSON of one schema version, checked in every field on reading. Its ``digest`` covers all its other fields:
a temperature or a learning rate lives here rather than in the tensors, and a flipped digit in it would move a score.
Digests find damage, not lies: who rewrites both is believed.
"""

import json
from dataclasses import fields
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from dd_bench.errors import InvalidSetError
from dd_bench.files import safe_name
from dd_bench.sets import Control, Provenance, digest_json
from dd_bench.targets import LabelKind

SCHEMA: Final = 1
TENSORS: Final = "tensors.safetensors"
CARD: Final = "card.png"
MANIFEST: Final = "manifest.json"
SIZE_LIMIT: Final = 1 << 20  # bytes of a manifest; real ones hold a few thousand
CURE: Final = "restore the set from a copy, or delete its folder and synthesise it again"

_SHA256 = r"^[0-9a-f]{64}$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class FileEntry(_Strict):
    """What a file of the set must be."""

    sha256: str = Field(pattern=_SHA256)
    bytes: int = Field(ge=1)


class Part(_Strict):
    """What the tensors of a payload or of targets are: the kind by name, and its fields that are plain numbers."""

    kind: str
    scalars: dict[str, float] = {}


class ControlEntry(_Strict):
    """``sets.Control`` as JSON."""

    method: str
    preset: str
    labels: LabelKind
    config: dict[str, JsonValue]
    recipe: str
    seeds: tuple[int, ...]


class ProvenanceEntry(_Strict):
    """``sets.Provenance`` as JSON, field by field."""

    method: str
    preset: str
    config: dict[str, JsonValue]
    dataset: str
    fingerprint: str
    ipc: int = Field(ge=0)
    seed: int
    recipe: str
    controls: tuple[ControlEntry, ...]
    parents: tuple[str, ...]
    ddbench: str
    libraries: dict[str, str]
    device: str
    threads: int = Field(ge=0)
    wall_seconds: float = Field(ge=0)
    teacher_seconds: float = Field(ge=0)
    peak_memory_bytes: int = Field(ge=0)

    @field_validator("method", "recipe")
    @classmethod
    def _is_a_plain_name(cls, name: str) -> str:
        return safe_name(name)  # it is, or names, a place in the store

    @field_validator("parents")
    @classmethod
    def _are_plain_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(safe_name(name) for name in names)

    @field_validator("preset", "dataset", "device")
    @classmethod
    def _can_be_shown(cls, text: str) -> str:
        if not text.isprintable() or len(text) > 1000:  # no line of a terminal or a board is torn up by it
            raise ValueError("expected printable characters, at most 1000")
        return text

    def restore(self) -> Provenance:
        """Returns the provenance that was stored, with its sequences in ``config`` as lists."""
        controls = tuple(Control(**dict(control)) for control in self.controls)
        return Provenance(**{**dict(self), "controls": controls})


class Manifest(_Strict):
    """Everything about a stored set but its tensors.

    ``bytes`` of ``TENSORS`` are split by ``ledger``; ``images`` is how many a student sees; ``digest`` is the sha256 of
    all other fields in canonical JSON.
    """

    schema_version: int = Field(ge=SCHEMA, le=SCHEMA)  # Literal[1] would let `true` pass
    files: dict[str, FileEntry]
    ledger: dict[str, int]
    images: int = Field(ge=1)
    payload: Part
    targets: Part
    native_protocol: str
    suggested_lr: float | None = Field(gt=0)
    provenance: ProvenanceEntry
    digest: str = Field(pattern=_SHA256)

    @field_validator("files")
    @classmethod
    def _names_the_files(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        if set(files) != {TENSORS, CARD}:  # a name is never used as a path: "../x" has nowhere to go
            raise ValueError(f"names {sorted(files)!r:.200} instead of {CARD} and {TENSORS}")
        return files


def write_manifest(facts: dict[str, Any], provenance: Provenance) -> bytes:
    """Returns the manifest of ``facts`` (the fields of ``Manifest`` that a set determines) as the bytes of its file.

    Raises:
        InvalidSetError: if something in it is no JSON, is NaN or infinite, or could not be read again.
    """
    value = {"schema_version": SCHEMA, **facts, "provenance": _entry(provenance)}
    try:
        value["digest"] = digest_json(value)
        raw = (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidSetError(f"the provenance cannot be kept as JSON ({error}); use plain finite values") from error
    read_manifest(raw)
    return raw


def read_manifest(raw: bytes) -> Manifest:
    """Returns the manifest in ``raw``, checked.

    Raises:
        InvalidSetError: if it is too large, no JSON, of another schema version, or wrong in any field.
    """
    value = _parse(raw)
    version = value.get("schema_version")
    if isinstance(version, int) and version > SCHEMA:
        raise InvalidSetError(
            f"made by a newer ddbench (schema {version}, this one reads up to {SCHEMA}); upgrade ddbench to read it"
        )
    try:
        manifest = Manifest.model_validate_json(raw)  # not from `value`: only JSON mode is strict and knows tuples
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise InvalidSetError(f"{MANIFEST} is wrong at {place!r:.100} ({first['msg']:.300}); {CURE}") from error
    if digest_json({name: part for name, part in value.items() if name != "digest"}) != manifest.digest:
        raise InvalidSetError(f"{MANIFEST} was changed after it was written (its digest differs); {CURE}")
    return manifest


def _parse(raw: bytes) -> dict[str, Any]:
    """Returns the JSON object in ``raw``; only finite numbers, and no name twice in one object."""
    if len(raw) > SIZE_LIMIT:
        raise InvalidSetError(f"{MANIFEST} has over {SIZE_LIMIT} bytes; expected a few thousand; {CURE}")
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_once_each)
        json.dumps(value, allow_nan=False)  # 1e999 parses as infinity
    except (ValueError, RecursionError) as error:
        raise InvalidSetError(f"{MANIFEST} is no valid JSON ({error!s:.200}); {CURE}") from error
    if not isinstance(value, dict):
        raise InvalidSetError(f"{MANIFEST} is a {type(value).__name__}; expected an object; {CURE}")
    return value


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return dict(pairs)


def _entry(provenance: Provenance) -> dict[str, Any]:
    entry = {part.name: getattr(provenance, part.name) for part in fields(provenance)}
    entry["config"], entry["libraries"] = dict(provenance.config), dict(provenance.libraries)
    entry["controls"] = [
        {part.name: getattr(control, part.name) for part in fields(control)} | {"config": dict(control.config)}
        for control in provenance.controls
    ]
    return entry
