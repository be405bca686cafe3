"""The configuration's shape: every key, default, unit and bound stands here once.

`sollol.yaml` spells these defaults out for a reader, and a test holds the two together.
Durations are seconds, or text such as `500ms`, `30s`, `5m`, `1h`; sizes are bytes, or text such
as `64KiB`, `20MiB`, `24GB`.

A validator's `ValueError` is a claim about its value ("is not a duration"): the loader puts the
value, or the `${NAME}` it came from, in front.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from sollol_proxy.config.addresses import normalised_url as normalised_url
from sollol_proxy.config.addresses import split_listen as split_listen
from sollol_proxy.config.crosschecks import Misplaced, misplaced_hosts, no_such_host, unreached
from sollol_proxy.config.units import (
    Duration,
    PositiveDuration,
    PositiveSize,
    Priority,
    Ratio,
    Size,
    WholeNumber,
    format_duration,
)
from sollol_proxy.core.types import HostSpec, TaskType
from sollol_proxy.ollama.names import canonical, canonical_pattern
from sollol_proxy.ollama.options import MIN_NUM_CTX
from sollol_proxy.ollama.routes import ROUTES, Plan

MISPLACED = "misplaced"
"""Type of an error whose context lists `mistakes`: pairs of a path below the value, and a text."""

QUEUED_PATHS = frozenset(route.path for route in ROUTES if route.plan is Plan.BALANCE)
"""The paths whose requests wait in the queue: what `queue.route_priorities` may name."""


ContextLength = Annotated[WholeNumber, Field(ge=MIN_NUM_CTX, le=2**24)]
"""Tokens. No model was trained with so many as the upper bound."""


class Section(BaseModel):
    """A frozen part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_default(cls, value: Any, info: ValidationInfo) -> Any:
        # `hosts:` with every line below it commented out is null in YAML.
        if value is None and info.field_name is not None:
            default = cls.model_fields[info.field_name].get_default(call_default_factory=True)
            if isinstance(default, (Section, tuple, dict)):
                return default
        return value


class QueueSection(Section):
    """The one waiting room.

    max_waiting: jobs that may wait; one more is refused with 503 (Ollama's own bound is 512).
    deadline: longest wait; null = as long as the client stays.
    ageing: seconds of waiting that are worth one priority level (the founding formula).
    boost: how far the policy completion_time lets short jobs stand before long ones of their
        priority, against those of others 40 s at most; 0 = by priority and arrival alone.
    overtaking: a job that has waited for so long is overtaken by none of its priority any more.
    no_host_wait: how long a job waits when no host that could take it is up; covers a restart.
    default_priority: 1 (batch) to 10 (critical), where neither request nor route says one.
    route_priorities: by path such as `/api/embed`.
    """

    max_waiting: Annotated[WholeNumber, Field(ge=0, le=1_000_000)] = 512
    deadline: PositiveDuration | None = None
    ageing: PositiveDuration = 60.0
    boost: Duration = 300.0
    overtaking: Duration = 240.0
    no_host_wait: Duration = 2.0
    default_priority: Priority = 5
    route_priorities: dict[str, Priority] = Field(default_factory=dict)

    @field_validator("route_priorities")
    @classmethod
    def _paths_are_queued(cls, value: dict[str, int]) -> dict[str, int]:
        known = ", ".join(sorted(QUEUED_PATHS))
        strange = [path for path in value if path not in QUEUED_PATHS]
        if strange:
            raise _misplaced([((path,), f"no request waits here; say {known}") for path in strange])
        return value


class ProbesSection(Section):
    """Background questions to the hosts. None of them loads a model.

    interval: between two rounds of `/api/version` and `/api/ps`.
    tags_interval: between two readings of `/api/tags`.
    timeout: for one answer.
    """

    interval: PositiveDuration = 5.0
    tags_interval: PositiveDuration = 15.0
    timeout: PositiveDuration = 2.0


class RetriesSection(Section):
    """What happens when a host fails before its first byte.

    attempts: hosts tried for one request, the first included.
    eject_after: failed attempts in a row that take a host out.
    backoff, backoff_max: first and longest time out; doubled with each failed trial.
    """

    attempts: Annotated[WholeNumber, Field(ge=1, le=10)] = 3
    eject_after: Annotated[WholeNumber, Field(ge=1, le=1_000_000)] = 3
    backoff: PositiveDuration = 1.0
    backoff_max: PositiveDuration = 60.0

    @model_validator(mode="after")
    def _backoff_is_ordered(self) -> RetriesSection:
        if self.backoff_max < self.backoff:
            # The other one may be a default, which has no line to point at.
            key = "backoff_max" if "backoff_max" in self.model_fields_set else "backoff"
            longest, first = format_duration(self.backoff_max), format_duration(self.backoff)
            raise _misplaced(
                [((key,), f"backoff_max ({longest}) is shorter than backoff ({first})")]
            )
        return self


