"""One host as the scheduler keeps it: what it has, what it runs, what was learnt of it.

Only `core.scheduler` changes an entry; policies see it as a `HostView`.

Invariants: jobs in flight for a model never exceed its slots; different models in flight never
exceed `max_models`; a job is counted from its dispatch to its end, once.
"""

from __future__ import annotations

from collections.abc import Mapping

from sollol_proxy.core.estimate import (
    LOAD_THRESHOLD_S,
    REFERENCE_PROMPT_TOKENS,
    DecayedMean,
    Speeds,
    phases,
)
from sollol_proxy.core.health import Health, HealthRules
from sollol_proxy.core.snapshots import HostSnapshot
from sollol_proxy.core.types import (
    AttemptResult,
    HostReport,
    HostSpec,
    HostState,
    InstalledModel,
    Job,
    JobKind,
    Observation,
    ResidentModel,
)

_HOST_FAULTS = (AttemptResult.FAILED, AttemptResult.UNREACHABLE, AttemptResult.BROKE)

ASSUMED_SUCCESSES = 3
"""Good attempts that every host starts with: the first failure of a new host is not its measure."""


class HostEntry:
    """A host of the pool; satisfies `policies.base.HostView`."""

    def __init__(self, spec: HostSpec, rules: HealthRules, now: float) -> None:
        self.spec = spec
        self.health = Health(rules, since_s=now)
        self.installed: dict[str, InstalledModel] = {}
        self.inventory_known = False
        self.resident: dict[str, ResidentModel] = {}
        self.version = ""
        self.round_trip_s: float | None = None
        self.speeds = Speeds()
        self.completed = 0
        self.failures = 0
        self._success = DecayedMean()
        for _ in range(ASSUMED_SUCCESSES):
            self._success.add(1.0)
        self._jobs: dict[str, Job] = {}
        self._found_cold: set[str] = set()
        self._answered: set[str] = set()
        self._loading: dict[str, str] = {}
        self._by_model: dict[str, int] = {}

    # What policies see

    @property
    def state(self) -> HostState:
        """Where the host stands."""
        return self.health.state

    @property
    def in_flight(self) -> int:
        """Jobs running there that hold a slot."""
        return sum(self._by_model.values())

    @property
    def in_flight_by_model(self) -> Mapping[str, int]:
        """The same by canonical model name."""
        return self._by_model

    @property
    def success_ratio(self) -> float | None:
        """Decayed share of attempts that ended well; None before the first."""
        return self._success.value if self.completed or self.failures else None

    def slots(self, model: str) -> int:
        """Jobs the host runs at once for a model.

        Ollama gives an embedding model one slot whatever OLLAMA_NUM_PARALLEL says.
        """
        explicit = self.spec.model_slots.get(model)
        if explicit is not None:
            return explicit
        installed = self.installed.get(model)
        return 1 if installed is not None and installed.is_embedder else self.spec.slots

    def free_slots(self, model: str) -> int:
        """Slots for a model that are free now."""
        health = self.health
        if not health.state.is_routable:
            return 0
        running = self._by_model.get(model, 0)
        if not running and len(self._by_model) >= self.spec.max_models:
            return 0
        free = self.slots(model) - running
        if health.base is HostState.PROBATION:
            return min(free, 1) if health.trial is None else 0
        return free

    def is_eligible(self, job: Job) -> bool:
        """Whether the host may take the job at all, now or when a slot is free."""
        return self.health.state.is_routable and self.could_serve(job)

    def could_serve(self, job: Job) -> bool:
        """Whether the host could take the job if it were up."""
        if self.spec.id in job.excluded:
            return False
        if not job.kind.needs_model:
            return not job.model or self.spec.may_serve(job.model)
        return job.model in self.installed and self.spec.may_serve(job.model)

    def first_token_s(self, model: str, prompt_tokens: int) -> float | None:
        """Expected seconds from start to first token with the model in memory."""
        return self.speeds.first_token_s(model, prompt_tokens)

    def decode_tokens_per_s(self, model: str) -> float | None:
        """Learnt output speed; None = not known."""
        return self.speeds.decode_tokens_per_s(model)

    # What the scheduler tells it

    def job(self, job_id: str) -> Job:
        """A job in flight here.

        Raises:
            KeyError: it is not.
        """
        return self._jobs[job_id]

    def begin(self, job: Job) -> None:
        """The job goes to this host."""
        self._jobs[job.id] = job
        if not job.kind.takes_slot:
            return
        self.health.begin_trial(job.id)
        self._by_model[job.model] = self._by_model.get(job.model, 0) + 1
        if job.model not in self.resident:
            self._found_cold.add(job.id)
            self._loading[job.model] = job.id
            installed = self.installed.get(job.model)
            self.resident[job.model] = ResidentModel(
                job.model, size_bytes=installed.size_bytes if installed else 0
            )

    def unanswered(self) -> list[Job]:
        """Jobs here that have brought no byte yet."""
        return [job for job_id, job in self._jobs.items() if job_id not in self._answered]

    def is_loading(self, job_id: str) -> bool:
        """Whether the host loads a model for this job."""
        return job_id in self._loading.values()

    def first_byte(self, job_id: str, now: float) -> None:
        """The job's answer begins: the model is loaded and the host works."""
        job = self._jobs.get(job_id)
        if job is None:
            return
        self._answered.add(job_id)
        if not job.kind.takes_slot:
            return
        self._loading.pop(job.model, None)
        self.health.trial_answers(job_id, now)

    def end(
        self,
        job_id: str,
        result: AttemptResult,
        observation: Observation | None,
        detail: str,
        now: float,
    ) -> None:
        """The job is over on this host."""
        job = self._jobs.pop(job_id)
        was_cold = job_id in self._found_cold
        self._found_cold.discard(job_id)
        self._answered.discard(job_id)
        if job.kind.takes_slot:
            self._release(job, result)
        self.health.end_trial(job_id)
        if result is AttemptResult.MODEL_MISSING:
            self.installed.pop(job.model, None)
            self.resident.pop(job.model, None)
        elif result is AttemptResult.COMPLETED:
            if job.kind.takes_slot:
                self.health.attempt_completed()
            self._learn(job, observation, was_cold=was_cold)
        elif result in _HOST_FAULTS:
            self.failures += 1
            self._success.add(0.0)
            self.health.attempt_failed(
                detail, now, is_unreachable=result is AttemptResult.UNREACHABLE
            )

    def report(self, report: HostReport, now: float) -> None:
        """A probe came back."""
        if not report.ok:
            self.health.probe_failed(report.detail, now)
            return
        self.health.probe_succeeded(now)
        self.version = report.version or self.version
        self.round_trip_s = report.round_trip_s
        if report.installed is not None:
            self.installed = dict(report.installed)
            self.inventory_known = True
        if report.resident is not None:
            running = {
                model: self.resident.get(model, ResidentModel(model)) for model in self._by_model
            }
            self.resident = {**running, **report.resident}

    def snapshot(self, now: float) -> HostSnapshot:
        """A frozen copy for pages and JSON."""
        health = self.health
        busiest = max(self.resident, key=lambda model: self._by_model.get(model, 0), default="")
        return HostSnapshot(
            spec=self.spec,
            state=self.state,
            state_for_s=max(0.0, now - health.since_s),
            detail=health.detail,
            version=self.version,
            in_flight=self.in_flight,
            in_flight_by_model=dict(self._by_model),
            installed=tuple(self.installed.values()),
            resident=tuple(self.resident.values()),
            loading=tuple(self._loading),
            round_trip_s=self.round_trip_s,
            first_token_s=self.first_token_s(busiest, REFERENCE_PROMPT_TOKENS),
            decode_tokens_per_s=self.decode_tokens_per_s(busiest),
            success_ratio=self.success_ratio,
            completed=self.completed,
            failures=self.failures,
            retry_in_s=health.retry_in_s(now),
        )

    def _release(self, job: Job, result: AttemptResult) -> None:
        left = self._by_model[job.model] - 1
        if left:
            self._by_model[job.model] = left
        else:
            del self._by_model[job.model]
        if self._loading.get(job.model) == job.id:
            del self._loading[job.model]
            if result is not AttemptResult.COMPLETED and not left:
                # Nobody saw it answer: a load that was cut short leaves nothing in memory.
                self.resident.pop(job.model, None)

    def _learn(self, job: Job, observation: Observation | None, *, was_cold: bool) -> None:
        self.completed += 1
        self._success.add(1.0)
        if job.kind is JobKind.UNLOAD:
            self.resident.pop(job.model, None)
        if observation is None or not job.kind.takes_slot:
            return
        was_resident = not was_cold and (observation.load_s or 0.0) < LOAD_THRESHOLD_S
        self.speeds.learn(
            job.model,
            phases(
                observation,
                prompt_tokens_est=job.prompt_tokens_est,
                is_stream=job.stream,
                was_resident=was_resident,
            ),
        )
