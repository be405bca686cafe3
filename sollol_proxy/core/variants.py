"""In which variant a host holds a model: what it was loaded with, and whether that suits a job.

A runner is loaded with certain options and has to be loaded again for a job that asks for others.
The context is what Ollama shows of them; the rest is known only of loads that went through the
proxy. A context that nobody knows suits: a load that comes unforeseen is learnt from, and a load
foreseen that never comes would keep jobs from a host for ever. Other options that are not known to
be the runner's do not; one load tells.
"""

from __future__ import annotations

from typing import Any

from sollol_proxy.core.jsonable import rows, text, whole
from sollol_proxy.core.types import Job, ResidentModel

MAX_KEYS = 512
"""Options come from clients, so what is kept of them has to be bounded."""


class Variants:
    """One host's loads, by canonical model name."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}
        self._contexts: dict[tuple[str, str], int] = {}

    def suits(self, job: Job, resident: ResidentModel) -> bool:
        """Whether a runner can take the job as it is."""
        last = self._last.get(job.model)
        if last == job.options_key:
            return True
        if not _same_but_context(job.options_key, last):
            return False
        context = resident.context_length
        if not context:
            return last is None and not job.options_key
        wanted = self._contexts.get((job.model, job.options_key), job.num_ctx)
        return wanted is None or wanted == context

    def last(self, model: str) -> str:
        """Options of the last load of the model through the proxy; empty = none, or not known."""
        return self._last.get(model, "")

    def is_known(self, model: str) -> bool:
        """Whether the last load of the model went through the proxy."""
        return model in self._last

    def loaded(self, job: Job) -> None:
        """The host loads the model for the job."""
        self._last[job.model] = job.options_key

    def reported(self, model: str, resident: ResidentModel | None) -> None:
        """A probe shows how the host holds a model; None = it does not."""
        last = self._last.get(model)
        if last is None:
            return
        if resident is None:
            del self._last[model]
            return
        if not resident.context_length:
            return
        known = self._contexts.get((model, last))
        if known is not None and known != resident.context_length:
            # Loaded by somebody else since, with options that nobody told us; or what was known is
            # wrong, which the next load will tell.
            del self._last[model]
            del self._contexts[model, last]
            return
        if known is None:
            if len(self._contexts) >= MAX_KEYS:
                del self._contexts[next(iter(self._contexts))]
            self._contexts[model, last] = resident.context_length

    def export(self) -> list[list[Any]]:
        """The contexts that options gave, for JSON; what is loaded now the probes tell."""
        return [[*key, context] for key, context in self._contexts.items()]

    @classmethod
    def restored(cls, given: object) -> Variants:
        """From what `export` gave.

        Raises:
            ValueError: it is something else.
        """
        variants = cls()
        for model, options_key, context in rows(given, 3)[:MAX_KEYS]:
            variants._contexts[text(model), text(options_key)] = whole(context)
        return variants


def _same_but_context(asked: str, last: str | None) -> bool:
    """Whether options are the same but for the context; nobody knows of an unknown load."""
    rest = _without_context(asked)
    return not rest if last is None else rest == _without_context(last)


def _without_context(options_key: str) -> str:
    if "num_ctx" not in options_key:
        return options_key
    return ",".join(part for part in options_key.split(",") if not part.startswith("num_ctx="))
