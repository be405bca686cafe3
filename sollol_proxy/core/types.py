"""The records that travel between the rooms of the house. Frozen; enums are safe as labels.

Suffixes carry the units: `_s` float seconds, `_bytes`, `_tokens`, `_ratio` (0 to 1). Times that
end in `_s` and name an instant (`arrived_s`) are monotonic and never leave the process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TypeAlias


class JobKind(StrEnum):
    """What a request asks of a host, as far as scheduling cares.

    takes_slot: the job occupies a runner of the host while it runs. needs_model: only hosts that
        have the model can answer. is_passed: it goes to the first host that may take it, at once,
        without a policy. Plain attributes: every request asks for them a dozen times.
    """

    takes_slot: bool
    needs_model: bool
    is_passed: bool

    GENERATE = "generate"
    EMBED = "embed"
    TRANSCRIBE = "transcribe"
    LOAD = "load"
    """An empty prompt: bring the model into memory."""
    UNLOAD = "unload"
    """An empty prompt with `keep_alive: 0`."""
    SHOW = "show"
    """Reads what is on disk; loads nothing."""
    OTHER = "other"
    """Anything a host must answer in its own words: broken bodies, cloud models, missing models."""
    PASS = "pass"
    """A route we do not balance: the first host of the pool that is up, or has the model."""
    MANAGE = "manage"
    """One host's part of a request that several hosts carry out: a pull, a copy, a blob."""

    def __init__(self, value: str) -> None:
        self.takes_slot = value in ("generate", "embed", "transcribe", "load")
        self.is_passed = value in ("pass", "manage")
        self.needs_model = not self.is_passed and value != "other"


class TaskType(StrEnum):
    """The founding documents' six task types."""

    GENERATION = "generation"
    EMBEDDING = "embedding"
    CLASSIFICATION = "classification"
    EXTRACTION = "extraction"
    SUMMARIZATION = "summarization"
    ANALYSIS = "analysis"


class Complexity(StrEnum):
    """How much work a request is likely to be."""

    SIMPLE = "simple"
    MEDIUM = "medium"
    COMPLEX = "complex"


class HostState(StrEnum):
    """Where a host stands; see `core.health` for the transitions.

    is_routable: the host may be given jobs.
    """

    is_routable: bool

    UNKNOWN = "unknown"
    """No probe has answered yet."""
    HEALTHY = "healthy"
    PROBATION = "probation"
    """Back after failures: one trial job at a time until one has sent its first byte."""
    EJECTED = "ejected"
    """Out after failures; gets nothing."""
    DRAINING = "draining"
    """Finishes what it has, takes nothing new."""

    def __init__(self, value: str) -> None:
        self.is_routable = value in ("healthy", "probation")


class Outcome(StrEnum):
    """How a request ended. Closed list, used as a metrics label."""

    COMPLETED = "completed"
    PARTIAL = "partial"
    """Several hosts were to do it, and some of them did not."""
    CLIENT_GONE = "client_gone"
    REJECTED_QUEUE_FULL = "rejected_queue_full"
    REJECTED_BAD_REQUEST = "rejected_bad_request"
    EXPIRED_IN_QUEUE = "expired_in_queue"
    NO_HOST = "no_host"
    NO_MODEL = "no_model"
    """The configuration lets no host serve the model."""
    UPSTREAM_REFUSED = "upstream_refused"
    """The host said 4xx: the client's business, passed through."""
    UPSTREAM_FAILED = "upstream_failed"
    """No host gave an answer, or the last one's 5xx was passed through."""
    UPSTREAM_BROKE = "upstream_broke"
    """The answer began and did not end as its dialect ends: cut, error record, no last record."""
    DRAINING = "draining"


class AttemptResult(StrEnum):
    """How one attempt at one host ended: what host health learns from it."""

    COMPLETED = "completed"
    CLIENT_GONE = "client_gone"
    """The client left: neither good nor bad for the host."""
    REFUSED = "refused"
    """4xx, or a client error that Ollama dresses as 500: counts against nobody."""
    MODEL_MISSING = "model_missing"
    """404 for a model we thought was there: our inventory was stale."""
    ROUTE_MISSING = "route_missing"
    """404 in plain text: this version of Ollama lacks the route. Counts against nobody."""
    FAILED = "failed"
    """5xx, or the connection ended before the first byte."""
    UNREACHABLE = "unreachable"
    """No connection."""
    BROKE = "broke"
    """Bytes came, and the body did not end as it should."""


