"""Whether a node can serve: each criterion by name, with what was found.

An idle chain makes no blocks, so the age of its head says nothing: it counts only while a block with
transactions or work waits to be final, for then the chain has to move on.
"""

from dataclasses import dataclass

from consensus.finality import is_finality_wanted
from node.api.view import Criterion, Readiness
from node.core import Core
from node.ledger.schema import LedgerError
from node.ledger.store import StoreError
from node.settings import ReadySettings
from node.sync.ports import Phase, SyncProgress
from node.upgrade import get_protocol_status


@dataclass(frozen=True, slots=True)
class Links:
    """What is known of peers at one moment."""

    configured: int
    """Peers and seeds to dial."""
    connected: int
    best_height: int
    """Greatest height at a linked peer, at least the head's."""


class ReadinessJudge:
    """Judges one node, at any moment anew; keeps nothing but when the node came up."""

    def __init__(self, core: Core, settings: ReadySettings | None = None) -> None:
        self._core = core
        self._settings = settings or ReadySettings()
        self._started = core.clock.monotonic()

    def judge(self, links: Links, progress: SyncProgress | None) -> Readiness:
        """All criteria in the order in which a starting node meets them; `voting` never blocks."""
        criteria = (
            self._judge_draining(),
            self._judge_ledger(),
            self._judge_recovery(progress),
            self._judge_lag(links),
            self._judge_tip(),
            self._judge_peers(links),
            self._judge_clock(),
            self._judge_disk(),
            self._judge_voting(),
            self._judge_protocol(),
        )
        missing = tuple(item.detail for item in criteria if item.blocking and not item.ok)
        return Readiness(not missing, missing, criteria)

    def _judge_draining(self) -> Criterion:
        drain = self._core.drain
        if not drain.is_draining:
            return Criterion("draining", True, "takes new work")
        return Criterion("draining", False, f"draining: takes no new work; under way: {drain.describe()}")

    def _judge_ledger(self) -> Criterion:
        chain = self._core.chain
        try:
            found = chain.ledger.get_hash_by_height(chain.head.height)
        except (LedgerError, StoreError) as error:
            return Criterion("ledger", False, f"the ledger can't be read: {error}")
        is_head = found == chain.head_hash
        return Criterion("ledger", is_head, "open" if is_head else "the ledger does not hold the head")

    def _judge_recovery(self, progress: SyncProgress | None) -> Criterion:
        phase = Phase.IDLE if progress is None else progress.phase
        if not self._core.takes_blocks or phase is Phase.STATE:
            return Criterion("recovery", False, f"recovering: takes over a proved state ({phase.value})")
        return Criterion("recovery", True, f"done; synchronising: {phase.value}")

    def _judge_lag(self, links: Links) -> Criterion:
        lag, most = links.best_height - self._core.chain.head.height, self._settings.lag_blocks
        if lag > most:
            return Criterion("lag", False, f"syncing: {lag} blocks behind the best peer (at most {most})")
        return Criterion("lag", True, f"{lag} blocks behind the best peer (at most {most})")

    def _judge_tip(self) -> Criterion:
        """A node that has just come up is given as long as one that ran."""
        chain, clock, most = self._core.chain, self._core.clock, self._settings.tip_age_s
        age = max(0.0, (clock.now_ms() - chain.head.time) / 1000)
        if not is_finality_wanted(chain.head_state):
            return Criterion("tip_age", True, f"head of {age:.0f} s ago; nothing waits to be final")
        stalled = min(age, clock.monotonic() - self._started)
        if most and stalled > most:
            return Criterion(
                "tip_age", False, f"stalled: head of {age:.0f} s ago, and a block waits to be final"
            )
        return Criterion("tip_age", True, f"head of {age:.0f} s ago (at most {most:g} while a block waits)")

    def _judge_peers(self, links: Links) -> Criterion:
        least = self._settings.min_peers if links.configured else 0
        is_enough = links.connected >= least
        detail = f"{links.connected} peers are linked (at least {least})"
        return Criterion("peers", is_enough, detail if is_enough else f"alone: {detail}")

    def _judge_disk(self) -> Criterion:
        try:
            room = self._core.blobs.measure_room()
        except OSError as error:
            return Criterion("disk", False, f"the disk can't be looked at: {error}")
        return Criterion("disk", room.is_enough, ("" if room.is_enough else "disk: ") + room.describe())

    def _judge_clock(self) -> Criterion:
        watch = self._core.skew
        skew = None if watch is None else watch.get_skew()
        if watch is None or skew is None:
            return Criterion("clock", True, "no peer's clock is known yet")
        detail = f"{skew.describe()} (at most {watch.limit_ms / 1000:g} s)"
        is_right = not watch.is_out_of_step
        return Criterion("clock", is_right, detail if is_right else f"clock skew: {detail}")

    def _judge_protocol(self) -> Criterion:
        """Blocks at the height itself only: until then the node serves as well as any."""
        status = get_protocol_status(self._core.chain)
        is_due = status.version > status.known
        return Criterion("protocol", status.is_known, status.describe(), blocking=is_due)

    def _judge_voting(self) -> Criterion:
        voting = self._core.voting
        detail = voting.state.value + (f": {voting.detail}" if voting.detail else "")
        return Criterion("voting", voting.state.value in ("none", "voting"), detail, blocking=False)
