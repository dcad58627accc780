"""YAML files and `--set` overrides -> a typed, frozen configuration.

Precedence: base file < file < --set. Unknown, duplicate and mistyped keys stop with the nearest valid name.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from megagpt.runtime.errors import Foreseen

ConfigClass = TypeVar("ConfigClass", bound=BaseModel)


class ConfigError(Foreseen, ValueError):
    """A configuration that cannot be used; the message is one line: where, value, rule."""


class _StrictLoader(yaml.SafeLoader):
    """YAML with duplicate keys refused and `1e-5` read as a number (YAML 1.1 reads it as text)."""

    def construct_mapping(self, node, deep=False):
        seen = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, str):
                raise ConfigError(f"{self.name}:{key_node.start_mark.line + 1}: key {key!r} is not text")
            # Names are normalised before the comparison: `a-b` and `a_b` are one setting.
            normal = key.replace("-", "_")
            if normal in seen:
                raise ConfigError(f"{self.name}:{key_node.start_mark.line + 1}: duplicate key {key!r}, first given in line {seen[normal]}")
            seen[normal] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d[\d_]*([eE][-+]?\d+)?|\.inf|\.nan)$"),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML file as nested dictionaries.

    Raises:
        ConfigError: missing or unreadable file, malformed YAML, duplicate keys, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: cannot read the configuration ({getattr(error, 'strerror', None) or error}){nearest(path.name, siblings)}") from error
    return _parse(text, str(path))


def _parse(text: str, origin: str) -> dict[str, Any]:
    loader = _StrictLoader(text)
    loader.name = origin
    try:
        data = loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}:{mark.line + 1}" if mark else origin
        raise ConfigError(f"{where}: malformed YAML ({getattr(error, 'problem', error)})") from error
    finally:
        loader.dispose()
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{origin}: expected `key: value` lines, found {type(data).__name__}")
    return data


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def load_data(path: Path) -> dict[str, Any]:
    """A file on top of the base file that its `base:` names; one level of base only."""
    data = read_yaml(path)
    base_name = data.pop("base", None)
    if base_name is None:
        return data
    base = read_yaml(path.parent / base_name)
    if "base" in base:
        raise ConfigError(f"{path.parent / base_name}: a base file may not have a base of its own")
    return _merge(base, data)


def apply_overrides(data: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """`a.b=c` texts on top of the data; the value is read as YAML."""
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator or not all(name.split(".")):
            raise ConfigError(f"--set {override}: expected section.key=value")
        value: Any = _parse(f"value: {text}", f"--set {override}")["value"]
        for key in reversed(name.split(".")):
            value = {key: value}
        data = _merge(data, value)
    return data


def load_config(config_class: type[ConfigClass], path: str | Path, overrides: list[str] | None = None) -> ConfigClass:
    """Read, merge and type-check a configuration.

    Raises:
        ConfigError: one line that names file, field, value and rule.
    """
    data = apply_overrides(load_data(Path(path)), overrides or [])
    return build_config(config_class, data, str(path))


def build_config(config_class: type[ConfigClass], data: dict[str, Any], origin: str) -> ConfigClass:
    """Type-check merged data; `origin` stands in front of messages."""
    try:
        # By way of JSON: lists may become tuples and 1 may become 1.0, but "1" never becomes 1.
        return config_class.model_validate_json(json.dumps(data))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            names = _field_names(config_class, first["loc"][:-1])
            raise ConfigError(f"{origin}: unknown key {where!r}{nearest(str(first['loc'][-1]), names)}") from None
        if first["type"] == "missing":
            raise ConfigError(f"{origin}: {where} is missing") from None
        raise ConfigError(f"{origin}: {where} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
    except TypeError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _field_names(config_class: type[BaseModel], location: tuple) -> list[str]:
    """Valid keys at a place inside the configuration."""
    current: Any = config_class
    for part in location:
        if isinstance(part, int):
            continue
        current = current.model_fields[part].annotation
        while typing.get_origin(current) in (list, typing.Union, types.UnionType):
            current = next(a for a in typing.get_args(current) if a is not type(None))
    return list(current.model_fields)


def nearest(name: str, valid: list[str]) -> str:
    """The end of an error message: what was probably meant, or all there is."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; valid: {', '.join(sorted(valid))}" if valid else ""