class AlertsSection(Section):
    """Thresholds of the status page's alerts.

    first_token: expected wait for the first token of a host, seconds.
    success_ratio: below this share of good attempts a host is marked.
    queue_depth, queue_wait: waiting jobs, and the oldest one's wait.
    """

    first_token: PositiveDuration = 10.0
    success_ratio: Ratio = 0.9
    queue_depth: Annotated[WholeNumber, Field(ge=1, le=1_000_000)] = 50
    queue_wait: PositiveDuration = 60.0


class LimitsSection(Section):
    """Bounds that protect the proxy. None of them is a timeout on a generation.

    body: largest request body that is read into memory (a retry needs it again).
    connect: for the TCP connection to a host.
    drain: how long running answers may go on after SIGTERM.
    records: finished requests kept for `/sollol/requests`.
    """

    body: PositiveSize = 256 * 2**20
    connect: PositiveDuration = 2.0
    drain: Duration = 30.0
    records: Annotated[WholeNumber, Field(ge=1, le=100_000)] = 1000


class LogSection(Section):
    """The log, on standard error. format: `console` for people, `json` for machines."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


class ModelsSection(Section):
    """Which models a host may be given: names or shell patterns."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


class HostSection(Section):
    """One Ollama server. A bare URL is enough.

    id: name in headers, metrics and on the page; default `hostname:port`.
    slots: jobs one loaded model runs at once; set it to the host's OLLAMA_NUM_PARALLEL.
    model_slots: exceptions by model.
    max_models: models in flight at once; set it to OLLAMA_MAX_LOADED_MODELS where that is set.
    priority: 0 = preferred by the seven_factor policy.
    memory: what models can use of the GPU; 0 = a CPU host; null = unknown.
    tasks: task types this host is preferred for.
    """

    url: str
    id: str = Field(default="", validate_default=True)
    slots: Annotated[WholeNumber, Field(ge=1, le=1024)] = 1
    model_slots: dict[str, Annotated[WholeNumber, Field(ge=1, le=1024)]] = Field(
        default_factory=dict
    )
    max_models: Annotated[WholeNumber, Field(ge=1, le=1024)] = 3
    priority: Annotated[WholeNumber, Field(ge=0, le=999)] = 1
    labels: dict[str, str] = Field(default_factory=dict)
    memory: Size | None = None
    tasks: tuple[TaskType, ...] = ()
    models: ModelsSection = ModelsSection()

    @model_validator(mode="before")
    @classmethod
    def _bare_url(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @field_validator("url")
    @classmethod
    def _url_is_a_host(cls, value: str) -> str:
        return normalised_url(value)

    @field_validator("id")
    @classmethod
    def _id_or_address(cls, value: str, info: ValidationInfo) -> str:
        if not value and "url" in info.data:
            value = urlsplit(info.data["url"]).netloc
        if "url" in info.data and not re.fullmatch(r"[!-.0-~]{1,128}", value):
            # No slash: an id is one segment of the paths that drain a host.
            raise ValueError("is no id: 1 to 128 printable ASCII characters, no blank, no slash")
        return value

    def spec(self) -> HostSpec:
        """The same facts as the core wants them."""
        return HostSpec(
            id=self.id,
            url=self.url,
            slots=self.slots,
            model_slots={canonical(name): slots for name, slots in self.model_slots.items()},
            max_models=self.max_models,
            priority=self.priority,
            labels=dict(self.labels),
            memory_bytes=self.memory,
            tasks=frozenset(self.tasks),
            allow=tuple(canonical_pattern(pattern) for pattern in self.models.allow),
            deny=tuple(canonical_pattern(pattern) for pattern in self.models.deny),
        )


class ModelSection(Section):
    """What holds for the models that a name or a shell pattern covers.

    hosts: ids of the hosts that are to hold them, where pull and create put them; empty = all.
    num_ctx: context length that every request on the native routes is given; null = as it asks.
    max_num_ctx: the most that one may ask for; who asks for none gets the host's own default.
    """

    hosts: tuple[str, ...] = ()
    num_ctx: ContextLength | None = None
    max_num_ctx: ContextLength | None = None

    @model_validator(mode="after")
    def _pinned_or_bounded(self) -> ModelSection:
        if self.num_ctx is not None and self.max_num_ctx is not None:
            raise _misplaced([(("max_num_ctx",), "has no effect beside num_ctx")])
        return self

    def num_ctx_for(self, asked: int | None) -> int | None:
        """The context length of a request that asks for this one; None = the host's default."""
        if self.num_ctx is not None:
            return self.num_ctx
        if self.max_num_ctx is None or asked is None:
            return asked
        return min(asked, self.max_num_ctx)


_NO_RULES = ModelSection()


class Config(Section):
    """The whole configuration.

    listen: ADDRESS:PORT. The default is Ollama's own.
    policy: how a host is chosen; see `core.policies`.
    drift: who serves a name under which hosts have different models: all of them (`mix`), or only
        those that have the newest one (`newest`).
    identity: id of the one host whose key and account count; null = the first that is up.
    models: by name or shell pattern; the first that covers a model holds for it.
    state: file for what was learnt, read at start; null = it is gone with the process.
    state_interval: between two writings of it; it is written at the end as well.
    decision_log: file that gets one JSON line for each request, never its text; null = none.
    decision_log_size: at this size it begins anew, and the one before it is kept.
    origins: web origins that may call, beside those Ollama always allows; as OLLAMA_ORIGINS.
    templates: folder whose files replace those of the status page; null = none.
    """

    listen: str = "127.0.0.1:11434"
    policy: str = "completion_time"
    drift: Literal["mix", "newest"] = "mix"
    hosts: tuple[HostSection, ...] = ()
    identity: str | None = None
    models: dict[str, ModelSection] = Field(default_factory=dict)
    queue: QueueSection = QueueSection()
    probes: ProbesSection = ProbesSection()
    retries: RetriesSection = RetriesSection()
    alerts: AlertsSection = AlertsSection()
    limits: LimitsSection = LimitsSection()
    log: LogSection = LogSection()
    state: str | None = None
    state_interval: PositiveDuration = 300.0
    decision_log: str | None = None
    decision_log_size: PositiveSize = 64 * 2**20
    origins: tuple[str, ...] = ()
    templates: str | None = None

    @field_validator("state", "decision_log")
    @classmethod
    def _names_a_file(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or "\0" in value or value.endswith("/")):
            raise ValueError("is no file name")
        return value

    @field_validator("listen")
    @classmethod
    def _listen_is_an_address(cls, value: str) -> str:
        split_listen(value)
        return value

    @field_validator("hosts")
    @classmethod
    def _ids_differ(cls, value: tuple[HostSection, ...]) -> tuple[HostSection, ...]:
        mistakes: Misplaced = []
        first_with: dict[str, int] = {}
        for index, host in enumerate(value):
            first = first_with.setdefault(host.id, index)
            if first != index:
                text = f"hosts[{first}] has the same id; give one of them another `id`"
                mistakes.append(((index, "id"), text))
        if mistakes:
            raise _misplaced(mistakes)
        return value

    @field_validator("identity")
    @classmethod
    def _identity_is_a_host(cls, value: str | None, info: ValidationInfo) -> str | None:
        # Nothing to compare with where the hosts themselves are wrong.
        ids = [host.id for host in info.data.get("hosts", ())]
        if value is not None and "hosts" in info.data and value not in ids:
            raise _misplaced([((), no_such_host(value, ids))])
        return value

    @field_validator("models", mode="before")
    @classmethod
    def _empty_section_is_default(cls, value: Any) -> Any:
        # As for `hosts:`, every line below a model's name may be commented out.
        if not isinstance(value, dict):
            return value
        return {key: {} if below is None else below for key, below in value.items()}

    @field_validator("models")
    @classmethod
    def _models_fit_hosts(
        cls, value: dict[str, ModelSection], info: ValidationInfo
    ) -> dict[str, ModelSection]:
        mistakes = unreached(value)
        if "hosts" in info.data:
            specs = {host.id: host.spec() for host in info.data["hosts"]}
            placed = {name: section.hosts for name, section in value.items()}
            mistakes += misplaced_hosts(placed, specs)
        if mistakes:
            raise _misplaced(mistakes)
        return value

    def placed(self, model: str) -> frozenset[str] | None:
        """Ids of the hosts that are to hold a model; None = every host.

        model: canonical. Whether each of them may serve it is `HostSpec.may_serve`'s to say.
        """
        return frozenset(self.rules_for(model).hosts) or None

    def rules_for(self, model: str) -> ModelSection:
        """What `models` says of a model; an empty section where it says nothing.

        model: canonical.
        """
        covering = (below for pattern, below in self._by_pattern if fnmatchcase(model, pattern))
        return next(covering, _NO_RULES)

    @cached_property
    def _by_pattern(self) -> tuple[tuple[str, ModelSection], ...]:
        return tuple((canonical_pattern(name), below) for name, below in self.models.items())


def _misplaced(mistakes: Misplaced) -> PydanticCustomError:
    """An error that says for each mistake where it stands below the value that was checked."""
    return PydanticCustomError(MISPLACED, "{text}", {"text": mistakes[0][1], "mistakes": mistakes})
