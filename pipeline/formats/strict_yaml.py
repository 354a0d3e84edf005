"""Reads YAML files that people write (recipes, mixtures) strictly: a misspelt or repeated key is an error.

With PyYAML: ruamel.yaml refuses repeated keys by itself, which would save the eight lines of `_Loader`. But it reads
YAML 1.2, in which the `yes` or `off` of a stored recipe is a text, and would be one more dependency of the core.
"""

from __future__ import annotations

from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class StrictModel(BaseModel):
    """A part of such a file: unknown keys are an error, because a misspelt threshold must not be ignored, and numbers
    must be finite. The docstring below a field is its description in the reference."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


Model = TypeVar("Model", bound=StrictModel)


def read_text(path: Path, kind: str) -> str:
    """The text of a file. Raises `UsageError` when it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read the {kind} {path}: {reason}") from error


def parse_mapping(text: str, name: str) -> dict[Any, Any]:
    """The keys and values in a YAML text. Raises `UsageError`, which begins with `name`, for anything else."""
    try:
        document = yaml.load(text, _Loader) or {}  # noqa: S506 (it is a SafeLoader)
    # ValueError: an impossible date, for example. RecursionError: a thousand brackets.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise UsageError(f"{name}: expected keys and values, found {type(document).__name__}")
    return document


def validate(model: type[Model], values: dict[Any, Any], name: str) -> Model:
    """`values` as a model. Raises `UsageError`, which begins with `name`, with a sentence for each problem."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_describe_problem(problem, model) for problem in error.errors())
        raise UsageError(f"{name}: {problems}") from error


class _Loader(yaml.SafeLoader):
    """YAML in which no key comes twice: PyYAML lets the last one win, and a rule would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for (key, _), name in zip(node.value, keys, strict=False):
            if keys.count(name) > 1 and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is there twice", key.start_mark)
        return super().construct_mapping(node, deep)


# What pydantic's types of errors expect, in terms of YAML.
_EXPECTED = {
    "tuple_type": "a list, as in [a, b]",
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "dataclass_type"), "keys and values"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "a text (in quotes, if it looks like a number)",
}


def _describe_problem(error: ErrorDetails, model: type[StrictModel]) -> str:
    """One of pydantic's errors, in a sentence."""
    location = ".".join(map(str, error["loc"])) or "all of it"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        keys: Any = model
        for part in error["loc"][:-1]:
            # A field of a model, or a user's own name in a mapping.
            fields = getattr(keys, "model_fields", {})
            keys = fields[part].annotation if part in fields else get_args(keys)[-1]
            if isinstance(keys, UnionType):
                # An optional field: X | None.
                keys = next(option for option in get_args(keys) if option is not NoneType)
        names = getattr(keys, "__pydantic_fields__", None) or keys.__dataclass_fields__
        return f"{location}: there is no such key{did_you_mean(str(error['loc'][-1]), names)}"
    if error["type"] in _EXPECTED:
        return f"{location}: expected {_EXPECTED[error['type']]}; found {error['input']!r}"
    return f"{location}: {error['msg'].removeprefix('Value error, ').replace('Input should be', 'must be')}"
