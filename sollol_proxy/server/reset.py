"""What was learnt, as the operator may change it."""

from __future__ import annotations

from sollol_proxy.server.services import Services


async def reset_learnt(services: Services) -> None:
    """Begin anew, as if nothing had ever been learnt; in the state file too."""
    services.dispatcher.forget()
    services.journal.calibration.forget()
    if services.keeper is not None:
        await services.keeper.save()
