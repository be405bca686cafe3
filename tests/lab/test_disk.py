"""A lab host's disk."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.lab.simdisk import SimDisk
from sollol_proxy.lab.simspec import SimModel, spec_from_json

NOW = datetime(2026, 6, 1, tzinfo=UTC)
NAMES = ("a", "b", "ns/c:v1")
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("install"), st.sampled_from(NAMES), st.sampled_from(["", "2"])),
        st.tuples(st.just("copy"), st.sampled_from(NAMES), st.sampled_from(NAMES)),
        st.tuples(st.just("delete"), st.sampled_from(NAMES), st.just("")),
    ),
    max_size=30,
)


@given(CHANGES)
def test_disk_holds_the_layers_of_its_models_and_no_others(
    changes: list[tuple[str, str, str]],
) -> None:
    disk = SimDisk([SimModel(name) for name in NAMES])
    disk.add_blob("sha256:upload", 7)
    for kind, name, detail in changes:
        found = disk.find(name)
        if kind == "install":
            disk.install(SimModel(name, digest_salt=detail), NOW)
        elif found is not None and kind == "copy":
            disk.copy(found, detail, NOW)
        elif found is not None:
            disk.delete(found)
    needed = {layer.digest for each in disk.listings.values() for layer in each.layers}
    # What was uploaded stays until something that was made of it goes.
    assert set(disk.blobs) == needed | {"sha256:upload"}
    for listing in disk.listings.values():
        assert sum(layer.size_bytes for layer in listing.layers) == listing.size_bytes
        model = disk.model_of(listing)
        assert disk.remembered(model.name, model.blob) == listing


@given(st.integers(1, 10**12))
def test_layers_add_up_to_the_size_of_the_model(size_bytes: int) -> None:
    disk = SimDisk([SimModel("m", size_bytes)])
    (listing,) = disk.listings.values()
    assert sum(layer.size_bytes for layer in listing.layers) == size_bytes
    assert all(layer.size_bytes > 0 for layer in listing.layers)


def test_digest_differs_by_salt_and_is_the_old_one_without() -> None:
    salted = SimModel("m", digest_salt="x")
    assert salted.digest != SimModel("m").digest
    known = "393a1a672e964359aad69d50077bce6df96cf0494fa35e57a872650f26765251"
    assert SimModel("m").digest == known
    assert SimModel("m").digest == SimModel("M:latest").digest


def test_date_of_a_model_is_the_one_it_names() -> None:
    disk = SimDisk([SimModel("m", modified_at="2026-03-04T05:06:07Z"), SimModel("n")])
    assert disk.listings["m:latest"].modified_at == datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    assert disk.listings["n:latest"].modified_at < datetime(2026, 1, 1, tzinfo=UTC)


def test_listing_keeps_the_spelling_of_its_model() -> None:
    disk = SimDisk([SimModel("Ns/Model:V1")])
    assert [listing.name for listing in disk.listings.values()] == ["Ns/Model:V1"]
    assert disk.find("ns/model:v1") is not None
    assert disk.spelling("NS/MODEL:v1") == "Ns/Model:V1"


def test_specification_with_a_registry_survives_json() -> None:
    text = '{"id": "x", "models": ["a"], "registry": ["b"], "lacks": ["/v1"], "account": "ada"}'
    spec = spec_from_json(text)
    assert (spec.registry, spec.lacks, spec.account) == ((SimModel("b"),), ("/v1",), "ada")
    assert spec_from_json(spec.to_json()) == spec