@dataclass(frozen=True, slots=True)
class HostSpec:
    """What the configuration says about one host.

    slots: jobs that one loaded model runs at once (Ollama's OLLAMA_NUM_PARALLEL, default 1).
    model_slots: exceptions to `slots` by canonical model name.
    max_models: different models in flight at once (OLLAMA_MAX_LOADED_MODELS: 3 on a CPU host
        or a single GPU).
    priority: the founding documents' host priority; 0 means preferred.
    memory_bytes: memory that models can use; None = unknown, 0 = no GPU.
    tasks: task types that this host is preferred for.
    allow, deny: shell patterns over canonical model names; an empty `allow` allows all.
    """

    id: str
    url: str
    slots: int = 1
    model_slots: Mapping[str, int] = field(default_factory=dict)
    max_models: int = 3
    priority: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int | None = None
    tasks: frozenset[TaskType] = frozenset()
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    def may_serve(self, model: str) -> bool:
        """Whether the configuration lets this host serve a canonical model name."""
        if any(fnmatchcase(model, pattern) for pattern in self.deny):
            return False
        return not self.allow or any(fnmatchcase(model, pattern) for pattern in self.allow)


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model on a host's disk, from `/api/tags`.

    name: canonical (see `ollama.names.canonical`). size_bytes: all layers, 0 when unknown.
    spelling: as the host writes it. modified_ns: since 1970, 0 when unknown.
    is_remote: a stub of a model that runs elsewhere, such as on ollama.com.
    """

    name: str
    digest: str = ""
    size_bytes: int = 0
    capabilities: frozenset[str] = frozenset()
    spelling: str = ""
    modified_ns: int = 0
    is_remote: bool = False

    @property
    def is_embedder(self) -> bool:
        """Whether Ollama runs it with one slot whatever OLLAMA_NUM_PARALLEL says."""
        return "embedding" in self.capabilities


@dataclass(frozen=True, slots=True)
class ResidentModel:
    """A model in a host's memory, from `/api/ps`.

    context_length: tokens a slot holds; 0 when the host does not say (Ollama before 0.11).
    size_vram_bytes: part of `size_bytes` on GPUs; 0 = CPU only.
    """

    name: str
    digest: str = ""
    size_bytes: int = 0
    size_vram_bytes: int = 0
    context_length: int = 0


@dataclass(frozen=True, slots=True)
class HostReport:
    """What one probe of one host brought.

    ok: the host answered `/api/version` in time.
    installed, resident: by canonical name; None = not asked, or no answer: keep what was known.
    round_trip_s: of the version question.
    """

    host_id: str
    ok: bool
    detail: str = ""
    round_trip_s: float | None = None
    version: str = ""
    installed: Mapping[str, InstalledModel] | None = None
    resident: Mapping[str, ResidentModel] | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a request's bytes say, before anybody decides anything.

    model: canonical name; empty when the body names none or cannot be read.
    model_as_written: the client's spelling.
    stream: whether the answer comes record by record.
    prompt_tokens_est: characters of all prompt text ÷ 4, images counted as 768 each.
    output_limit_tokens: `num_predict`, `max_tokens` and the like; None = open.
    messages: number of chat messages, 0 for a bare prompt.
    is_cloud: the name asks for a model that Ollama's cloud serves.
    options_key, num_ctx, prefix, prefix_tokens: as in `Job`.
    """

    kind: JobKind
    model: str = ""
    model_as_written: str = ""
    stream: bool = False
    task_type: TaskType = TaskType.GENERATION
    prompt_tokens_est: int = 0
    output_limit_tokens: int | None = None
    messages: int = 0
    body_bytes: int = 0
    is_cloud: bool = False
    options_key: str = ""
    num_ctx: int | None = None
    prefix: tuple[int, ...] = ()
    prefix_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """What the scheduler knows about a request. No HTTP in it.

    priority: 1 (batch) to 10 (critical).
    deadline_s: instant after which waiting makes no sense; None = no limit.
    excluded: hosts that failed this job; they do not get it again.
    only: the one host that may take it; empty = any.
    route: label of the API table, for what a version lacks; empty = none of the table, since what
        one unknown path lacks says nothing of another.
    attempt: 1 for the first.
    options_key: the load-time options asked for, sorted, such as `num_ctx=8192,num_gpu=20`; a
        runner that was loaded with others has to be loaded again. Empty = none.
    num_ctx: the one of these that `/api/ps` shows; None = not asked for.
    prefix: hashes of the prompt's blocks as a chain: each covers everything up to its block's
        end, so two prompts share exactly the hashes of the blocks that both begin with.
    prefix_tokens: estimated tokens from the prompt's start to the end of each block of `prefix`:
        as many, never falling.
    """

    id: str
    kind: JobKind
    model: str
    priority: int
    arrived_s: float
    deadline_s: float | None = None
    task_type: TaskType = TaskType.GENERATION
    complexity: Complexity = Complexity.SIMPLE
    requires_gpu: bool = False
    prompt_tokens_est: int = 0
    output_limit_tokens: int | None = None
    stream: bool = False
    excluded: frozenset[str] = frozenset()
    only: str = ""
    route: str = ""
    attempt: int = 1
    options_key: str = ""
    num_ctx: int | None = None
    prefix: tuple[int, ...] = ()
    prefix_tokens: tuple[int, ...] = ()

    def may_go_to(self, host_id: str) -> bool:
        """Whether the job itself leaves the host to choose."""
        return host_id not in self.excluded and self.only in ("", host_id)


