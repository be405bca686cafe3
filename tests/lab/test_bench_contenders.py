"""nginx and haproxy as the bench starts them, and the configurations in deploy/bench.

Both programs have to be there: `.ci/run` installs them.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from aiohttp import ClientSession

from sollol_proxy.lab.bench_bytes import MODELS
from sollol_proxy.lab.bench_configs import Upstream, haproxy_cfg, nginx_conf
from sollol_proxy.lab.bench_contenders import (
    HAPROXY,
    NGINX,
    RIVALS,
    ContenderFailed,
    Scene,
    configured,
    find_program,
    free_port,
    ours,
    rival,
    running,
)
from sollol_proxy.lab.bench_load import Load
from sollol_proxy.lab.bench_pool import BenchPool
from sollol_proxy.lab.pools import pool
from sollol_proxy.lab.simspec import SimModel, SimSpec
from sollol_proxy.lab.workload import Request

BENCH = Path(__file__).parents[2] / "deploy" / "bench"
FIRST_PORT, NGINX_PORT, HAPROXY_PORT = 21441, 31101, 31102

EVERYWHERE = SimModel("everywhere:1")
RARE = SimModel("rare:1")
SPECS = tuple(
    SimSpec(
        host_id,
        decode_tps=1e6,
        prefill_tps=1e6,
        models=(EVERYWHERE, RARE) if host_id == "c" else (EVERYWHERE,),
        resident=("everywhere:1", "rare:1") if host_id == "c" else ("everywhere:1",),
    )
    for host_id in "abc"
)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with BenchPool(SPECS, speed=1.0) as hosts:
        yield Scene(SPECS, {host.spec.id: host.url for host in hosts.hosts}, 1.0)


def tri() -> list[Upstream]:
    return [
        Upstream(host.id, f"http://127.0.0.1:{FIRST_PORT + place}", host.slots)
        for place, host in enumerate(pool("tri"))
    ]


@pytest.mark.parametrize("name", RIVALS)
async def test_rival_passes_on_requests_and_finds_the_host_that_has_the_model(
    name: str, scene: Scene
) -> None:
    # Bodies that are larger than what nginx and haproxy keep in memory by default.
    requests = [
        Request(f"r{number}", 0.0, (EVERYWHERE, RARE)[number % 2], 5000, 20, 5000)
        for number in range(24)
    ]
    async with rival(name).start(scene, 0) as started:
        load = Load(started.url, 1.0)
        await load.run(requests)
    assert [answer.request.id for answer in load.answers if not answer.ok] == []
    assert len(load.answers) == len(requests)


async def test_our_proxy_is_started_with_the_hosts_up(scene: Scene) -> None:
    async with ours("round_robin").start(scene, 0) as started, ClientSession() as session:
        assert started.pid is not None
        async with session.get(f"{started.url}/sollol/hosts") as response:
            hosts = (await response.json())["hosts"]
        load = Load(started.url, 1.0)
        await load.run([Request("r1", 0.0, RARE, 100, 20, 100)])
    assert {host["id"]: host["url"] for host in hosts} == scene.urls
    assert [answer.ok for answer in load.answers] == [True]


async def test_somebody_elses_proxy_is_taken_as_it_is(scene: Scene) -> None:
    async with running("other", "http://127.0.0.1:9").start(scene, 0) as started:
        assert (started.url, started.pid) == ("http://127.0.0.1:9", None)


def test_program_that_is_missing_is_named() -> None:
    with pytest.raises(ContenderFailed, match="no-such-proxy is not installed"):
        find_program("no-such-proxy")


@pytest.mark.parametrize("name", RIVALS)
async def test_program_that_ends_at_its_start_says_why(name: str) -> None:
    nowhere = Scene(SPECS[:1], {"a": "http://no address"}, 1.0)
    with pytest.raises(ContenderFailed, match=r"ended at its start: .*address"):
        async with rival(name).start(nowhere, 0):
            pass


@pytest.mark.parametrize("models", [frozenset({"a:1"}), frozenset({"a:1", "b:1"})], ids=len)
@pytest.mark.parametrize("name", RIVALS)
def test_configuration_passes_the_programs_own_check(
    name: str, models: frozenset[str], tmp_path: Path
) -> None:
    first, *others = tri()
    hosts = [
        replace(first, models=models),
        *(replace(h, models=frozenset({"a:1"})) for h in others),
    ]
    words = configured(name, hosts, free_port(), tmp_path)
    check = ("-t", *words) if name == NGINX else ("-c", *words)
    done = subprocess.run([find_program(name), *check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower()


def test_haproxy_gives_a_host_no_more_than_its_slots() -> None:
    hosts = [Upstream("a", "http://127.0.0.1:1", 4), Upstream("b", "http://127.0.0.1:2", 1)]
    text = haproxy_cfg(hosts, 3)
    assert "server a 127.0.0.1:1 maxconn 4\n" in text
    assert "server b 127.0.0.1:2 maxconn 1\n" in text


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("nginx.conf", nginx_conf(tri(), NGINX_PORT)),
        ("haproxy.cfg", haproxy_cfg(tri(), HAPROXY_PORT)),
    ],
)
def test_file_in_deploy_is_what_the_bench_writes(file: str, text: str) -> None:
    assert (BENCH / file).read_text() == text


def addresses(file: str) -> Sequence[str]:
    document = yaml.safe_load((BENCH / file).read_text())
    if file.startswith("litellm"):
        bases = [entry["litellm_params"]["api_base"] for entry in document["model_list"]]
        return list(dict.fromkeys(bases))
    return [entry["url"] for entry in document["discovery"]["static"]["endpoints"]]


@pytest.mark.parametrize("file", ["litellm.yaml", "litellm-overhead.yaml", "olla.yaml"])
def test_file_for_others_names_the_same_hosts(file: str) -> None:
    assert addresses(file) == [upstream.url for upstream in tri()]


def test_file_for_overhead_names_every_model_on_every_host() -> None:
    document = yaml.safe_load((BENCH / "litellm-overhead.yaml").read_text())
    named = [
        (entry["model_name"], entry["litellm_params"]["api_base"])
        for entry in document["model_list"]
    ]
    assert named == [(model, upstream.url) for model in MODELS for upstream in tri()]


def test_page_names_the_ports_of_the_files() -> None:
    page = (BENCH / "README.md").read_text()
    for port in (FIRST_PORT, NGINX_PORT, HAPROXY_PORT):
        assert str(port) in page
    assert HAPROXY in page
