"""Pools to aim real clients at: the proxy's command in front of hosts in their own processes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ollama import Client

from sollol_proxy.lab.engine import CHAT_MODEL, EMBEDDING_MODEL
from sollol_proxy.lab.simhost import SimModel, SimSpec
from tests.e2e.processes import LabHost, Proxy, lab_hosts, serving

# Keys and addresses that a developer has for real services must not be used, or sent, here.
for _name in list(os.environ):
    if _name.startswith(("OPENAI_", "ANTHROPIC_", "LANGCHAIN_", "LANGSMITH_", "LLM_USER_")):
        del os.environ[_name]


@dataclass(frozen=True)
class Pool:
    """A proxy, its hosts, and the two models that all of them have."""

    proxy: Proxy
    hosts: tuple[LabHost, ...]
    chat_model: str
    embed_model: str

    @property
    def url(self) -> str:
        """Of the proxy."""
        return self.proxy.url

    def unload_everywhere(self) -> None:
        """Take the chat model out of every host's memory, whatever earlier tests left there."""
        for host in self.hosts:
            with Client(host.url) as client:
                client.generate(self.chat_model, keep_alive=0)
        self.proxy.until_not_resident(self.chat_model)


# 5,000 tokens a second: an answer takes milliseconds, `ENDLESS` outlasts every test.
TIME_SCALE = 50.0
ENDLESS_TOKENS = 1_000_000

SIM_MODELS = (
    SimModel("llama3:latest"),
    SimModel("all-minilm:latest", size_bytes=46_000_000, capabilities=("embedding",)),
)


def sim_arguments(host_id: str) -> list[str]:
    spec = SimSpec(id=host_id, models=SIM_MODELS, time_scale=TIME_SCALE)
    return ["--spec", spec.to_json()]


@pytest.fixture(scope="session")
def sim_hosts() -> Iterator[tuple[LabHost, ...]]:
    with lab_hosts("sollol_proxy.lab.simhost", [sim_arguments("a"), sim_arguments("b")]) as hosts:
        yield hosts


@pytest.fixture(scope="session")
def lasting_sim_pool(
    sim_hosts: tuple[LabHost, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pool]:
    directory = tmp_path_factory.mktemp("sim-pool")
    with serving(directory, [host.url for host in sim_hosts]) as proxy:
        yield Pool(proxy, sim_hosts, "llama3:latest", "all-minilm:latest")


@pytest.fixture
def sim_pool(lasting_sim_pool: Pool) -> Pool:
    """Two simulated hosts of one slot, well and idle."""
    for host in lasting_sim_pool.hosts:
        host.clear()
    lasting_sim_pool.proxy.until_up()
    lasting_sim_pool.proxy.until_idle()
    return lasting_sim_pool


@pytest.fixture(scope="session")
def lasting_real_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with (
        lab_hosts("sollol_proxy.lab.engine", [[], []]) as hosts,
        serving(tmp_path_factory.mktemp("real-pool"), [host.url for host in hosts]) as proxy,
    ):
        yield Pool(proxy, hosts, CHAT_MODEL, EMBEDDING_MODEL)


@pytest.fixture
def real_pool(lasting_real_pool: Pool) -> Pool:
    """Two hosts that run a tiny real model each, idle."""
    lasting_real_pool.proxy.until_up()
    lasting_real_pool.proxy.until_idle()
    return lasting_real_pool


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.real_model)])
def pool(request: pytest.FixtureRequest) -> Pool:
    """Each kind of pool in turn."""
    name = "sim_pool" if request.param == "simulated" else "real_pool"
    found: Pool = request.getfixturevalue(name)
    return found


@pytest.fixture(scope="session")
def lasting_small_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    directory = tmp_path_factory.mktemp("small-pool")
    with (
        lab_hosts("sollol_proxy.lab.simhost", [sim_arguments("only")]) as hosts,
        serving(directory, [hosts[0].url], queue={"max_waiting": 0}) as proxy,
    ):
        yield Pool(proxy, hosts, "llama3:latest", "all-minilm:latest")


@pytest.fixture
def small_pool(lasting_small_pool: Pool) -> Pool:
    """One host of one slot, and nobody may wait."""
    lasting_small_pool.proxy.until_up()
    lasting_small_pool.proxy.until_idle()
    return lasting_small_pool


@pytest.fixture(scope="session")
def proxy_without_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Its only host does not listen."""
    with socket.socket() as taken:
        # Bound and not listening: connections are refused, and nobody else gets the port.
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        directory: Path = tmp_path_factory.mktemp("no-hosts")
        with serving(directory, [url], queue={"no_host_wait": "0s"}) as proxy:
            yield proxy
