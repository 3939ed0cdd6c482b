"""Settings as JSON values, in a form that outlives new fields.

Configurations are hashed: into the ids of sets, of teachers and of protocols. A dataclass that gains a field would move
all of them, and orphan what is on record, although nothing that was there before has changed. A field declared with
``later`` is left out while it has its default, which is how things were before it came.
"""

from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")
_MARK = "later"


def later(default: T) -> T:
    """Declares a field that came after the first records; ``default`` is what was until then. It must be hashable."""
    return field(default=default, metadata={_MARK: True})


def as_settings(value: Any) -> Any:
    """Returns a dataclass, and all within it, as nested dicts and lists, without later fields at their defaults."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            one.name: as_settings(getattr(value, one.name))
            for one in fields(value)
            if not (one.metadata.get(_MARK) and getattr(value, one.name) == one.default)
        }
    if isinstance(value, Mapping):
        return {name: as_settings(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_settings(part) for part in value]
    return value
