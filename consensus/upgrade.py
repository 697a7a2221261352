"""Protocol upgrades by height: what governance schedules, and which rules a block obeys.

The state lists every upgrade there was or will be, so the version of a block follows from its parent's state
alone. Nothing is stored until the first upgrade is scheduled: until then version 1 is in force.
"""

from itertools import takewhile

from consensus.context import BlockContext
from consensus.errors import InvalidBlock, InvalidTransaction, Reason
from consensus.params import ChainParams
from consensus.payload import CancelUpgrade, ScheduleUpgrade
from consensus.records import Upgrade
from consensus.state import State
from consensus.types import Hash32, Height, Millis
from consensus.versions import GENESIS_VERSION, VERSIONS, ProtocolVersion, get_highest_version

MIN_NOTICE = 8
"""Blocks; a change is final well before."""
MAX_NOTICE = 2**24
"""Blocks; a height further ahead is a slip of the pen."""
MAX_VERSION = 2**16


class UnknownVersion(InvalidBlock):
    """The block is of a protocol version that this software does not know; nobody is at fault."""

    def __init__(self, version: int, known: int, height: int | None = None) -> None:
        at = "" if height is None else f" at height {height}"
        detail = f"protocol version {version}{at}, this software knows up to {known}"
        super().__init__(Reason.B2_UNKNOWN_VERSION, detail, peer_at_fault=False)
        self.version = version
        self.height = height


def compute_notice(params: ChainParams) -> int:
    """Least number of blocks from the one that schedules or cancels an upgrade to the upgrade.

    It is `evidence_ms` of the quickest blocks: nodes can be replaced, and who objects can leave the set.
    """
    return max(MIN_NOTICE, -(-params.evidence_ms // params.min_block_ms))


# --- which rules ------------------------------------------------------------------------------


def get_version_at(state: State, height: int) -> int:
    """The version in force at a height, as far as this state knows."""
    begun = takewhile(lambda upgrade: upgrade.height <= height, state.get_upgrades())
    return max((upgrade.version for upgrade in begun), default=GENESIS_VERSION)


def get_next_upgrade(state: State, height: int) -> Upgrade | None:
    """The upgrade scheduled for a height above this one; there is at most one."""
    return next((upgrade for upgrade in state.get_upgrades() if upgrade.height > height), None)


def get_rules_at(state: State, height: int, known: int | None = None) -> ProtocolVersion:
    """The rules of a block of this height, by its parent's state; none above `known` counts as known.

    Raises: UnknownVersion.
    """
    version, most = get_version_at(state, height), get_highest_version()
    if known is not None:
        most = min(most, known)
    if version > most:
        raise UnknownVersion(version, most, height)
    return VERSIONS[version]


def get_nearest_rules(state: State, height: int) -> ProtocolVersion:
    """The rules of a block of this height, or the newest that are known: to judge what is worth keeping until
    there is such a block, never to judge one."""
    return VERSIONS[min(get_version_at(state, height), get_highest_version())]


def build_context(
    state: State,
    height: Height,
    time: Millis,
    params: ChainParams,
    chain_id: Hash32,
    known: int | None = None,
) -> BlockContext:
    """What the block of this height is, by its parent's state.

    Raises: UnknownVersion.
    """
    return BlockContext(height, time, params, chain_id, get_rules_at(state, height, known))


# --- governance -------------------------------------------------------------------------------


def _require(condition: bool, reason: Reason, detail: str) -> None:
    if not condition:
        raise InvalidTransaction(reason, detail)


def apply_schedule(state: State, action: ScheduleUpgrade, ctx: BlockContext) -> State:
    """The state with one more upgrade to come.

    Raises: InvalidTransaction.
    """
    current = get_version_at(state, ctx.height)
    is_later = current < action.version <= MAX_VERSION
    _require(is_later, Reason.UPGRADE_VERSION, f"version {action.version}: {current} is in force")
    notice = compute_notice(ctx.params)
    earliest, latest = ctx.height + notice, ctx.height + max(notice, MAX_NOTICE)
    is_ahead = earliest <= action.height <= latest
    _require(is_ahead, Reason.UPGRADE_HEIGHT, f"height {action.height} is not from {earliest} to {latest}")
    waiting = get_next_upgrade(state, ctx.height)
    if waiting is not None:
        detail = f"version {waiting.version} at height {waiting.height}: cancel it first"
        raise InvalidTransaction(Reason.UPGRADE_PENDING, detail)
    return state.with_upgrades((*state.get_upgrades(), Upgrade(action.version, action.height)))


def apply_cancel(state: State, action: CancelUpgrade, ctx: BlockContext) -> State:
    """The state without the upgrade to come, if it is this one and there is notice left.

    Raises: InvalidTransaction.
    """
    waiting = get_next_upgrade(state, ctx.height)
    is_it = waiting == Upgrade(action.version, action.height)
    _require(is_it, Reason.UPGRADE_UNKNOWN, f"version {action.version} at height {action.height}")
    latest = action.height - compute_notice(ctx.params)
    _require(ctx.height <= latest, Reason.UPGRADE_NOTICE, f"it stands since height {latest + 1}")
    return state.with_upgrades(state.get_upgrades()[:-1])
