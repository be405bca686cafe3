"""One model of the real lab host: loaded when needed, one request a slot, gone when idle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib import request

from sollol_proxy.lab.engine_models import EngineModel

# llama.cpp's workers spin while they wait for each other: beside another busy process, two of
# them are several times slower than one.
_THREADS = 1
_QUIET = 0
_ANSWER_TIMEOUT_S = 30.0


class EngineRunner:
    """Owns the engine of one model.

    host_lock: held while a model loads; loads of one host come one after the other.
    """

    def __init__(
        self, model: EngineModel, *, slots: int, keep_alive_s: float, host_lock: asyncio.Lock
    ) -> None:
        self.model = model
        self._slots = 1 if model.is_embedder else slots
        self._free = asyncio.Semaphore(self._slots)
        self._default_keep_alive_s = self._keep_alive_s = keep_alive_s
        self._host_lock = host_lock
        self._server: Any = None
        self._loading: asyncio.Future[Any] | None = None
        self._users = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._server is not None

    @property
    def expires_in_s(self) -> float | None:
        """Seconds until it leaves the memory if nothing comes; None = never."""
        if self._timer is not None:
            return self._timer.when() - asyncio.get_running_loop().time()
        return None if self._keep_alive_s < 0 else self._keep_alive_s

    @asynccontextmanager
    async def loaded(self, keep_alive_s: float | None = None) -> AsyncIterator[str]:
        """The base address of the engine; the model stays in memory within the block.

        keep_alive_s: sticks to the runner until it is gone; None = as it is, < 0 = for ever.
        """
        self._users += 1
        self._stop_timer()
        if self._server is None and self._users == 1:
            self._keep_alive_s = self._default_keep_alive_s
        if keep_alive_s is not None:
            self._keep_alive_s = keep_alive_s
        try:
            if self._server is None:
                await self._load()
            yield self._server.listening_address
        finally:
            self._users -= 1
            self._start_timer()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """A slot, in order of arrival. Within `loaded`."""
        async with self._free:
            yield

    def unload(self) -> None:
        """Let the model go as soon as it is idle."""
        self._keep_alive_s = 0.0
        self._start_timer()

    def close(self) -> None:
        """Let it go now."""
        self._stop_timer()
        self._server = None

    async def _load(self) -> None:
        async with self._host_lock:
            if self._server is not None:
                return
            # A load cannot be broken off: who leaves leaves it to the next one.
            if self._loading is None:
                loop = asyncio.get_running_loop()
                self._loading = loop.run_in_executor(None, _start, self.model, self._slots)
            try:
                self._server = await asyncio.shield(self._loading)
            finally:
                if self._loading.done():
                    self._loading = None

    def _start_timer(self) -> None:
        self._stop_timer()
        if self._users or self._server is None or self._keep_alive_s < 0:
            return
        if self._keep_alive_s == 0:
            self._server = None
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._keep_alive_s, self.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _start(model: EngineModel, slots: int) -> Any:
    """Load the model into an engine that listens on a free port of 127.0.0.1. Blocks."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model.file())
    params.model_alias = {model.name}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.verbosity = _QUIET
    params.n_parallel = slots
    params.n_ctx = slots * model.context_length
    for threads in (params.cpuparams, params.cpuparams_batch):
        threads.n_threads = _THREADS
    if model.is_embedder:
        params.embedding = True
        # An input has to fit one batch.
        params.n_batch = params.n_ubatch = model.context_length
    server = xllamacpp.Server(params)
    _wait_for_loop(server.listening_address)
    return server


def _wait_for_loop(address: str) -> None:
    """Wait until the engine takes from its queue of tasks.

    One that is told to end before it has begun to does not notice, and its owner waits for ever
    (seen with xllamacpp 2026.10.11549). This question goes through the queue.
    """
    with request.urlopen(f"{address}/slots", timeout=_ANSWER_TIMEOUT_S) as answer:
        answer.read()
