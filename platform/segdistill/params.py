"""Knobs from a file into the frozen dataclass that says which there are: strictly, naming the place."""

import json
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from segdistill.files import SegdistillError

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]

Knobs = TypeVar("Knobs")

_SAID = {"missing": "is missing", "unexpected_keyword_argument": "is no knob"}


def build(kind: type[Knobs], values: Any, source: object, *at: str) -> Knobs:
    """``values`` as a ``kind``: all fields without a default, nothing else, of their types and ranges.

    Args:
        kind: a frozen dataclass, of plain values and other such classes. What its ``__post_init__`` says
            in a ValueError is told with the place, too.
        values: as read from YAML or JSON.
        source: the file.
        at: the keys that lead to ``values`` in it.

    Raises:
        SegdistillError: it isn't one. The message names the file and the dotted keys that are wrong.
    """
    try:
        text = json.dumps({"knobs": values}, default=str)
        knobs: Knobs = _model(kind).model_validate_json(text).knobs  # type: ignore[arg-type, attr-defined]
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, (*at, *one['loc'][1:]))) or 'it'} {_say(one)}" for one in error.errors()
        )
        raise SegdistillError(f"{source}: {wrong}.") from error
    return knobs


@cache
def _model(kind: type) -> type[BaseModel]:
    strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)  # of the classes within, too
    return create_model("Knobs", __config__=strict, knobs=(kind, ...))


def _say(error: Any) -> str:
    if error["type"] in _SAID:
        return _SAID[error["type"]]
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"is {json.dumps(error['input'])}; it {error['msg'].removeprefix('Input ')}"
