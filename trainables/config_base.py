"""The base of every config, and the declaration of what a search may vary. Free of torch and Ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Config(BaseModel):
    """Base of every config: immutable; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def content(self, always: Collection[str] = ()) -> dict[str, Any]:
        """Return the keys that differ from their defaults, as JSON values.

        Equal configs have equal content in every version: a key added later does not appear while it has its
        default, so digests in older files stay valid. Never change what a default means: rename the key.

        Args:
            always: keys that are included with their default too.
        """
        return self.model_dump(mode="json", include=set(always)) | self.model_dump(
            mode="json", exclude_defaults=True
        )

    def digest(self) -> str:
        """SHA-256 (hex, 16 characters) of `content`."""
        return hash_json(self.content())


def hash_json(value: Any) -> str:
    """SHA-256 (hex, 16 characters) of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def searched(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    log: bool = False,
    choices: tuple[Any, ...] = (),
    **field: Any,
) -> Any:
    """Declare a field of a `MethodConfig` and the range that a search explores by default.

    Args:
        default: the value outside a search, and in a search that fixes the key at its default.
        low: smallest value searched. If `low`, `high` and `choices` are all left out, the key is not searched
            by default.
        high: largest value searched.
        log: search this key on a logarithmic scale, also in ranges that the experiment file gives.
        choices: values searched, in place of a range.
        **field: arguments of pydantic's `Field`: description and bounds.

    Returns:
        A pydantic field, for the body of a `MethodConfig`.

    Example:
        class Margin(MethodConfig):
            margin: float = searched(1.0, 0.1, 10.0, log=True, gt=0.0, description="least distance")

        print(Margin().margin, Margin.model_fields["margin"].json_schema_extra)
    """
    space: Any = {"low": low, "high": high, "log": log, "choices": list(choices)}
    return Field(default, json_schema_extra={"searched": space}, **field)


class MethodConfig(Config):
    """Base of the settings of a distillation method; the keys of a subclass are its search space.

    Every key has a default. `searched` gives a key its range in a search.

    Example:
        class HintonConfig(MethodConfig):
            alpha: float = searched(0.5, 0.1, 0.9, description="weight of the logit term")
            tau: float = searched(4.0, 1.0, 8.0, log=True, description="softmax temperature")

        print(HintonConfig(tau=2.0).content())
    """

    # Values of the keys that read maps of replaced blocks, for a separate student, which has none.
    for_separate: ClassVar[Mapping[str, Any]] = {}

    def check(self, classes: int, batch_size: int) -> None:
        """Refuse settings that cannot work with such data. A search calls it before anything is trained.

        Args:
            classes: of the data.
            batch_size: images a step.

        Raises:
            InputError: what the settings need, what there is, and what to change.
        """

    def unused(self) -> set[str]:
        """Return the keys that have no effect given the other values.

        Configs that differ in these alone are duplicates.
        """
        return set()
