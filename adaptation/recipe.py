"""Recipes: what `nearkin run` is to do, from a TOML file, from the command line, or from both.

The command line wins over the file, its tables too. Paths in a file are relative to it. Settings start from a preset,
then come the tables ``[adapt]``, ``[dapt]`` and ``[finetune]``, then those of one phase, ``[phase."NAME".adapt]``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from adaptation.phases import Part, Phase, parse_phase
from adaptation.settings import SEEDS, AdaptSettings, FinetuneSettings
from selection.errors import InputError, NearkinError, did_you_mean, explain_os_error
from selection.filling import Budget
from selection.gate import NEAR

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]

Tables = Mapping[str, Mapping[str, Any]]

_QUICK = {"max_steps": 600, "batch_size": 32, "learning_rate": 3e-4, "max_tokens": 128}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # "Don't Stop Pretraining", appendix tables 13 and 14; what is not named here is the settings' own default.
    "paper": {
        "adapt": {},
        "dapt": {"max_steps": 12_500, "batch_size": 2048, "learning_rate": 5e-4},
        "finetune": {},
        "budget": {},
    },
    # For two CPU cores: as many steps and as many tokens of passages for every phase, so that phases compare.
    "quick": {
        "adapt": _QUICK,
        "dapt": {**_QUICK, "held_out": 0.01},
        "finetune": {"learning_rate": 1e-4, "epochs": 8, "batch_size": 16, "max_tokens": 128, "seeds": 3},
        "budget": {"tokens": 300_000},
    },
}

USUAL_K = 50
SETTINGS = {"adapt": AdaptSettings, "dapt": AdaptSettings, "finetune": FinetuneSettings}
PATHS = {"task", "tasks", "store", "out", "curated", "transfer"}
NAMES = {"model", "domain", "unrelated"}  # of something known elsewhere; or paths
KEYS: dict[str, Any] = {
    "model": str, "task": str | list[str], "tasks": list[str], "store": str, "out": str, "phases": str | list[str],
    "preset": str, "seeds": int, "seed": int, "k": int, "tokens": int, "docs": int, "domain": str, "unrelated": str,
    "curated": str, "transfer": str, "encoder": str, "near": str,
}  # fmt: skip
OVERRULED = (("adapt", "seed"), ("dapt", "seed"), ("finetune", "seeds"))
"""Settings that are options of `nearkin run` too: their tables and keys."""
TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list of texts"}


@dataclass(frozen=True)
class Recipe:
    """Phases for tasks, and how each is selected for, trained and finetuned.

    Attributes:
        model: what every phase starts from.
        tasks: folders with labelled train, dev and test .jsonl.
        out: folder for the steps' results and ``results.json``.
        phases: in the order in which they are run.
        store: where passages come from; phases of the task's own text need none.
        preset: one of `PRESETS`.
        seed: of selection and masked-LM training; finetuning has seeds 0 to n - 1.
        k: passages a task example, for phases whose name has no number; None is `USUAL_K` where nothing else limits.
        tokens, docs: a budget for every set; where a set has `k` too, the limit that is reached first ends it.
        domain, unrelated: what DAPT and not-DAPT train on: a corpus of the store, or a path.
        curated: file of Curated-TAPT's passages.
        transfer: task of Transfer-TAPT.
        encoder: which of the store's encoders, where it has several.
        near: what else than equal texts is kept out of sets, see `selection.augmentation.select`.
        tables: settings by ``adapt``, ``dapt``, ``finetune``, over the preset's.
        by_phase: the same for one phase, by its name.
        folder: what a path in a phase's name starts from (``curated:file=mine.jsonl-TAPT``).
    """

    model: str
    tasks: tuple[Path, ...]
    out: Path
    phases: tuple[Phase, ...]
    store: Path | None = None
    preset: str = "paper"
    seed: int = 0
    k: int | None = None
    tokens: int | None = None
    docs: int | None = None
    domain: str | None = None
    unrelated: str | None = None
    curated: str | None = None
    transfer: str | None = None
    encoder: str | None = None
    near: str = "ngrams"
    tables: Tables = field(default_factory=dict)
    by_phase: Mapping[str, Tables] = field(default_factory=dict)
    folder: Path = Path()

    def adapting(self, phase: Phase, schedule: str) -> AdaptSettings:
        """Settings of a part of `phase` with the schedule ``adapt`` or ``dapt``."""
        return AdaptSettings(**{"seed": self.seed, **self._settings(phase, schedule)})

    def finetuning(self, phase: Phase) -> FinetuneSettings:
        """Settings of the finetuning that follows `phase`."""
        return FinetuneSettings(**self._settings(phase, "finetune"))

    def budget(self, part: Part) -> Budget:
        """How much is selected for a part; what the user brought and whole domains are taken as they are."""
        if part.text != "selected":
            return Budget(everything=True)
        limited = self.tokens is not None or self.docs is not None
        return Budget(k=part.k or self.k or (None if limited else USUAL_K), tokens=self.tokens, docs=self.docs)

    def _settings(self, phase: Phase, table: str) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        layers = (
            PRESETS[self.preset][table],
            self.tables.get(table, {}),
            self.by_phase.get(phase.name, {}).get(table, {}),
        )
        for layer in layers:
            if "epochs" in layer and "max_steps" not in layer:
                merged.pop("max_steps", None)  # who asks for epochs does not want the steps of a layer below
            merged |= layer
        return merged


def read_recipe(
    path: Path | str | None, options: Mapping[str, Any] | None = None, usual: Mapping[str, Any] | None = None
) -> Recipe:
    """A recipe from a TOML file, from options, or from both, options first.

    Args:
        path: the file; None where the options say everything.
        options: values by the same keys as in the file; None is not given. Paths are relative to the current folder.
        usual: likewise, where neither says anything.

    Raises:
        InputError: the file cannot be read or is not TOML.
        NearkinError: a key that is unknown (with the nearest one), a value that is wrong, something missing.
    """
    given = {key: value for key, value in (options or {}).items() if value is not None}
    source = str(path) if path is not None else "the command line"
    values: dict[str, Any] = {} if path is None else _read_toml(Path(path))
    tables = {name: values.pop(name) for name in (*SETTINGS, "phase") if name in values}
    _check(values, KEYS, source, [*KEYS, *SETTINGS, "phase"])
    _check(given, KEYS, "the command line", KEYS)
    base = Path() if path is None else Path(path).parent
    values = {**(usual or {}), **{key: _located(key, value, base) for key, value in values.items()}}
    given = {key: _located(key, value, Path()) for key, value in given.items()}
    for one, other in (("task", "tasks"), ("tasks", "task")):
        if one in given:
            values.pop(other, None)
    if given.keys() & {"k", "tokens", "docs"}:
        values = {key: value for key, value in values.items() if key not in ("k", "tokens", "docs")}
    recipe = _recipe({**values, **given}, tables, source)
    recipe = replace(recipe, folder=base if "phases" in values and "phases" not in given else Path())
    return _overruled(recipe, [pair for pair in OVERRULED if pair[1] in given])


def _recipe(values: dict[str, Any], tables: dict[str, Any], source: str) -> Recipe:
    tasks = _listed(values.pop("task", [])) + _listed(values.pop("tasks", []))
    phases = _listed(values.pop("phases", []))
    preset, seeds = values.setdefault("preset", "paper"), values.pop("seeds", None)
    if preset not in PRESETS:
        raise NearkinError(f"{source}: unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    for key, value, what in (
        ("model", values.get("model"), "the model that every phase starts from"), ("task", tasks, "a task folder"),
        ("out", values.get("out"), "a folder for results"), ("phases", phases, "phases, such as none TAPT kNN-TAPT"),
    ):  # fmt: skip
        if not value:
            raise NearkinError(f"{source}: no {key} is named: give {what}, as {key} in the recipe or as --{key}")
    for key in ("k", "tokens", "docs"):
        if values.get(key, 1) < 1:
            raise NearkinError(f"{source}: {key} must be at least 1, not {values[key]}")
    if not 0 <= values.get("seed", 0) < SEEDS:
        raise NearkinError(f"{source}: seed must lie between 0 and {SEEDS - 1}, not {values['seed']}")
    if values.get("near", "ngrams") not in NEAR:
        raise NearkinError(f"{source}: near is one of {', '.join(NEAR)}, not {values['near']!r}")
    if not values.keys() & {"k", "tokens", "docs"}:
        values |= PRESETS[preset]["budget"]
    general, by_phase = _read_tables(tables, source)
    if seeds is not None:
        general["finetune"] = {**general.get("finetune", {}), "seeds": seeds}
    recipe = Recipe(
        tasks=tuple(Path(task) for task in dict.fromkeys(tasks)),
        out=Path(values.pop("out")),
        phases=tuple({phase.name: phase for phase in map(parse_phase, phases)}.values()),
        store=Path(values.pop("store")) if "store" in values else None,
        tables=general,
        by_phase=by_phase,
        **values,
    )
    _try_settings(recipe, source)
    return recipe


def _overruled(recipe: Recipe, given: Sequence[tuple[str, str]]) -> Recipe:
    """The recipe without what its tables, phases' own too, say of settings that were given as options.

    Args:
        given: table and key of each.
    """

    def without(tables: Tables, keys: Sequence[tuple[str, str]]) -> Tables:
        return {
            name: {key: value for key, value in table.items() if (name, key) not in keys}
            for name, table in tables.items()
        }

    # The general seeds are those of the option already.
    tables = without(recipe.tables, [pair for pair in given if pair[1] != "seeds"])
    return replace(recipe, tables=tables, by_phase={name: without(own, given) for name, own in recipe.by_phase.items()})


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"recipe {path} does not exist") from None
    except OSError as error:
        raise explain_os_error(error, f"reading recipe {path}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"recipe {path} is not UTF-8 text: write it again as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {path} is not TOML: {str(error)[:1].lower()}{str(error)[1:]}") from error


def _read_tables(tables: dict[str, Any], source: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(settings tables, the same by phase name), every key and type checked."""
    by_phase = tables.pop("phase", {})
    if not isinstance(by_phase, dict):
        raise NearkinError(f'{source}: phase is a table a phase, as [phase."DAPT+TAPT".adapt]')
    _check_tables(tables, source, "")
    read = {}
    for name, inner in by_phase.items():
        try:
            canonical = parse_phase(name).name
        except NearkinError as error:
            raise NearkinError(f'{source}: [phase."{name}"]: {error}') from error
        if not isinstance(inner, dict):
            raise NearkinError(f'{source}: [phase."{name}"] is a table with [adapt], [dapt] or [finetune] in it')
        if unknown := [key for key in inner if key not in SETTINGS]:
            raise NearkinError(
                f'{source}: unknown table {unknown[0]!r} in [phase."{name}"]{did_you_mean(unknown[0], SETTINGS)}: '
                f"it has {', '.join(SETTINGS)}"
            )
        _check_tables(inner, source, f'phase."{name}".')
        read[canonical] = inner
    return tables, read


