"""Methods by name: nearkin's own, and those that other packages bring through the entry point ``nearkin.selectors``.

``--method`` names a method and sets its parameters: ``dsir``, ``dsir:draw=top``, ``mix:knn=0.8,random=0.2``.
"""

from __future__ import annotations

import dataclasses
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, get_type_hints

from selection.errors import NearkinError, did_you_mean
from selection.selectors import Selector

GROUP = "nearkin.selectors"
OURS = {
    "knn": "knn:KnnSelector",
    "random": "random:RandomSelector",
    "domain": "domain:DomainSelector",
    "curated": "curated:CuratedSelector",
    "dsir": "dsir:DsirSelector",
    "bm25": "bm25:Bm25Selector",
    "tsds": "tsds:TsdsSelector",
    "ot": "ot:OtSelector",
    "cluster": "cluster:ClusterSelector",
    "classifier": "classifier:ClassifierSelector",
    "mix": "mix:MixSelector",
}


def method_names() -> list[str]:
    """All methods there are: nearkin's own first."""
    return [*OURS, *sorted({point.name for point in entry_points(group=GROUP)} - set(OURS))]


def find_selector(method: str) -> Selector:
    """The selector that ``NAME[:PARAMETER=VALUE,...]`` describes; text may hold commas (``curated:file=a,b.jsonl``).

    Raises:
        NearkinError: no such method or parameter, with the nearest name; or a value that is none of its type.
    """
    name, _, settings = method.partition(":")
    made = _class_of(name)
    types = {} if hasattr(made, "from_settings") else get_type_hints(made)
    pairs = [part.partition("=") for part in _parts(settings, types)]
    for key, equals, value in pairs:
        if not key or not equals or not value:
            raise NearkinError(f"--method {method}: write parameters as {name}:NAME=VALUE,NAME=VALUE")
    given = {key.strip(): value.strip() for key, _, value in pairs}
    if len(given) < len(pairs):
        raise NearkinError(f"--method {method}: a parameter is given twice")
    if hasattr(made, "from_settings"):  # a method whose parameters have no fixed names
        return made.from_settings(given)  # type: ignore[no-any-return]
    fields = [f.name for f in dataclasses.fields(made) if f.init] if dataclasses.is_dataclass(made) else []
    values = {}
    for key, value in given.items():
        if key not in fields:
            has = f"it has {', '.join(fields)}" if fields else "it has none"
            raise NearkinError(f"method {name} has no parameter {key!r}{did_you_mean(key, fields)}: {has}")
        values[key] = _read(name, key, value, types[key])
    if missing := [key for key in _required(made) if key not in values]:
        raise NearkinError(f"method {name} needs {name}:{missing[0]}=VALUE")
    return made(**values)  # type: ignore[no-any-return]


def _parts(settings: str, types: dict[str, Any]) -> list[str]:
    """``NAME=VALUE`` each; what has no ``=`` belongs, with its comma, to the value before it, where that is text."""
    parts: list[str] = []
    for part in settings.split(","):
        kind = types.get(parts[-1].partition("=")[0].strip()) if parts else None
        text = kind is str or str in getattr(kind, "__args__", ())
        if part and "=" not in part and part.strip() not in types and text:
            parts[-1] += f",{part}"
        elif part:
            parts.append(part)
    return parts


def fresh(selector: Selector) -> Selector:
    """The same method with the same parameters, and nothing kept from the task it served before."""
    return dataclasses.replace(selector) if dataclasses.is_dataclass(selector) else selector  # type: ignore[type-var]


def _required(made: Any) -> list[str]:
    """Parameters without default."""
    nothing = dataclasses.MISSING
    fields = dataclasses.fields(made) if dataclasses.is_dataclass(made) else ()
    return [f.name for f in fields if f.init and f.default is nothing and f.default_factory is nothing]


def _class_of(name: str) -> Any:
    if name in OURS:
        module, _, attribute = OURS[name].partition(":")
        return getattr(import_module(f"selection.selectors.{module}"), attribute)
    for point in entry_points(group=GROUP):
        if point.name == name:
            try:
                return point.load()
            except (ImportError, AttributeError) as error:
                raise NearkinError(f"method {name} of {point.value} cannot be loaded: {error}") from error
    names = method_names()
    raise NearkinError(f"unknown method {name!r}{did_you_mean(name, names)}: choose one of {', '.join(names)}")


def _read(method: str, key: str, value: str, kind: Any) -> Any:
    """`value` as the type of the field: str, int, float, bool, each also with None; or a Literal's choice."""
    options = getattr(kind, "__args__", ())
    if options and all(isinstance(option, str) for option in options):
        if value not in options:
            raise NearkinError(f"method {method}: {key} is one of {', '.join(options)}, not {value!r}")
        return value
    for plain in options or (kind,):
        if plain is bool and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if plain in (int, float):
            try:
                return plain(value)
            except ValueError:
                continue
        if plain is str:
            return value
    raise NearkinError(f"method {method}: {key} cannot be {value!r}")
