"""YAML files that people write (recipes, mixtures), read strictly: what is misspelt or doubled gets a sentence."""

from __future__ import annotations

from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class Strict(BaseModel):
    """A part of such a file: unknown keys are an error, because a misspelt threshold must not be ignored; and numbers
    are numbers, neither infinite nor none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=Strict)


def content(path: Path, what: str) -> str:
    """The text of a file. Raises `UsageError` when it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read the {what} {path}: {why}") from error


def mapping(text: str, name: str) -> dict[Any, Any]:
    """The keys and values in a YAML text. Raises `UsageError`, which begins with `name`, when it is something else."""
    try:
        given = yaml.load(text, _Loader) or {}  # noqa: S506 (it is a SafeLoader)
    # ValueError: something like a date that is none. RecursionError: a thousand brackets.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise UsageError(f"{name}: expected keys and values, found {type(given).__name__}")
    return given


def validated(model: type[Model], given: dict[Any, Any], name: str) -> Model:
    """`given` as a model. Raises `UsageError`, which begins with `name`, with a sentence for each thing wrong."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        told = "; ".join(_sentence(problem, model) for problem in error.errors())
        raise UsageError(f"{name}: {told}") from error


class _Loader(yaml.SafeLoader):
    """YAML in which no key comes twice: PyYAML lets the last one win, and a rule would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for (key, _), name in zip(node.value, keys, strict=False):
            if keys.count(name) > 1 and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is there twice", key.start_mark)
        return super().construct_mapping(node, deep)


# pydantic's types of errors, in the words of those who write YAML.
_EXPECTED = {
    "tuple_type": "a list, as in [a, b]",
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "dataclass_type"), "keys and values"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "a text (in quotes, if it looks like a number)",
}


def _sentence(error: ErrorDetails, model: type[Strict]) -> str:
    """One problem that pydantic found, in a sentence."""
    where = ".".join(map(str, error["loc"])) or "all of it"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        keys: Any = model
        for part in error["loc"][:-1]:
            # A model's field, or a name of somebody's own in a mapping.
            fields = getattr(keys, "model_fields", {})
            keys = fields[part].annotation if part in fields else get_args(keys)[-1]
            if isinstance(keys, UnionType):
                # Something that may be left out: X | None.
                keys = next(one for one in get_args(keys) if one is not NoneType)
        known = getattr(keys, "__pydantic_fields__", None) or keys.__dataclass_fields__
        return f"{where}: there is no such key{did_you_mean(str(error['loc'][-1]), known)}"
    if error["type"] in _EXPECTED:
        return f"{where}: expected {_EXPECTED[error['type']]}; found {error['input']!r}"
    return f"{where}: {error['msg'].removeprefix('Value error, ').replace('Input should be', 'must be')}"
