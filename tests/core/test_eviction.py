"""What has to go for a load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.eviction import evicted
from sollol_proxy.core.memory import HostMemory, Memory
from sollol_proxy.core.room import Room, footprint_bytes
from sollol_proxy.core.types import HostSpec, InstalledModel, ResidentModel
from tests.core.builders import spec

NAMES = "abcdef"
GB = 10**9
few = settings(max_examples=30)


@dataclass
class Host:
    """Of a host, what a guess needs."""

    spec: HostSpec
    installed: Mapping[str, InstalledModel] = field(default_factory=dict)
    resident: Mapping[str, ResidentModel] = field(default_factory=dict)
    known: HostMemory = field(default_factory=HostMemory)


@dataclass(frozen=True)
class Situation:
    """A load that is about to begin."""

    host: Host
    memory: Memory
    held: tuple[str, ...]
    model: str
    busy: Mapping[str, float]

    def go(self, held: tuple[str, ...] | None = None) -> tuple[set[str], tuple[str, ...], bool]:
        names, gone, is_sure = evicted(
            self.host, self.memory, self.held if held is None else held, self.model, self.busy
        )
        assert len(set(names)) == len(names)
        return set(names), gone, is_sure

    def total(self, names: set[str]) -> int:
        """As the host tells, where it has told; all sizes are known here."""
        copies = self.host.installed
        return sum(
            self.host.resident[name].size_bytes
            if name in self.host.resident
            else footprint_bytes(copies[name].size_bytes)
            for name in names
        )

    def has_room_for(self, names: set[str]) -> bool:
        bounds = self.host.spec
        return len(names) <= bounds.max_models and self.host.known.room.holds(
            self.total(names), bounds.memory_bytes
        )


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    sizes = {name: draw(st.integers(1, 20)) * GB for name in NAMES}
    held = tuple(draw(st.lists(st.sampled_from(NAMES), unique=True)))
    fits = draw(st.integers(0, 40)) * GB
    bursts = draw(st.none() | st.integers(1, 40).map(lambda more: fits + more * GB))
    memory = Memory()
    for gone, stayed in draw(
        st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=5)
    ):
        memory.victims.learn([gone], [stayed])
    return Situation(
        Host(
            spec(
                "a",
                max_models=draw(st.integers(1, 4)),
                memory_bytes=draw(st.none() | st.integers(0, 60).map(lambda size: size * GB)),
            ),
            {name: InstalledModel(name, size_bytes=size) for name, size in sizes.items()},
            {name: ResidentModel(name, digest="d", size_bytes=sizes[name]) for name in held},
            HostMemory(room=Room(fits, bursts)),
        ),
        memory,
        held,
        draw(st.sampled_from(NAMES)),
        {name: draw(st.floats(0.1, 9.0)) for name in held if draw(st.booleans())},
    )


@few
@given(at=situations())
def test_models_stay_or_go_and_the_loaded_one_stays(at: Situation) -> None:
    names, gone, _ = at.go()
    assert names | set(gone) == {*at.held, at.model}
    assert not names & set(gone)
    assert at.model in names
    assert len(set(gone)) == len(gone)


@few
@given(at=situations())
def test_what_stays_has_room_or_is_the_loaded_model_alone(at: Situation) -> None:
    names, _, _ = at.go()
    assert names == {at.model} or at.has_room_for(names)


@few
@given(at=situations())
def test_nothing_goes_beyond_what_the_load_needs(at: Situation) -> None:
    names, gone, _ = at.go()
    if gone:
        assert not at.has_room_for(names | {gone[-1]})


@few
@given(at=situations())
def test_busy_model_goes_only_after_all_idle_ones(at: Situation) -> None:
    _, gone, _ = at.go()
    idle = {name for name in at.held if name not in at.busy and name != at.model}
    if any(name in at.busy for name in gone):
        assert idle <= set(gone)


@few
@given(at=situations())
def test_less_busy_go_first_and_then_those_seen_to_go_first(at: Situation) -> None:
    _, gone, _ = at.go()
    keys = [(at.busy.get(name, 0.0), -at.memory.victims.rank(name), name) for name in gone]
    assert keys == sorted(keys)


@few
@given(at=situations(), data=st.data())
def test_order_of_what_is_held_does_not_matter(at: Situation, data: st.DataObject) -> None:
    shuffled = tuple(data.draw(st.permutations(at.held)))
    assert at.go(shuffled) == at.go()


@few
@given(at=situations())
def test_load_is_sure_to_fit_only_where_that_is_known(at: Situation) -> None:
    names, _, is_sure = at.go()
    known = at.host.known.room
    total = at.total(names)
    if is_sure and len(names) > 1:
        assert total <= known.fits_bytes or total <= (at.host.spec.memory_bytes or 0)
        assert known.bursts_bytes is None or total < known.bursts_bytes


@few
@given(at=situations())
def test_load_again_of_the_only_model_moves_nothing(at: Situation) -> None:
    assert at.go((at.model,)) == ({at.model}, (), True)
    assert at.go(()) == ({at.model}, (), True)


def test_models_of_unknown_size_go_only_by_their_number() -> None:
    host = Host(spec("a", max_models=3, memory_bytes=GB))
    names, gone, _ = evicted(host, Memory(), ("a", "b"), "c", {})
    assert (set(names), gone) == ({"a", "b", "c"}, ())
    names, gone, _ = evicted(host, Memory(), ("a", "b", "c"), "d", {"a": 1.0})
    assert (set(names), gone) == ({"a", "c", "d"}, ("b",))