def _check_tables(tables: dict[str, Any], source: str, prefix: str) -> None:
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise NearkinError(f"{source}: {prefix}{name} is a table of settings: write it as [{prefix}{name}]")
        made = SETTINGS[name]
        types = get_type_hints(made)
        known = {f.name: types[f.name] for f in fields(made)}  # type: ignore[arg-type]
        _check(table, known, f"{source}: [{prefix}{name}]", known)


def _check(values: Mapping[str, Any], known: Mapping[str, Any], source: str, names: Iterable[str]) -> None:
    for key, value in values.items():
        if key not in known:
            raise NearkinError(f"{source}: unknown key {key!r}{did_you_mean(key, names)}: it has {', '.join(names)}")
        kinds = _kinds(known[key])
        if not any(_is(value, kind) for kind in kinds):
            wanted = " or ".join(TYPES[kind] for kind in kinds)
            raise NearkinError(f"{source}: {key} must be {wanted}, not {value!r}")


def _kinds(hint: Any) -> list[type]:
    """The plain types that a type hint allows; None, which TOML has not, is left out."""
    if get_origin(hint) is Literal:
        return [str]
    if get_origin(hint) is list:
        return [list]
    return [kind for part in get_args(hint) for kind in _kinds(part)] or ([] if hint is type(None) else [hint])


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):  # Python takes true for 1
        return kind is bool
    if kind is list:
        return isinstance(value, (list, tuple)) and all(isinstance(item, (str, Path)) for item in value)
    if kind is str:
        return isinstance(value, (str, Path))
    return isinstance(value, (int, float) if kind is float else kind)


def _listed(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else [str(value)]


def _located(key: str, value: Any, base: Path) -> Any:
    """A path relative to `base`; of what may be a name, a path where it has a slash or is there."""
    if isinstance(value, list):
        return [_located(key, item, base) for item in value]
    if key not in PATHS | NAMES:
        return value
    path = base / Path(value).expanduser()
    return str(path) if key in PATHS or _is_path(key, str(value), path) else value


def _is_path(key: str, value: str, path: Path) -> bool:
    if key == "model":  # owner/model is a name too
        return path.is_dir()
    return "/" in value or path.is_file()


def _try_settings(recipe: Recipe, source: str) -> None:
    """Makes every phase's settings once, so that a wrong value is told before anything runs."""
    for phase in recipe.phases:
        try:
            recipe.finetuning(phase)
            for part in phase.parts:
                recipe.adapting(phase, part.schedule)
        except NearkinError as error:
            raise NearkinError(f"{source}: phase {phase.name}: {error}") from error
