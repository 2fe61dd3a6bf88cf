"""Configurations as files: YAML to dataclasses, strictly, and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path

from ..errors import Refusal
from .config import MAY_CHANGE, TrainConfig

FOLDER = Path(__file__).parent.parent / "configs"


def shipped() -> dict[str, Path]:
    """The configurations that come with the package: file name -> file."""
    return {path.name: path for path in sorted(FOLDER.glob("*.yaml"))}


def find(name_or_path: str) -> Path:
    """The file itself, or that of a shipped configuration of this name. Raises Refusal when there is none."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    if len(path.parts) == 1:
        for name in (path.name, path.name + ".yaml"):
            if name in shipped():
                return shipped()[name]
    raise Refusal(f"there is no configuration {name_or_path}; give a YAML file or one of those in the package: "
                  f"{', '.join(shipped())}")


def load(name_or_path: str) -> TrainConfig:
    """The configuration in a YAML file, or of a shipped one's name; what it leaves out has its default.

    Raises Refusal, one sentence, where the file is missing or no YAML, or for the first key that is unknown or
    whose value is of the wrong type. Ranges are TrainConfig.check's to judge.
    """
    path = find(name_or_path)
    yaml = _yaml()
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise Refusal(f"configuration {path} cannot be read as YAML ({_first_line(error)})") from None
    return _built(TrainConfig, {} if tree is None else tree, "", path)


def dump(config: TrainConfig) -> str:
    """The whole configuration as YAML, in the order of its fields; `load` of it gives an equal one."""
    return _yaml().safe_dump(_plain(config), sort_keys=False, default_flow_style=None, width=100)


def parsed(text: str) -> dict:
    """The settings in a configuration saved as YAML, as nested dicts."""
    return _yaml().safe_load(text)


def flat(config) -> dict[str, object]:
    """{"section.key": value} of all settings; sequences are tuples."""
    out: dict[str, object] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            out.update({f"{f.name}.{key}": v for key, v in flat(value).items()})
        else:
            out[f.name] = value
    return out


def first_difference(saved: str, config: TrainConfig) -> tuple[str, object, object] | None:
    """The first setting, out of those that matter to what a step computes, in which a configuration differs
    from one saved as YAML: (name, saved value, this value), or None. What the saved one lacks had its default."""
    before = _plain_flat(_plain(TrainConfig())) | _plain_flat(parsed(saved))
    now = _plain_flat(_plain(config))
    for name in [*now, *(name for name in before if name not in now)]:
        if name not in MAY_CHANGE and before.get(name) != now.get(name):
            return name, before.get(name), now.get(name)
    return None


def _yaml():
    try:
        import yaml
    except ImportError:
        raise Refusal("training reads its configuration with PyYAML, which is not installed; "
                      "pip install 'dblr_fast[train]'") from None
    return yaml


def _first_line(error) -> str:
    return " ".join(str(error).split())[:200]


def _plain(value):
    """Dataclasses as dicts, tuples as lists: what YAML knows."""
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _plain_flat(tree: dict, prefix: str = "") -> dict:
    out = {}
    for key, value in tree.items():
        out.update(_plain_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return out


def _built(kind, tree, prefix: str, path: Path):
    """An instance of the dataclass `kind` from a mapping."""
    if not isinstance(tree, dict):
        raise Refusal(f"configuration {path}: {prefix.rstrip('.') or 'the file'} must be a mapping of settings; "
                      f"got {tree!r}")
    known = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in tree.items():
        if key not in known:
            raise Refusal(f"configuration {path}: there is no setting {prefix}{key}; those of this section are "
                          f"{', '.join(known)}")
        values[key] = _value(hints[key], value, f"{prefix}{key}", path)
    return kind(**values)


def _value(hint, value, name: str, path: Path):
    """The value as the annotation has it; raises Refusal where it is of another type."""
    if dataclasses.is_dataclass(hint):
        return _built(hint, value, name + ".", path)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _value(next(i for i in inner if i is not type(None)), value, name, path)
    if value is False and (hint is str or "off" in inner):
        value = "off"  # YAML 1.1 reads off as false
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else inner
        if len(kinds) == len(value):
            return tuple(_value(k, v, f"{name}[{i}]", path) for i, (k, v) in enumerate(zip(kinds, value)))
    if origin is typing.Literal and value in [choice for choice in inner if type(choice) is type(value)]:
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)  # a string too: YAML 1.1 reads 1e-4 as text
        except (TypeError, ValueError):
            pass
    if hint is str and isinstance(value, str):
        return value
    raise Refusal(f"configuration {path}: {name} must be {_wanted(hint)}; got {value!r}")


def _wanted(hint) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple:
        return "a list" if inner[1:] == (...,) else f"a list of {len(inner)} values"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(hint, str(hint))
