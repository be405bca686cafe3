"""What every test starts from: an environment that says nothing, and no deadlines by the clock."""

from __future__ import annotations

import os

from hypothesis import settings

# A slow machine is not a failure; a property either holds or does not.
settings.register_profile("sollol", deadline=None, print_blob=True)
settings.load_profile("sollol")

# What the caller's shell sets must not decide what a test sees: addresses of hosts, keys, and
# proxies that a client library would take for 127.0.0.1.
for _name in list(os.environ):
    if _name.startswith(("SOLLOL_", "OLLAMA_")) or _name.lower() in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ):
        del os.environ[_name]
