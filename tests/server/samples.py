"""Pools and requests to show, and a reader for the pages that show them."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

from hypothesis import strategies as st

from sollol_proxy.config.schema import AlertsSection
from sollol_proxy.core.snapshots import HostSnapshot, LearntRow, Snapshot, Spread, WaitingJob
from sollol_proxy.core.types import (
    Candidate,
    Complexity,
    Cost,
    Decision,
    HostSpec,
    HostState,
    InstalledModel,
    Job,
    JobKind,
    Observation,
    Outcome,
    RequestRecord,
    ResidentModel,
    TaskType,
    Term,
)
from sollol_proxy.server import templates
from sollol_proxy.server.models_page import ModelsPage
from sollol_proxy.server.request_page import RequestView
from sollol_proxy.server.status import PageView

_ENVIRONMENT = templates.environment()

NOW = "2026-03-01T12:00:00+00:00"
BASE = "http://proxy.test:11434"
SECTION = AlertsSection()
GB = 10**9
HOSTILE = "<script>boom()</script>\"'><img src=x onerror=boom()>{{ 7 * 7 }}"

HEALTHY = HostSnapshot(
    spec=HostSpec("gpu-box", "http://gpu-box:11434", slots=4, memory_bytes=24 * GB),
    state=HostState.HEALTHY,
    state_for_s=3600.0,
    detail="",
    version="0.33.0",
    in_flight=3,
    in_flight_by_model={"llama3.2:3b": 3},
    installed=(InstalledModel("llama3.2:3b"), InstalledModel("qwen3:8b")),
    resident=(ResidentModel("llama3.2:3b", size_bytes=4 * GB, size_vram_bytes=3 * GB),),
    loading=("qwen3:8b",),
    round_trip_s=0.003,
    first_token_s=0.42,
    decode_tokens_per_s=52.3,
    success_ratio=0.992,
    completed=1204,
    failures=3,
    retry_in_s=None,
)
EJECTED = replace(
    HEALTHY,
    spec=HostSpec("attic", "http://attic:11434"),
    state=HostState.EJECTED,
    state_for_s=90.0,
    detail="connection refused",
    in_flight=0,
    in_flight_by_model={},
    resident=(),
    loading=(),
    retry_in_s=4.2,
)
JOB = Job("job-1", JobKind.GENERATE, "qwen3:8b", priority=8, arrived_s=0.0)
DECISION = Decision(
    job_id="job-1",
    host_id="gpu-box",
    policy="seven_factor",
    cost=Cost(0.8, (Term("gpu", 2.0, "21.4 GB free"), Term("load", 0.57, "load 50 %")), 124.7),
    reason="gpu-box holds the model",
    runners_up=(Candidate("attic", Cost(20.4, (Term("success", 0.71, "71 % success"),), 4.9)),),
)
RECORD = RequestRecord(
    id="r/1",
    started_at="2026-03-01T11:59:00.500+00:00",
    method="POST",
    route="/api/chat",
    path="/api/chat",
    model="qwen3:8b",
    kind=JobKind.GENERATE,
    task_type=TaskType.ANALYSIS,
    complexity=Complexity.MEDIUM,
    priority=8,
    outcome=Outcome.COMPLETED,
    status=200,
    answered_by_host=True,
    stream=True,
    decision=DECISION,
    failures=(("attic", "connection reset"),),
    attempts=2,
    queue_s=1.0,
    first_byte_s=1.5,
    total_s=4.0,
    observation=Observation(prompt_tokens=120, output_tokens=300, decode_s=2.5),
)


def pool(*hosts: HostSnapshot) -> Snapshot:
    return Snapshot("seven_factor", hosts, 0, {}, 0.0, (), ())


def numbered(number: int) -> tuple[HostSnapshot, ...]:
    return tuple(
        replace(HEALTHY, spec=HostSpec(f"host-{place}", f"http://host-{place}:11434"))
        for place in range(number)
    )


class Page(HTMLParser):
    """What a browser would see: start tags with attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def status_html(page: PageView) -> str:
    return _ENVIRONMENT.get_template("status.html").render(page=page)


def request_html(page: RequestView) -> str:
    return _ENVIRONMENT.get_template("request.html").render(page=page)


def models_html(page: ModelsPage) -> str:
    return _ENVIRONMENT.get_template("models.html").render(page=page)


def assert_harmless(page: Page, *, scripts: int) -> None:
    assert page.count("script") == scripts
    assert page.count("img") == 0
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]


TEXTS = st.text(max_size=40) | st.just(HOSTILE)
_seconds = st.floats()
_counts = st.integers(0, 10**15)
_models = st.sampled_from(("llama3.2:3b", "模型:最新", HOSTILE, ""))
_resident = st.builds(ResidentModel, name=_models, size_bytes=_counts, size_vram_bytes=_counts)
_specs = st.builds(
    HostSpec,
    id=TEXTS,
    url=TEXTS,
    slots=st.integers(1, 1024),
    memory_bytes=st.none() | _counts,
    labels=st.dictionaries(TEXTS, TEXTS, max_size=3),
)
_hosts = st.builds(
    HostSnapshot,
    spec=_specs,
    detail=TEXTS,
    version=TEXTS,
    in_flight=_counts,
    in_flight_by_model=st.dictionaries(_models, st.integers(0, 2000), max_size=3),
    installed=st.lists(
        st.builds(InstalledModel, name=_models, digest=TEXTS, size_bytes=_counts), max_size=3
    ).map(tuple),
    resident=st.lists(_resident, max_size=3).map(tuple),
    loading=st.lists(_models, max_size=2).map(tuple),
    completed=_counts,
    failures=_counts,
)
_spreads = st.builds(Spread, count=_counts, mean_s=_seconds, min_s=_seconds, max_s=_seconds)
_jobs = st.builds(Job, id=TEXTS, model=_models, priority=st.integers(1, 10))
SNAPSHOTS = st.builds(
    Snapshot,
    policy=TEXTS,
    hosts=st.lists(_hosts, max_size=9).map(tuple),
    waiting_total=_counts,
    waiting_by_priority=st.dictionaries(st.integers(1, 10), _counts, max_size=10),
    waiting=st.lists(st.builds(WaitingJob, job=_jobs, reason=TEXTS), max_size=3).map(tuple),
    learnt=st.lists(st.builds(LearntRow, model=_models, total=_spreads), max_size=3).map(tuple),
    is_draining=st.booleans(),
    plan_faults=_counts,
)
_costs = st.builds(
    Cost,
    total=_seconds,
    terms=st.lists(st.builds(Term, name=TEXTS, text=TEXTS), max_size=3).map(tuple),
    score=st.none() | _seconds,
)
_decisions = st.builds(
    Decision,
    host_id=TEXTS,
    cost=_costs,
    reason=TEXTS,
    runners_up=st.lists(st.builds(Candidate, host_id=TEXTS, cost=_costs), max_size=3).map(tuple),
)
RECORDS = st.builds(
    RequestRecord,
    id=TEXTS,
    started_at=TEXTS | st.just(NOW) | st.just("0001-01-01T00:00:00+14:00"),
    path=TEXTS,
    model=_models,
    decision=st.none() | _decisions,
    failures=st.lists(st.tuples(TEXTS, TEXTS), max_size=5).map(tuple),
    hosts=st.lists(TEXTS, max_size=5).map(tuple),
    attempts=_counts,
    queue_s=_seconds,
    first_byte_s=st.none() | _seconds,
    total_s=_seconds,
    body_bytes_in=_counts,
    observation=st.none() | st.builds(Observation, output_tokens=st.none() | _counts),
    detail=TEXTS,
)
