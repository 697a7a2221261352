"""The protocol versions that this software knows: one row for each, one field for each rule that differs.

A rule that changes reads its field (`ctx.rules.plain_names`) and never compares numbers, so that a row says
all that its version changes. Rows are only ever added: blocks are judged by the rules of their height for
ever. Which version is in force at a height is written in the state (`consensus.upgrade`).
"""

from dataclasses import dataclass, replace

GENESIS_VERSION = 1
"""Of every chain's first blocks; a later one is scheduled by governance."""


@dataclass(frozen=True, slots=True)
class ProtocolVersion:
    """The rules of one version, as far as versions differ."""

    number: int
    title: str
    """What it changes, for operators."""
    plain_names: bool
    """Organisations are named without control characters and without spaces at either end, so that two that
    look alike are not two."""


_FIRST = ProtocolVersion(GENESIS_VERSION, "the first rules", plain_names=False)

VERSIONS: dict[int, ProtocolVersion] = {
    version.number: version
    for version in (
        _FIRST,
        replace(
            _FIRST,
            number=2,
            title="names of organisations without control characters and outer spaces",
            plain_names=True,
        ),
    )
}
"""By number, without gaps: who knows a version knows all before it."""


def get_highest_version() -> int:
    """The newest that this software knows."""
    return max(VERSIONS)
