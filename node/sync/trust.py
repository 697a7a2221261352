"""What the node believes to be final without having judged it: finality proofs of its peers, verified."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from consensus.block import Header
from consensus.codec import CodecError, decode_stored
from consensus.identifiers import compute_block_hash
from consensus.light import (
    MAX_SET_CHANGES,
    ConflictingFinality,
    FinalityProof,
    LightError,
    LightReason,
    LightState,
    SetChange,
    SetProof,
    find_slashable,
    is_expired,
    trust_header,
    update_at_any_age,
)
from consensus.records import ValidatorSet
from consensus.state import VALIDATORS_KEY
from consensus.tree import Tree, TreeError
from consensus.types import Hash32, Height
from consensus.vote import Checkpoint
from node.chain import Chain
from node.clock import Clock
from node.gossip.limits import Fault
from node.gossip.transport import TransportError
from node.protocol import UpgradeRequired
from node.sync.ports import Lacking, Poisoned, SyncNetwork, SyncStopped
from node.sync.state import verify_nodes

logger = logging.getLogger(__name__)

ASKED = 8
"""Peers that are asked for a proof at once."""
ASK_S = 15.0


@dataclass(frozen=True, slots=True)
class Proved:
    """A final checkpoint that peers proved, and what it was proved with."""

    proof: FinalityProof
    changes: tuple[SetChange, ...]
    """From the set that this node knew."""

    @property
    def checkpoint(self) -> Checkpoint:
        return self.proof.checkpoint


class Trust:
    """Starts from the node's own last final block, or from a later checkpoint that its operator gave."""

    def __init__(
        self,
        chain: Chain,
        network: SyncNetwork,
        clock: Clock,
        checkpoint: Checkpoint | None = None,
        *,
        refuses_stale: bool = False,
    ) -> None:
        """`refuses_stale`: believe no proof once the own trust is older than `evidence_ms`."""
        self._chain = chain
        self._network = network
        self._clock = clock
        self._checkpoint = checkpoint
        self._refuses_stale = refuses_stale
        self._given: LightState | None = None
        self._has_warned = False
        self.proved: Proved | None = None
        """The highest so far."""
        self._listeners: list[Callable[[ConflictingFinality], None]] = []
        self.conflict: ConflictingFinality | None = None
        """Two final checkpoints of which none descends from the other; nothing is believed from then on."""

    def get_own(self) -> LightState:
        """What the node's own chain says."""
        chain = self._chain
        final = chain.finalized
        header = chain.get_header(final.hash)
        if header is None:
            raise KeyError(f"the final block {final.hash.hex()} is not in the ledger")
        return LightState(chain.chain_id, header, chain.get_state(final.hash).get_validator_set())

    def check_checkpoint(self) -> None:
        """Raises: SyncStopped if the own chain does not hold the operator's checkpoint where it must."""
        given, chain = self._checkpoint, self._chain
        if given is None or chain.finalized.height < given.height:
            return
        found = chain.get_hash_by_height(given.height)
        if found != given.hash:
            raise SyncStopped(
                f"the final chain of this node holds {'nothing' if found is None else found.hex()} at height "
                f"{given.height}, trusted_checkpoint says {given.hash.hex()}: correct the setting, or "
                "synchronise again with an empty data directory"
            )

    async def refresh(self, peers: Sequence[str]) -> Proved | None:
        """The highest final checkpoint above the own one that any of the peers proves.

        Whoever sends a proof that does not hold is blamed. Raises: SyncStopped where nothing may be believed,
        UpgradeRequired where what is proved obeys rules that are not known here.
        """
        if self.conflict is not None:
            raise SyncStopped(f"{self.conflict}: an operator has to say which chain is right")
        self.check_checkpoint()
        anchor = await self._get_anchor(peers)
        found = await asyncio.gather(*(self._ask(peer, anchor) for peer in peers[:ASKED]))
        best = max(
            (proved for proved in found if proved is not None),
            key=lambda proved: proved.checkpoint.height,
            default=None,
        )
        if best is not None:
            for proved in found:
                if proved is not None and proved.checkpoint.height == best.checkpoint.height:
                    self._compare(best, proved)
            self.proved = best
        return best

    def _compare(self, first: Proved, second: Proved) -> None:
        if first.checkpoint != second.checkpoint:
            detail = f"two blocks at height {first.checkpoint.height}"
            self.report_conflict(ConflictingFinality(first.proof, second.proof, detail))

    def on_conflict(self, listener: Callable[[ConflictingFinality], None]) -> None:
        """Call `listener` with every conflict."""
        self._listeners.append(listener)

    def report_conflict(self, conflict: ConflictingFinality) -> None:
        """Remember it and stop. Raises: SyncStopped."""
        self.conflict = conflict
        culprits = () if conflict.first is None else find_slashable(conflict.first, conflict.second)
        logger.critical(
            "%s; votes convict by themselves: %s",
            conflict,
            ", ".join(pair[0].validator.hex() for pair in culprits) or "nobody",
        )
        for listener in self._listeners:
            listener(conflict)
        raise SyncStopped(str(conflict))

    async def _get_anchor(self, peers: Sequence[str]) -> LightState:
        own = self.get_own()
        given = self._checkpoint
        if given is not None and given.height > own.trusted.height:
            if self._given is None:
                self._given = await self._fetch_given(peers, given)
            return self._given
        self._check_age(own)
        return own

    def _check_age(self, own: LightState) -> None:
        params = self._chain.params
        if not is_expired(own, self._clock.now_ms(), params.evidence_ms):
            return
        what = (
            f"the last final block here, at height {own.trusted.height}, is older than evidence_ms "
            f"({params.evidence_ms / 3_600_000:g} h): validators of that time may have left with their stake"
        )
        if self._refuses_stale:
            raise SyncStopped(
                f"{what}; set trusted_checkpoint to a recent HEIGHT:HASH from somebody you trust"
            )
        if own.trusted.height and not self._has_warned:
            self._has_warned = True
            logger.warning("%s; if in doubt, set trusted_checkpoint to a recent HEIGHT:HASH", what)

    async def _ask(self, peer: str, anchor: LightState) -> Proved | None:
        """What a peer proves above the anchor, verified."""
        try:
            async with asyncio.timeout(ASK_S):
                changes, proof = await self._request(peer, anchor.validators.number)
        except (TransportError, TimeoutError, Lacking) as error:
            logger.debug("no finality proof of %s: %s", peer, error)
            return None
        try:
            update_at_any_age(anchor, changes, proof, known=self._chain.known_version)
        except ConflictingFinality as conflict:
            self.report_conflict(conflict)
        except LightError as error:
            if error.reason is LightReason.VERSION:
                # Proved, so it is no lie: this software can't follow the chain any more.
                raise UpgradeRequired(
                    proof.source.version, self._chain.known_version, proof.source.height
                ) from error
            if error.reason is not LightReason.REGRESS:
                logger.warning("%s sent a finality proof that does not hold: %s", peer, error)
                self._network.report(peer, Fault.INVALID_OBJECT, f"a finality proof: {error}")
            return None
        proved = Proved(proof, tuple(changes))
        return proved if proved.checkpoint.height > self._chain.finalized.height else None

    async def _request(self, peer: str, number: int) -> tuple[list[SetChange], FinalityProof]:
        changes: list[SetChange] = []
        while len(changes) <= MAX_SET_CHANGES:
            reply = await self._network.request_finality(peer, number)
            changes += reply.changes
            if reply.proof is not None:
                return changes, reply.proof
            if not reply.changes:
                break
            number += len(reply.changes)
        raise Lacking(f"{peer} proves nothing from set {number} on")

    # --- the operator's checkpoint ------------------------------------------------------------

    async def _fetch_given(self, peers: Sequence[str], given: Checkpoint) -> LightState:
        """The header of a given hash and the set in its state, from whichever peer has them."""
        for peer in peers:
            try:
                async with asyncio.timeout(ASK_S):
                    return await self._fetch_given_from(peer, given)
            except (TransportError, TimeoutError, Lacking, Poisoned, LightError) as error:
                logger.debug("no trusted checkpoint of %s: %s", peer, error)
        raise SyncStopped(
            f"no peer holds the trusted checkpoint: block {given.hash.hex()} at height {given.height}"
        )

    async def _fetch_given_from(self, peer: str, given: Checkpoint) -> LightState:
        reply = await self._network.request_headers(peer, given.height, 1)
        headers = [signed.header for signed in reply.headers[:1]]
        if not headers or _name(headers[0]) != given or headers[0].chain_id != self._chain.chain_id:
            raise Lacking(f"{peer} is on another chain or not so far")
        nodes: dict[Hash32, bytes] = {}
        tree = Tree(headers[0].state_root, _Nodes(nodes))
        missing: Hash32 | None = headers[0].state_root
        while missing is not None:
            state = await self._network.request_state(peer, (missing,))
            accepted, _ = verify_nodes(self._network, peer, (missing,), state.nodes)
            nodes.update(accepted)
            missing = _find_missing(tree, nodes)
        value = tree.get(VALIDATORS_KEY)
        try:
            validators = decode_stored(ValidatorSet, value or b"")
        except CodecError as error:
            raise Lacking(f"the state at height {given.height} has no validators") from error
        proof = SetProof(validators, tree.get_proof(VALIDATORS_KEY))
        known = self._chain.known_version
        try:
            return trust_header(headers[0], proof, known)
        except LightError as error:
            if error.reason is LightReason.VERSION:
                raise UpgradeRequired(headers[0].version, known, headers[0].height) from error
            raise


class _Missing(Exception):
    def __init__(self, node: Hash32) -> None:
        self.node = node


class _Nodes:
    def __init__(self, nodes: dict[Hash32, bytes]) -> None:
        self._nodes = nodes

    def get_node(self, node_hash: Hash32) -> bytes | None:
        if node_hash not in self._nodes:
            raise _Missing(node_hash)
        return self._nodes[node_hash]


def _find_missing(tree: Tree, nodes: dict[Hash32, bytes]) -> Hash32 | None:
    """The next node on the way to the validator set that is not here."""
    try:
        tree.get(VALIDATORS_KEY)
    except _Missing as missing:
        return missing.node
    except TreeError as error:
        raise Lacking(str(error)) from error
    return None


def _name(header: Header) -> Checkpoint:
    return Checkpoint(Height(header.height), compute_block_hash(header))