@dataclass(frozen=True, slots=True)
class Term:
    """One named part of a cost, with its value and a reason a person can read."""

    name: str
    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What it costs to give a job to a host; the lowest total wins.

    total: finite and ≥ 0. Seconds for policies that predict time, else a plain number that the
        policy's docstring explains.
    score: the founding 0-to-hundreds view, higher is better; None where the policy has none.
    """

    total: float
    terms: Sequence[Term] = ()
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A host that a policy looked at for a job, with what it would have cost."""

    host_id: str
    cost: Cost


@dataclass(frozen=True, slots=True)
class Decision:
    """A job's host, and why. Headers, log fields and page rows come from this object.

    waited_s: seconds the job stood in the queue (this attempt and those before).
    runners_up: the other hosts that were considered, best first.
    predicted_wait_s: of `waited_s`, as predicted when the job was first looked at; 0 when it did
        not have to wait. predicted_total_s: from now to the end of the answer, to be compared
        with `Observation.total_s`. None = the policy predicts no time.
    """

    job_id: str
    host_id: str
    policy: str
    cost: Cost
    reason: str
    runners_up: Sequence[Candidate] = ()
    waited_s: float = 0.0
    predicted_wait_s: float | None = None
    predicted_total_s: float | None = None


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Effect: open an attempt at `decision.host_id`."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class Refuse:
    """Effect: tell the job's client no.

    outcome: rejected_queue_full, expired_in_queue, no_host, no_model or draining.
    retry_after_s: when trying again is worth it, seconds ≥ 1.
    """

    job_id: str
    outcome: Outcome
    detail: str
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class ProbeNow:
    """Effect: ask this host how it is before its next regular probe."""

    host_id: str


@dataclass(frozen=True, slots=True)
class Recall:
    """Effect: give up an attempt that has brought nothing yet; the job is tried elsewhere."""

    job_id: str


Effect: TypeAlias = Dispatch | Refuse | ProbeNow | Recall


@dataclass(frozen=True, slots=True)
class Observation:
    """Measured facts of a finished attempt; None = the answer did not say.

    prompt_tokens: as the host counts them, tokens it had cached included.
    load_s: until a runner was ready. prefill_s, decode_s: prompt and output processing.
    first_byte_s, total_s: from sending the request, as the proxy saw it.
    cached_tokens: of `prompt_tokens`, those that were in the host's prompt cache.
    is_timed: the phases are the proxy's own timing and tokens may be counted records, because
        the answer told none of its own; such samples teach less.
    """

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    load_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    first_byte_s: float | None = None
    total_s: float | None = None
    cached_tokens: int | None = None
    is_timed: bool = False


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request from arrival to end: a log line, metrics, a page row, `/sollol/requests/<id>`.

    started_at: wall time, ISO 8601 UTC.
    route: the table's path, `other` for unknown ones: bounded, so safe as a label.
    status: what the client was told; 0 when it left before a status.
    answered_by_host: False when the proxy itself made the answer.
    failures: (host id, reason) of each attempt that gave no answer to pass on, and of each host
        that did not do its part where several were asked.
    hosts: those that did their part of a request that several hosts carry out.
    skipped: those of `failures` that were not asked.
    """

    id: str
    started_at: str
    method: str
    route: str
    path: str
    model: str
    kind: JobKind
    task_type: TaskType
    complexity: Complexity
    priority: int
    outcome: Outcome
    status: int
    answered_by_host: bool
    stream: bool = False
    decision: Decision | None = None
    failures: tuple[tuple[str, str], ...] = ()
    hosts: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    attempts: int = 0
    queue_s: float = 0.0
    first_byte_s: float | None = None
    total_s: float = 0.0
    body_bytes_in: int = 0
    body_bytes_out: int = 0
    observation: Observation | None = None
    detail: str = ""
