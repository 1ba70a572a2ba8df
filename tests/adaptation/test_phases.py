"""Names of phases: read in any case, printed in one way, wrong ones told with the nearest."""

from __future__ import annotations

import pytest

from adaptation.phases import USUAL, Part, parse_phase
from selection.errors import NearkinError


@pytest.mark.parametrize("name", USUAL)
def test_usual_names_are_canonical_in_any_case(name: str) -> None:
    for written in (name, name.lower(), name.upper(), name.replace("+", " + ")):
        assert parse_phase(written).name == name


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("knn-tapt", "kNN-TAPT"),
        ("0150nn-tapt", "150NN-TAPT"),
        ("DAPT+Curated", "DAPT+Curated-TAPT"),
        ("random-TAPT", "RAND-TAPT"),
        ("DSIR:draw=top-tapt", "dsir:draw=top-TAPT"),
        ("mix:knn=0.8,random=0.2-TAPT", "mix:knn=0.8,random=0.2-TAPT"),
        ("domain:source=a+b-TAPT+TAPT", "domain:source=a+b-TAPT+TAPT"),
        ("UNGUARDED-knn-tapt", "unguarded-kNN-TAPT"),
        ("unguarded-dapt+tapt", "unguarded-DAPT+TAPT"),
    ],
)
def test_other_names(name: str, canonical: str) -> None:
    assert parse_phase(name).name == canonical
    assert parse_phase(canonical) == parse_phase(name)


def test_parts_say_what_is_trained_on_and_how() -> None:
    assert parse_phase("none").parts == ()
    first, second = parse_phase("dapt+50nn-tapt").parts
    assert first == Part("DAPT", "domain", "dapt")
    assert second == Part("50NN-TAPT", "selected", "adapt", "knn", 50)
    assert (first.has_task_text, second.has_task_text) == (False, True)
    assert parse_phase("tsds:alpha=0.8-TAPT").parts[0].method == "tsds:alpha=0.8"
    assert len(parse_phase("domain:source=a+b-TAPT+TAPT").parts) == 2
    assert parse_phase("tlm").parts == (Part("TLM", "selected", method="bm25", joint=True),)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("TAPTT", "unknown phase 'TAPTT', did you mean TAPT?"),
        ("DAPT+TATP", "unknown phase 'TATP' in 'DAPT+TATP', did you mean TAPT?"),
        ("drsi-TAPT", "did you mean dsir-TAPT?"),
        ("", "unknown phase ''"),
        ("DAPT+none", "none means no training, so it stands alone"),
        ("0NN-TAPT", "asks for no neighbours"),
        ("dsir:drw=top-TAPT", "no parameter 'drw', did you mean draw?"),
        ("mix:knn=0.8-TAPT", "at least two methods"),
        ("unguarded-TAPT", "TAPT has no guard to leave out"),
        ("unguarded-unguarded-kNN-TAPT", "unguarded-kNN-TAPT has no guard to leave out"),
    ],
)
def test_wrong_names_are_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(NearkinError) as failed:
        parse_phase(name)
    assert sentence in str(failed.value)
    assert "\n" not in str(failed.value)
