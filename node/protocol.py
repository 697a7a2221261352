"""Which protocol versions this process may follow, and how it ends before others."""

import os
from collections.abc import Mapping

from consensus.versions import GENESIS_VERSION, get_highest_version

EXIT_UPGRADE = 4
"""Of a node that has to be replaced before it can go on; starting it again is of no use."""
LIMIT_VARIABLE = "BMIF_PROTOCOL_LIMIT"
"""Makes this software pass for an older one, in tests and rehearsals of an upgrade. It can only take versions
away: a node with it stops early, and follows no other rules than everybody's."""


class UpgradeRequired(Exception):
    """The chain goes on by rules that this software does not know."""

    def __init__(self, version: int, known: int, height: int) -> None:
        super().__init__(
            f"the block of height {height} obeys protocol version {version}, this software knows versions "
            f"up to {known}: stopped before it. Install a release of bmif that knows version {version} and "
            "start it; the data directory stays as it is"
        )
        self.version = version
        self.height = height


def find_upgrade_required(error: BaseException) -> UpgradeRequired | None:
    """The one among `error` and those of its group."""
    if isinstance(error, UpgradeRequired):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(find_upgrade_required, error.exceptions)), None)
    return None


def get_known_version(environment: Mapping[str, str] = os.environ) -> int:
    """The newest protocol version that this process may follow."""
    limit = environment.get(LIMIT_VARIABLE, "")
    highest = get_highest_version()
    return min(highest, max(GENESIS_VERSION, int(limit))) if limit.isdecimal() else highest
