"""Where a simulated host runs a request's model: in its own memory, or at ollama.com."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sollol_proxy.lab.account import Account
from sollol_proxy.lab.ask import CHAT, EMBEDDING_PATHS, GENERATE, Ask, AskError
from sollol_proxy.lab.simdisk import SimDisk
from sollol_proxy.lab.simdriver import SimDriver
from sollol_proxy.lab.simspec import SimModel, SimSpec
from sollol_proxy.ollama.names import canonical, is_cloud

_CLOUD_MODEL = SimModel("ollama.com", context_length=131_072)
_UNAVAILABLE = "remote model is unavailable"


@dataclass(frozen=True, slots=True)
class Place:
    """Where one request runs.

    ask: as it reaches the model. key: for the counts. remote: what the answer says of the other
    host.
    """

    driver: SimDriver
    model: SimModel
    ask: Ask
    key: str
    is_cloud: bool = False
    remote: Mapping[str, str] = field(default_factory=dict)


class Places:
    """Finds the place. cloud: the driver of what ollama.com runs for this host."""

    def __init__(
        self, disk: SimDisk, account: Account, *, local: SimDriver, cloud: SimDriver
    ) -> None:
        self._disk = disk
        self._account = account
        self._local = local
        self._cloud = cloud

    def find(self, ask: Ask, *, is_hidden: bool) -> Place:
        """Where the request runs. is_hidden: as if the model were not there.

        Raises:
            AskError: nowhere.
        """
        if is_cloud(ask.model):
            self._account.require(_UNAVAILABLE, is_native=True)
            return self._remote(ask, replace(ask, model=without_cloud(ask.model)), {})
        listing = None if is_hidden else self._disk.find(ask.model)
        if listing is None:
            raise AskError(404, _not_found(ask))
        if listing.is_stub:
            self._account.require(_UNAVAILABLE)
            return self._remote(ask, ask, listing.remote_fields())
        model = self._disk.model_of(listing)
        # Ollama unloads before it asks what a model can do.
        if model.is_embedder and ask.path in (GENERATE, CHAT) and not ask.is_unload:
            verb = "chat" if ask.path == CHAT else "generate"
            raise AskError(400, f'"{ask.model}" does not support {verb}')
        num_ctx = ask.num_ctx or listing.parameters.get("num_ctx")
        return Place(self._local, model, replace(ask, num_ctx=num_ctx), model.key)

    def _remote(self, written: Ask, ask: Ask, remote: Mapping[str, str]) -> Place:
        return Place(
            self._cloud,
            _CLOUD_MODEL,
            # What it takes to run a model there is not the client's to say.
            replace(ask, num_ctx=None, keep_alive_s=None if not ask.is_unload else 0),
            canonical(written.model),
            is_cloud=True,
            remote=remote,
        )


def cloud_spec(spec: SimSpec) -> SimSpec:
    """What ollama.com has for the requests of one host."""
    return SimSpec(
        id="ollama.com",
        decode_tps=200.0,
        prefill_tps=20_000.0,
        slots=32,
        alpha=0.0,
        models=(_CLOUD_MODEL,),
        resident=(_CLOUD_MODEL.name,),
        keep_alive_s=-1,
        context_length=_CLOUD_MODEL.context_length,
        time_scale=spec.time_scale,
    )


def without_cloud(name: str) -> str:
    """The name that ollama.com knows: `x:cloud` is `x` there, `x:20b-cloud` is `x:20b`."""
    text = name.strip()
    for suffix in (":cloud", "-cloud"):
        if text.lower().endswith(suffix):
            text = text[: -len(suffix)]
    return text


def _not_found(ask: Ask) -> str:
    if ask.path in EMBEDDING_PATHS:
        return f'model "{ask.model}" not found, try pulling it first'
    return f"model '{ask.model}' not found"
