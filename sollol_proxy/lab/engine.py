"""A real Ollama-shaped host: llama.cpp with two tiny models behind Ollama's routes.

`smollm2:135m` chats (badly) and `all-minilm:latest` makes vectors (well), from packages of PyPI
alone, on one CPU thread each. Records, figures and errors are shaped as Ollama's; a request whose
client leaves stops; models load on demand and leave when they have been idle for their time.
Models can be copied, deleted, and created from one another, as on a host without a way to the
internet.
`/v1/*` text routes are passed to llama.cpp's own server, so those answers are in its words.
Not offered: tools, thinking, images, `template`, and `num_ctx` (a slot has a fixed length).

As a process of its own: `python -m sollol_proxy.lab.engine --port N [--models chat,embed]`.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import time
from collections.abc import Sequence
from typing import Self

from aiohttp import ClientConnectionError, ClientSession, ClientTimeout, web

from sollol_proxy.lab.account import Account, AccountPages
from sollol_proxy.lab.ask import (
    CHAT,
    EMBED,
    EMBEDDING_PATHS,
    EMBEDDINGS,
    GENERATE,
    V1_CHAT,
    V1_COMPLETIONS,
    V1_EMBEDDINGS,
    V1_MESSAGES,
    V1_RESPONSES,
    Ask,
    AskError,
    read_ask,
)
from sollol_proxy.lab.disk import Disk
from sollol_proxy.lab.engine_answer import Clock, answer_text, loaded_reply, pass_on
from sollol_proxy.lab.engine_models import CHAT_MODEL, EMBEDDING_MODEL, MODELS, available
from sollol_proxy.lab.engine_pages import EnginePages
from sollol_proxy.lab.engine_runner import EngineRunner
from sollol_proxy.lab.engine_variants import KnownFiles, NoTarget, with_settings
from sollol_proxy.lab.engine_vectors import vectors
from sollol_proxy.lab.faults import Faults
from sollol_proxy.lab.inventory import Listing
from sollol_proxy.lab.manage import ManageRoutes, Stock
from sollol_proxy.lab.process import Child, add_process_arguments, announce_and_wait, spawned
from sollol_proxy.lab.pulls import NoSource
from sollol_proxy.lab.replies import (
    ask_errors,
    drop_server_header,
    error_reply,
    go_router_errors,
    json_reply,
)
from sollol_proxy.lab.shapes import BROKEN, JSON_TYPE, NativeShape, Result
from sollol_proxy.lab.simstats import Tally
from sollol_proxy.lab.vectors import embedding_body
from sollol_proxy.ollama.names import canonical, is_cloud

__all__ = ["CHAT_MODEL", "EMBEDDING_MODEL", "EngineHost", "available", "spawned_engine"]

_SHUTDOWN_TIMEOUT_S = 0.5
_NO_TIMEOUT = ClientTimeout(total=None)
# The engine repeats the prompt in one line at the end of an answer.
_READ_BUFFER_BYTES = 2**20
_NATIVE_TEXT = (GENERATE, CHAT)
_PASSED_ON = (V1_CHAT, V1_COMPLETIONS, V1_RESPONSES, V1_MESSAGES)


class EngineHost:
    """One real lab host. `async with`, or `start` and `stop`.

    It is meant for a process of its own: an engine that loads holds up the event loop.
    """

    def __init__(
        self,
        models: Sequence[str] = ("chat", "embed"),
        *,
        slots: int = 1,
        keep_alive_s: float = 300,
    ) -> None:
        """models: keys of `MODELS`. slots: requests the chat model serves at once."""
        lock = asyncio.Lock()
        self._runners = {
            canonical(MODELS[key].name): EngineRunner(
                MODELS[key], slots=slots, keep_alive_s=keep_alive_s, host_lock=lock
            )
            for key in models
        }
        self._disk = Disk()
        self._account = Account("engine", offline=True)
        self._loaded_as: dict[str, Listing] = {}
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Base address without a slash at the end."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self, port: int = 0) -> None:
        """Find the model files and listen on 127.0.0.1; nothing is loaded yet."""
        self._runner = web.AppRunner(
            self._app(),
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=_SHUTDOWN_TIMEOUT_S,
        )
        await self._runner.setup()
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        self._port = int(listener.getsockname()[1])
        await web.SockSite(self._runner, listener).start()

    async def stop(self) -> None:
        """Close every connection and give the models' memory back."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        for runner in self._runners.values():
            runner.close()

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[go_router_errors, ask_errors], client_max_size=2**30)
        app.on_response_prepare.append(drop_server_header)
        for path in (*_NATIVE_TEXT, *sorted(EMBEDDING_PATHS), *_PASSED_ON):
            app.router.add_post(path, self._handle)
        disk, account, no_faults = self._disk, self._account, Faults()
        listings = [runner.model.listing() for runner in self._runners.values()]
        for listing in listings:
            disk.put(listing)
        EnginePages(disk, account, self._runners, self._loaded_as).add_to(app)
        stock = Stock(disk, NoSource(disk), NoTarget(), KnownFiles(listings), account)
        ManageRoutes(stock, no_faults, Tally()).add_to(app)
        AccountPages(account, no_faults).add_to(app)
        return app

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        ask = read_ask(request.path, await request.read())
        listing = self._find(ask)
        runner = self._runners[listing.weights]
        if ask.is_unload:
            runner.unload()
            return json_reply(NativeShape(ask).whole("", Result("unload")), JSON_TYPE)
        if not runner.is_loaded:
            self._loaded_as[listing.weights] = listing
        try:
            return await self._run(request, with_settings(ask, listing), runner)
        except ClientConnectionError:
            return error_reply(request.path, 500, BROKEN)

    def _find(self, ask: Ask) -> Listing:
        if is_cloud(ask.model):
            self._account.require("remote model is unavailable", is_native=True)
        listing = self._disk.find(ask.model)
        if listing is None:
            if ask.is_embedding:
                raise AskError(404, f'model "{ask.model}" not found, try pulling it first')
            raise AskError(404, f"model '{ask.model}' not found")
        if ask.is_unload:  # comes before what a model can do
            return listing
        runner = self._runners[listing.weights]
        verb = {GENERATE: "generate", EMBED: "embed", EMBEDDINGS: "embed"}.get(ask.path, "chat")
        if runner.model.is_embedder != ask.is_embedding:
            raise AskError(400, f'"{ask.model}" does not support {verb}')
        _refuse_unsupported(ask, runner)
        return listing

    async def _run(
        self, request: web.Request, ask: Ask, runner: EngineRunner
    ) -> web.StreamResponse:
        began_s = time.monotonic()
        async with runner.loaded(ask.keep_alive_s) as engine_url:
            load_s = time.monotonic() - began_s
            if ask.is_load:
                return loaded_reply(ask)
            async with (
                runner.slot(),
                ClientSession(
                    engine_url, timeout=_NO_TIMEOUT, read_bufsize=_READ_BUFFER_BYTES
                ) as session,
            ):
                if ask.path in _PASSED_ON:
                    return await pass_on(request, ask, session)
                clock = Clock(began_s, load_s)
                if ask.path in EMBEDDING_PATHS:
                    numbers, prompt_tokens = await vectors(
                        session, ask, runner.model.context_length
                    )
                    result = clock.complete(Result("", prompt_tokens=prompt_tokens))
                    content_type = JSON_TYPE if ask.path != V1_EMBEDDINGS else "application/json"
                    return json_reply(embedding_body(ask, numbers, result), content_type)
                return await answer_text(request, ask, session, clock)


