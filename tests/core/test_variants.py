"""What a host has loaded a model with, and whom that suits."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.types import (
    AttemptResult,
    HostReport,
    InstalledModel,
    Job,
    ResidentModel,
)
from sollol_proxy.core.variants import MAX_KEYS, Variants
from tests.core.builders import MODEL, entry, job, spec

contexts = st.sampled_from([2048, 4096, 8192])
rubbish = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
few = settings(max_examples=30)


def asking(context: int | None = None, *, num_gpu: int | None = None) -> Job:
    """A job that wants its model loaded so."""
    parts = [] if context is None else [f"num_ctx={context}"]
    parts += [] if num_gpu is None else [f"num_gpu={num_gpu}"]
    return job("j", options_key=",".join(parts), num_ctx=context)


def holding(context: int = 0) -> ResidentModel:
    """What a probe shows; 0 = a host that tells no context."""
    return ResidentModel(MODEL, digest="d", size_bytes=1, context_length=context)


asked = st.builds(asking, st.none() | contexts, num_gpu=st.none() | st.just(20))


@few
@given(before=st.lists(asked, max_size=5), wanted=asked, context=st.just(0) | contexts)
def test_runner_suits_the_job_that_it_was_loaded_for(
    before: list[Job], wanted: Job, context: int
) -> None:
    variants = Variants()
    for each in [*before, wanted]:
        variants.loaded(each)
    assert variants.suits(wanted, holding(context))
    assert variants.is_known(MODEL)
    assert variants.last(MODEL) == wanted.options_key


@few
@given(clients=st.lists(contexts, min_size=1, max_size=12))
def test_two_contexts_on_one_host_mean_a_load_whenever_the_client_changes(
    clients: list[int],
) -> None:
    variants, held = Variants(), 0
    for context in clients:
        suits = variants.suits(asking(context), holding(held))
        if held:
            assert suits == (context == held)
        variants.loaded(asking(context))
        held = context
        variants.reported(MODEL, holding(held))


def test_host_needs_a_load_for_each_of_two_clients_that_alternate() -> None:
    host = entry(spec("a", slots=2), MODEL)
    needed = []
    for turn in range(6):
        wanted = replace(asking(4096 * (1 + turn % 2)), id=str(turn))
        needed.append(host.needs_load(wanted))
        host.begin(wanted, float(turn))
        host.first_byte(wanted.id, float(turn))
        assert host.known.variants.last(MODEL) == wanted.options_key
    assert needed == [True] * 6


@few
@given(context=contexts, held=contexts, reports=st.integers(0, 3))
def test_reports_of_the_same_context_change_nothing(context: int, held: int, reports: int) -> None:
    variants = Variants()
    variants.loaded(asking(context))
    variants.reported(MODEL, holding(held))
    for _ in range(reports):
        variants.reported(MODEL, holding(held))
        assert variants.last(MODEL) == f"num_ctx={context}"
        assert variants.suits(asking(context), holding(held))


@few
@given(context=contexts)
def test_job_without_options_suits_any_runner_of_which_nothing_is_known(context: int) -> None:
    assert Variants().suits(asking(), holding(context))
    assert Variants().suits(asking(), holding())


@few
@given(asked_for=contexts, held=contexts)
def test_context_decides_where_the_load_did_not_go_through_the_proxy(
    asked_for: int, held: int
) -> None:
    assert Variants().suits(asking(asked_for), holding(held)) == (asked_for == held)


def test_context_that_options_gave_before_is_expected_of_them_again() -> None:
    variants = Variants()
    # The host has bounded what was asked for by what the model can do.
    variants.loaded(asking(8192))
    variants.reported(MODEL, holding(2048))
    variants.reported(MODEL, None)
    assert variants.suits(asking(8192), holding(2048))
    assert not variants.suits(asking(4096), holding(2048))


@pytest.mark.parametrize(
    "resident", [None, holding(4096)], ids=["gone", "loaded by somebody else with another context"]
)
def test_last_load_is_not_known_any_more_when_a_probe_shows_another(
    resident: ResidentModel | None,
) -> None:
    variants = Variants()
    variants.loaded(asking(8192))
    variants.reported(MODEL, holding(8192))
    variants.reported(MODEL, resident)
    assert not variants.is_known(MODEL)
    assert variants.last(MODEL) == ""


def test_other_options_than_the_context_mean_a_load_whatever_the_context() -> None:
    variants = Variants()
    variants.loaded(asking(4096, num_gpu=20))
    variants.reported(MODEL, holding(4096))
    assert not variants.suits(asking(4096), holding(4096))
    assert not variants.suits(asking(4096, num_gpu=10), holding(4096))
    assert variants.suits(asking(4096, num_gpu=20), holding(4096))


def test_report_of_a_model_never_loaded_here_teaches_nothing() -> None:
    variants = Variants()
    variants.reported(MODEL, holding(4096))
    variants.reported(MODEL, None)
    assert variants.export() == []
    assert not variants.is_known(MODEL)


def test_contexts_kept_are_bounded_and_the_oldest_goes() -> None:
    variants = Variants()
    for context in range(1, MAX_KEYS + 2):
        variants.loaded(asking(context))
        variants.reported(MODEL, holding(context))
    kept = [row[1] for row in variants.export()]
    assert kept == [f"num_ctx={context}" for context in range(2, MAX_KEYS + 2)]


@few
@given(loads=st.lists(st.tuples(asked, contexts), max_size=6), wanted=asked, held=contexts)
def test_contexts_are_the_same_after_json(
    loads: list[tuple[Job, int]], wanted: Job, held: int
) -> None:
    variants = Variants()
    for each, context in loads:
        variants.loaded(each)
        variants.reported(MODEL, holding(context))
    restored = Variants.restored(json.loads(json.dumps(variants.export())))
    assert restored.export() == variants.export()
    variants.reported(MODEL, None)  # what is loaded now is not kept
    assert restored.suits(wanted, holding(held)) == variants.suits(wanted, holding(held))


@few
@given(given_=rubbish | st.lists(st.lists(rubbish, min_size=3, max_size=3), max_size=3))
def test_contexts_restored_from_rubbish_raise_value_error_or_work(given_: object) -> None:
    try:
        variants = Variants.restored(given_)
    except ValueError:
        return
    variants.suits(asking(4096), holding(4096))


def test_probe_within_a_load_teaches_nothing_of_the_new_variant() -> None:
    """The runner that a probe shows while a load goes on may be the one that is about to go."""
    host = entry(spec("h"))

    def probe(context: int, now: float) -> None:
        resident = ResidentModel(MODEL, digest="d", size_bytes=1, context_length=context)
        host.report(
            HostReport(
                "h",
                ok=True,
                installed={MODEL: InstalledModel(MODEL, "d")},
                resident={MODEL: resident},
            ),
            now,
        )

    def asks(id_: str, context: int) -> Job:
        return replace(asking(context), id=id_)

    probe(4096, 0.0)
    host.begin(asks("a", 4096), 1.0)
    host.first_byte("a", 2.0)
    host.end("a", AttemptResult.COMPLETED, None, "", 3.0)
    probe(4096, 4.0)
    host.begin(asks("b", 8192), 5.0)
    probe(4096, 6.0)
    host.first_byte("b", 7.0)
    probe(8192, 8.0)
    host.end("b", AttemptResult.COMPLETED, None, "", 9.0)
    assert not host.needs_load(asks("c", 8192))
    assert host.needs_load(asks("d", 4096))
