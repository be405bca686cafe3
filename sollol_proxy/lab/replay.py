"""`sollol-proxy replay`: the decision log played again, in virtual time.

The hosts are rebuilt from what the log shows of them. Played with the log's own policy, the figures
should be those of the log: how far they are off is how far the rest can be trusted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sollol_proxy.config.schema import Config
from sollol_proxy.core.policies import POLICIES
from sollol_proxy.errors import ConfigError
from sollol_proxy.lab.replay_hosts import LoggedSpec, models_of, rebuild
from sollol_proxy.lab.replay_log import LogError, read
from sollol_proxy.lab.replay_report import change, figures, heading, in_words, percent, table, trust
from sollol_proxy.lab.replay_run import logged, play
from sollol_proxy.lab.replay_setup import as_logged, asked_for, configured, policy_of
from sollol_proxy.lab.replay_suggest import Suggestion, suggest
from sollol_proxy.lab.simulate_report import aligned

REQUESTS = 5000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument(
        "logs", metavar="LOG", nargs="+", help="decision log; several: the oldest first"
    )
    parser.add_argument("--config", metavar="FILE", help="what it would have been with this")
    parser.add_argument(
        "--policy", metavar="NAME", help=f"or with this policy: one of {', '.join(POLICIES)}"
    )
    parser.add_argument(
        "--suggest", action="store_true", help="try other policies, ageing, boost and slots"
    )
    parser.add_argument(
        "--requests",
        metavar="N",
        type=_positive,
        default=REQUESTS,
        help=f"the last N of the log; default {REQUESTS}",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures; - = stdout")


def run(options: argparse.Namespace) -> int:
    """Replay what the arguments ask for; the exit code.

    Raises:
        OSError: the figures cannot be written.
    """
    try:
        return _run(options)
    except LogError as error:
        sys.stderr.write(f"sollol-proxy replay: {error}\n")
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
    return 2


def _run(options: argparse.Namespace) -> int:
    log = read(options.logs, options.requests)
    entries = log.entries
    models = models_of(entries)
    hosts = rebuild(entries, models)
    asked = asked_for(options.config, options.policy)
    config = Config(policy=policy_of(entries, asked))
    setup = as_logged(config, hosts)
    present = play(entries, models, setup)
    runs = {"logged": figures(logged(entries)), "replayed": figures(present)}
    document: dict[str, Any] = {
        "requests": len(entries),
        "broken_lines": len(log.broken),
        "left_out": dict(log.left_out),
        "policy": config.policy,
        "hosts": [_host_json(host) for host in hosts],
        **runs,
    }
    ends = [trust(runs["logged"], runs["replayed"])]
    if asked is not None:
        before, setup = present, configured(setup, asked)
        present = play(entries, models, setup)
        changed = change(before, present)
        name = f"--config {options.config}" if options.config else f"--policy {options.policy}"
        runs[name] = figures(present)
        ends.append(in_words(name, changed, len(entries)))
        document["changed"] = {"policy": asked.policy, **runs[name], **changed}
    if options.suggest:
        found = suggest(entries, models, setup, present)
        document["suggestions"] = [_suggestion_json(each) for each in found]
        ends.append(_suggested(found))
    _write(options.json, document)
    if options.json != "-":
        begins = [heading(log, len(hosts), len(models)), table(runs)]
        sys.stdout.write("\n\n".join([*begins, *ends]) + "\n")
    return 0


def _suggested(found: Sequence[Suggestion]) -> str:
    better = [each for each in found if each.is_better]
    if not better:
        return f"None of {len(found)} other setups would have served this log noticeably better."
    rows = [["would have been better", "mean", "p95", "mean", "p95"]]
    rows += [
        [
            each.text,
            f"{each.figures['mean_s']:.2f} s",
            f"{each.figures['p95_s']:.2f} s",
            percent(each.against["mean_ratio"]),
            percent(each.against["p95_ratio"]),
        ]
        for each in better
    ]
    return (
        f"{aligned(rows)}\n"
        f"Of {len(found)} setups tried. Estimates from this log alone; more slots need as many on "
        "the host (OLLAMA_NUM_PARALLEL) and memory for them."
    )


def _suggestion_json(each: Suggestion) -> dict[str, Any]:
    changes = {change.key: change.value for change in each.changes}
    return {"changes": changes, "is_better": each.is_better, **each.figures, **each.against}


def _host_json(host: LoggedSpec) -> dict[str, Any]:
    return {
        "id": host.id,
        "slots": host.slots,
        "alpha": round(host.alpha, 4),
        "models": {
            model: {
                "prefill_tokens_per_s": round(pace.prefill_tps, 3),
                "decode_tokens_per_s": round(pace.decode_tps, 3),
                "load_s": round(pace.load_s, 3),
            }
            for model, pace in sorted(host.paces.items())
        },
    }


def _write(name: str | None, document: Mapping[str, Any]) -> None:
    if name is None:
        return
    text = json.dumps(document, indent=2) + "\n"
    if name == "-":
        sys.stdout.write(text)
    else:
        Path(name).write_text(text, encoding="utf-8")


def _positive(value: str) -> int:
    if not value.isascii() or not value.isdecimal() or not int(value):
        raise argparse.ArgumentTypeError(f"{value!r} is no number above 0")
    return int(value)
