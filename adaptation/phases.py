"""Phases by name: ``DAPT+TAPT``, ``50NN-TAPT``, ``dsir-TAPT`` become parts, each one training of a masked LM.

A phase is parts joined by ``+``; each part goes on from the model of the part before it, and ``none`` has no part.
Names are read in any case and printed in one way. The phases are those of "Don't Stop Pretraining" (Gururangan et al.
2020, sections 3 to 5); any selector's set makes one more, and TLM learns the task along with the masked LM.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from selection.errors import NearkinError, did_you_mean
from selection.selectors.registry import find_selector, method_names

Text = Literal["task", "selected", "curated", "transfer", "domain", "unrelated"]
Schedule = Literal["adapt", "dapt"]

NONE = "none"
TAPT = "-TAPT"
UNGUARDED = "unguarded-"
KNN = re.compile(r"(k|\d+)NN-TAPT", re.IGNORECASE)
USUAL = (
    NONE, "TAPT", "DAPT", "DAPT+TAPT", "kNN-TAPT", "50NN-TAPT", "RAND-TAPT", "Curated-TAPT", "DAPT+Curated-TAPT",
    "Transfer-TAPT", "not-DAPT", "TLM",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One training of a masked LM.

    Attributes:
        name: as it is printed.
        text: what it is trained on: the ``task``'s own text, alone or with passages that were ``selected`` or are
            ``curated``; the text of another task (``transfer``); a ``domain`` or an ``unrelated`` corpus.
        schedule: whose settings it takes: TAPT's (``adapt``) or DAPT's (``dapt``).
        method: the selector, where passages are selected.
        k: neighbours a task example, where the name says so.
        joint: learn the task's labels along with the masked LM (TLM, Yao et al., 2022).
        guarded: whether dev and test texts are kept out of its set; not so in ``unguarded-kNN-TAPT``.
    """

    name: str
    text: Text
    schedule: Schedule = "adapt"
    method: str | None = None
    k: int | None = None
    joint: bool = False
    guarded: bool = True

    @property
    def has_task_text(self) -> bool:
        """Whether the task's own training text is part of what it is trained on."""
        return self.text in ("task", "selected", "curated")


@dataclass(frozen=True)
class Phase:
    """Parts in the order in which they are trained."""

    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        return "+".join(part.name for part in self.parts) or NONE


FIXED = {
    part.name.lower(): part
    for part in (
        Part("TAPT", "task"),
        Part("DAPT", "domain", "dapt"),
        Part("not-DAPT", "unrelated", "dapt"),
        Part("RAND-TAPT", "selected", method="random"),
        Part("Curated-TAPT", "curated"),
        Part("Transfer-TAPT", "transfer"),
        Part("TLM", "selected", method="bm25", joint=True),
    )
}
ALIASES = {"curated": "curated-tapt", "transfer": "transfer-tapt", "random-tapt": "rand-tapt"}


def parse_phase(name: str) -> Phase:
    """The phase that `name` describes.

    Raises:
        NearkinError: a part that is unknown (with the nearest one that is known), or a method's parameter that is.
    """
    words = _split(name)
    if [word.lower() for word in words] == [NONE]:
        return Phase(())
    return Phase(tuple(_part(word, name) for word in words))


def _split(name: str) -> list[str]:
    """Parts of a name; a ``+`` inside a method's parameters (``domain:source=a+b-TAPT``) parts nothing."""
    words: list[str] = []
    for piece in name.split("+"):
        if words and ":" in words[-1] and not words[-1].upper().endswith(TAPT):
            words[-1] += f"+{piece}"
        else:
            words.append(piece)
    return [word.strip() for word in words]


def _part(word: str, phase: str) -> Part:
    if word.lower() == NONE:
        raise NearkinError(f"phase {phase}: none means no training, so it stands alone")
    if word.lower().startswith(UNGUARDED):
        part = _part(word[len(UNGUARDED) :], phase)
        if part.text == "task" or not part.guarded:
            raise NearkinError(f"phase {phase}: {part.name} has no guard to leave out")
        return replace(part, name=UNGUARDED + part.name, guarded=False)
    fixed = FIXED.get(ALIASES.get(word.lower(), word.lower()))
    if fixed is not None:
        return fixed
    if neighbours := KNN.fullmatch(word):
        number = neighbours[1].lower()
        if number == "k":
            return Part("kNN-TAPT", "selected", method="knn")
        if int(number) < 1:
            raise NearkinError(f"phase {phase}: {word} asks for no neighbours, write 50NN-TAPT for fifty")
        return Part(f"{int(number)}NN-TAPT", "selected", method="knn", k=int(number))
    name, colon, settings = word[: -len(TAPT)].partition(":")
    methods = {method.lower(): method for method in method_names()}
    if not word.upper().endswith(TAPT) or name.lower() not in methods:
        raise NearkinError(_unknown(word, phase, list(methods)))
    method = methods[name.lower()] + colon + settings
    find_selector(method)
    return Part(method + TAPT, "selected", method=method)


def _unknown(word: str, phase: str, methods: list[str]) -> str:
    known = [*(name for name in USUAL if "+" not in name), *(f"{method}{TAPT}" for method in methods)]
    meant = did_you_mean(word, known)
    of = "" if word == phase else f" in {phase!r}"
    return (
        f"unknown phase {word!r}{of}{meant}: the phases are {', '.join(USUAL)}, and METHOD-TAPT with a method of "
        f"`nearkin select` ({', '.join(methods)})"
    )