def _refuse_unsupported(ask: Ask, runner: EngineRunner) -> None:
    full_name = f"registry.ollama.ai/library/{runner.model.name}"
    if ask.path in _NATIVE_TEXT and ask.body.get("think"):
        raise AskError(400, f'"{ask.model}" does not support thinking')
    if ask.path in (CHAT, V1_CHAT) and ask.body.get("tools"):
        raise AskError(400, f"{full_name} does not support tools")
    if ask.body.get("suffix"):
        raise AskError(400, f"{full_name} does not support insert")


def spawned_engine(models: Sequence[str] = ("chat", "embed"), *, slots: int = 1) -> Child:
    """The host in a process of its own: `async with … as child`."""
    arguments = ("--models", ",".join(models), "--slots", str(slots))
    return spawned("sollol_proxy.lab.engine", *arguments)


async def _serve(models: Sequence[str], slots: int, port: int, *, until_eof: bool) -> None:
    async with EngineHost(models, slots=slots) as host:
        await announce_and_wait(host.url, until_eof=until_eof)


def main(arguments: list[str] | None = None) -> None:
    """Run a real lab host until SIGTERM, SIGINT or the end of standard input."""
    parser = argparse.ArgumentParser(prog="python -m sollol_proxy.lab.engine")
    parser.add_argument("--models", default="chat,embed", help="chat, embed or both")
    parser.add_argument("--slots", type=int, default=1, help="of the chat model")
    add_process_arguments(parser)
    options = parser.parse_args(arguments)
    models = options.models.split(",")
    if unknown := set(models) - set(MODELS):
        parser.error(f"no such models: {', '.join(sorted(unknown))}")
    if reason := available(models):
        parser.error(reason)
    asyncio.run(_serve(models, options.slots, options.port, until_eof=options.until_eof))


if __name__ == "__main__":
    main()
