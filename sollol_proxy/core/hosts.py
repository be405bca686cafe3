"""One host as the scheduler keeps it: what it has, what it runs, what was learnt of it.

Only `core.scheduler` changes an entry; policies see it as a `HostView`.

Invariants: jobs in flight for a model never exceed its slots; different models in flight never
exceed `max_models`; a job is counted from its dispatch to its end, once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from sollol_proxy.core.estimate import REFERENCE_PROMPT_TOKENS, DecayedMean
from sollol_proxy.core.eviction import evicted
from sollol_proxy.core.health import Health, HealthRules
from sollol_proxy.core.lessons import learn_attempt, learn_residents
from sollol_proxy.core.memory import Memory
from sollol_proxy.core.running import Beside, Running
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
    """A host of the pool; satisfies `policies.base.HostView`.

    bars: whether a job that the host suits is better done by others; see `core.pool`. None = no
        job is.
    memory: what was learnt, of this host and of the pool. known: of this host.
    changes: another number after each change that a plan may depend on, but for how far its jobs
        have come.
    concurrency: jobs that the host is meant to run at once, whatever their models.
    in_flight: jobs running there that hold a slot. in_flight_by_model: the same by canonical name,
        none with 0. running: jobs in flight, those without a slot included.
    loading: models that are being loaded, each with the job that they are loaded for.
    installed: replaced when it changes and never changed in place, so that it can be handed out
        and compared by identity.
    """

    def __init__(
        self,
        spec: HostSpec,
        rules: HealthRules,
        now: float,
        bars: Callable[[HostEntry, Job], bool] | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.spec = spec
        self.memory = memory if memory is not None else Memory()
        self.known = self.memory.of(spec.id)
        self.changes = next(self.memory.dates)
        self.concurrency = max(spec.slots, *spec.model_slots.values(), 1)
        self.bars = bars
        self.health = Health(rules, since_s=now)
        self.installed: Mapping[str, InstalledModel] = {}
        self.inventory_known = False
        self.resident: dict[str, ResidentModel] = {}
        self.version = ""
        self.round_trip_s: float | None = None
        self.completed = 0
        self.failures = 0
        self._success = DecayedMean()
        for _ in range(ASSUMED_SUCCESSES):
            self._success.add(1.0)
        self._jobs: dict[str, Running] = {}
        self.running: Collection[Running] = self._jobs.values()
        self.loading: dict[str, str] = {}
        self.in_flight_by_model: dict[str, int] = {}
        self.in_flight = 0
        self._aliases: dict[str, tuple[str, ...]] = {}
        self._reported: Mapping[str, ResidentModel] = {}
        self._loads_begun: set[str] = set()
        self._beside = Beside()

    # What policies see

    @property
    def state(self) -> HostState:
        """Where the host stands."""
        return self.health.state

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
        """Slots for a model that are free now; names of one file share them."""
        health, by_model = self.health, self.in_flight_by_model
        if not health.is_routable:
            return 0
        running = by_model.get(model, 0)
        if self._aliases:
            running += sum(by_model.get(alias, 0) for alias in self._aliases.get(model, ()))
        if not running and len(by_model) >= self.spec.max_models:
            return 0
        free = self.slots(model) - running
        if health.base is HostState.PROBATION:
            return min(free, 1) if health.trial is None else 0
        return free

    def runner(self, model: str) -> ResidentModel | None:
        """The model in memory, under this name or another of the same file."""
        resident = self.resident.get(model)
        if resident is None and self._aliases:
            for alias in self._aliases.get(model, ()):
                resident = resident or self.resident.get(alias)
        return resident

    def needs_load(self, job: Job) -> bool:
        """Whether the job's model has to be loaded for it, or loaded anew with its options."""
        resident = self.runner(job.model)
        if resident is None:
            return True
        if not job.options_key and not self.known.variants.is_known(job.model):
            return False
        return not self.known.variants.suits(job, resident)

    def is_eligible(self, job: Job) -> bool:
        """Whether the host may take the job at all, now or when a slot is free."""
        return self.health.is_routable and self.could_serve(job)

    def could_serve(self, job: Job) -> bool:
        """Whether the host could take the job if it were up."""
        return self.suits(job) and (self.bars is None or not self.bars(self, job))

    def suits(self, job: Job) -> bool:
        """Whether the host could take the job if it were up and there were no others."""
        spec = self.spec
        if (job.excluded or job.only) and not job.may_go_to(spec.id):
            return False
        may_serve = not (spec.deny or spec.allow) or spec.may_serve(job.model)
        if not job.kind.needs_model:
            return not job.model or may_serve
        return may_serve and job.model in self.installed

    def first_token_s(self, model: str, prompt_tokens: int) -> float | None:
        """Expected seconds from start to first token with the model in memory."""
        return self.known.speeds.first_token_s(model, prompt_tokens)

    def decode_tokens_per_s(self, model: str) -> float | None:
        """Learnt output speed; None = not known."""
        return self.known.speeds.decode_tokens_per_s(model)

    # What the scheduler tells it

    def touch(self) -> None:
        """Something else has changed that decides what the host may do."""
        self.changes = next(self.memory.dates)

    def job(self, job_id: str) -> Job:
        """A job in flight here.

        Raises:
            KeyError: it is not.
        """
        return self._jobs[job_id].job

    def running_job(self, job_id: str) -> Running:
        """How far a job in flight here has come.

        Raises:
            KeyError: it is not.
        """
        return self._jobs[job_id]

    def begin(self, job: Job, now: float) -> None:
        """The job goes to this host."""
        self.changes = next(self.memory.dates)
        running = self._jobs[job.id] = Running(job, now)
        if not job.kind.takes_slot:
            return
        model, by_model = job.model, self.in_flight_by_model
        self._beside.passes(now, by_model)
        running.areas = self._beside.areas(model)
        if self.health.base is HostState.PROBATION:
            self.health.begin_trial(job.id)
        if job.prefix:
            running.matched_tokens = self.memory.affinity.matched_tokens(self.spec.id, job)
        running.was_cold = self.needs_load(job)
        running.beside_load = bool(self.loading)
        by_model[model] = by_model.get(model, 0) + 1
        self.in_flight += 1
        if running.was_cold:
            self._begin_load(job)

    def unanswered(self) -> list[Job]:
        """Jobs here that have brought no byte yet."""
        return [each.job for each in self._jobs.values() if each.first_byte_s is None]

    def is_loading(self, job_id: str) -> bool:
        """Whether the host loads a model for this job."""
        return job_id in self.loading.values()

    def first_byte(self, job_id: str, now: float) -> None:
        """The job's answer begins: the model is loaded and the host works."""
        running = self._jobs.get(job_id)
        if running is None:
            return
        if running.first_byte_s is None:
            running.first_byte_s, running.expected = now, None
        if not running.job.kind.takes_slot:
            return
        is_trial = self.health.base is HostState.PROBATION
        if is_trial or self.in_flight >= self.concurrency or running.job.model in self.loading:
            self.touch()  # elsewhere nothing depends on it: when a slot is free, a load, a trial
            self.loading.pop(running.job.model, None)
            self.health.trial_answers(job_id, now)

    def progress(self, job_id: str, tokens: int, now: float) -> None:
        """The job has streamed so many tokens."""
        running = self._jobs.get(job_id)
        if running is not None:
            running.progress(tokens, now)

    def end(
        self,
        job_id: str,
        result: AttemptResult,
        observation: Observation | None,
        detail: str,
        now: float,
    ) -> None:
        """The job is over on this host."""
        self.changes = next(self.memory.dates)
        running = self._jobs.pop(job_id)
        job = running.job
        if job.kind.takes_slot:
            self._beside.passes(now, self.in_flight_by_model)
            running.sharing = self._beside.sharing(running)
            self._release(job, result)
        if self.health.trial is not None:
            self.health.end_trial(job_id)
        if result is AttemptResult.MODEL_MISSING:
            self.installed = {
                name: model for name, model in self.installed.items() if name != job.model
            }
            self.resident.pop(job.model, None)
        elif result is AttemptResult.COMPLETED:
            if job.kind.takes_slot:
                self.health.attempt_completed()
            self.completed += 1
            self._success.add(1.0)
            if job.kind is JobKind.UNLOAD:
                self.resident.pop(job.model, None)
        elif result in _HOST_FAULTS:
            self.failures += 1
            self._success.add(0.0)
            self.health.attempt_failed(
                detail, now, is_unreachable=result is AttemptResult.UNREACHABLE
            )
        learn_attempt(self, running, result, observation)

    def report(self, report: HostReport, now: float) -> None:
        """A probe came back."""
        self.touch()
        if not report.ok:
            self.health.probe_failed(report.detail, now)
            return
        self.health.probe_succeeded(now)
        self.version = report.version or self.version
        self.round_trip_s = report.round_trip_s
        if report.installed is not None:
            if report.installed != self.installed:
                self.installed = dict(report.installed)
                self._aliases = _aliases(self.installed)
            self.inventory_known = True
        if report.resident is not None:
            self._report_residents(report.resident)

    def snapshot(self, now: float) -> HostSnapshot:
        """A frozen copy for pages and JSON."""
        health = self.health
        by_model = self.in_flight_by_model
        busiest = max(self.resident, key=lambda model: by_model.get(model, 0), default="")
        return HostSnapshot(
            spec=self.spec,
            state=self.state,
            state_for_s=max(0.0, now - health.since_s),
            detail=health.detail,
            version=self.version,
            in_flight=self.in_flight,
            in_flight_by_model=dict(by_model),
            installed=tuple(self.installed.values()),
            resident=tuple(self.resident.values()),
            loading=tuple(self.loading),
            round_trip_s=self.round_trip_s,
            first_token_s=self.first_token_s(busiest, REFERENCE_PROMPT_TOKENS),
            decode_tokens_per_s=self.decode_tokens_per_s(busiest),
            success_ratio=self.success_ratio,
            completed=self.completed,
            failures=self.failures,
            retry_in_s=health.retry_in_s(now),
        )

    def _release(self, job: Job, result: AttemptResult) -> None:
        self.in_flight -= 1
        left = self.in_flight_by_model[job.model] - 1
        if left:
            self.in_flight_by_model[job.model] = left
        else:
            del self.in_flight_by_model[job.model]
            self._beside.stops(job.model)
        if self.loading and self.loading.get(job.model) == job.id:
            del self.loading[job.model]
            if result is not AttemptResult.COMPLETED and not left:
                # Nobody saw it answer: a load that was cut short leaves nothing in memory.
                self.resident.pop(job.model, None)

    def _begin_load(self, job: Job) -> None:
        self.loading[job.model] = job.id
        self._loads_begun.add(job.model)
        self.known.variants.loaded(job)
        self.memory.affinity.drop(self.spec.id, job.model)
        busy = self.in_flight_by_model
        _, gone, _ = evicted(self, self.memory, tuple(self.resident), job.model, busy)
        for model in gone:
            del self.resident[model]
        self.resident[job.model] = ResidentModel(
            job.model,
            size_bytes=self.memory.footprint_bytes(job.model, self.installed.get(job.model)),
            context_length=job.num_ctx or 0,
        )

    def _report_residents(self, reported: Mapping[str, ResidentModel]) -> None:
        learn_residents(self, self._reported, reported, self._loads_begun)
        self._reported = reported
        self._loads_begun = set(self.loading)
        running = {
            model: self.resident.get(model, ResidentModel(model))
            for model in self.in_flight_by_model
        }
        self.resident = {**running, **reported}


def _aliases(installed: Mapping[str, InstalledModel]) -> dict[str, tuple[str, ...]]:
    """For each model with a copy under other names, these names."""
    by_digest: dict[str, list[str]] = {}
    for name, copy in installed.items():
        if copy.digest:
            by_digest.setdefault(copy.digest, []).append(name)
    return {
        name: tuple(other for other in names if other != name)
        for names in by_digest.values()
        if len(names) > 1
        for name in names
    }
