"""The keys of a configuration class as text, from the docstrings of its fields; what `--help` prints."""

from __future__ import annotations

import types
import typing

from pydantic import BaseModel
from pydantic_core import PydanticUndefined


def describe_keys(config_class: type[BaseModel], prefix: str = "") -> list[str]:
    """One or two lines for each key, nested sections in place, those of a list's items as `name[].key`."""
    lines = []
    for name, field in config_class.model_fields.items():
        section = _section(field.annotation)
        is_list = typing.get_origin(field.annotation) is list
        if section is not None and not is_list:
            if field.default is None:
                lines += [f"  {prefix}{name}: these keys (default None)", "      " + " ".join(field.description.split())]
            lines += describe_keys(section, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else f"default {field.default!r}"
        lines.append(f"  {prefix}{name}: {_type_name(field.annotation)} ({default if field.default is not PydanticUndefined else 'required'})")
        if field.description:
            lines.append("      " + " ".join(field.description.split()))
        if section is not None:
            lines += describe_keys(section, f"{prefix}{name}[].")
    return lines


def _section(annotation: object) -> type[BaseModel] | None:
    if typing.get_origin(annotation) is dict:  # its keys are the user's
        return None
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _type_name(annotation: object) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Ellipsis:
        return "…"
    if origin is typing.Annotated:  # a number with bounds
        return _type_name(arguments[0])
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_name(argument) for argument in arguments if argument is not type(None))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(_type_name(argument) for argument in arguments)}]"
    return getattr(annotation, "__name__", str(annotation))
