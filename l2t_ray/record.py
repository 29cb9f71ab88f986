"""What all records of a configuration have in common."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1)]


def _no_answer(value: Any) -> Any:
    """YAML reads yes, on and true as a truth value, which pydantic would take for 1."""
    if isinstance(value, bool):
        raise ValueError(f"is a number, not {str(value).lower()}; give the number")
    return value


Positive = Annotated[float, BeforeValidator(_no_answer), Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_no_answer), Field(ge=1)]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def named(default: str) -> BeforeValidator:
    """Lets a variant be written as its bare name, and gives it the default name where it has none."""

    def name_it(value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and "name" not in value:
            return {"name": default, **value}
        return value

    return BeforeValidator(name_it)
