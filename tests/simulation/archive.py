"""Everything that was ever sent in one run, each thing judged once by the rules and shared by all nodes.

What a node may add to a judgement is only its own: its clock (B3), the blobs it holds (W4), and which blocks
it knows. Blocks are told apart by their bytes and not by their hash, since a hash covers neither the
signature nor, in a false block, the body.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from types import ModuleType

import consensus.claims
import consensus.governance
import consensus.state
import consensus.transaction
import consensus.transition
import consensus.tree
import consensus.validation
import consensus.vote
from consensus import crypto
from consensus.block import Block, Header
from consensus.codec import decode_stored, encode
from consensus.errors import ConsensusError, InvalidBlock, InvalidTransaction, Reason
from consensus.genesis import build_genesis_header, build_genesis_state
from consensus.identifiers import compute_block_hash, compute_chain_id, compute_opening_hash
from consensus.params import Genesis
from consensus.settlement import LIVING
from consensus.state import State, TaskState
from consensus.task import OpenGradient, OpenLoss
from consensus.transaction import SignedTransaction
from consensus.types import Address, Hash32, Signature
from consensus.vote import Vote, is_slashable
from consensus.work import LossCheck, WorkVerdict
from tests.simulation.truth import compute_loss_ciphertext

MODULES: tuple[ModuleType, ...] = (
    consensus.claims,
    consensus.governance,
    consensus.transaction,
    consensus.transition,
    consensus.validation,
    consensus.vote,
)
"""Those that verify signatures."""

MAX_REMEMBERED = 8_192
"""Bytes of a record that is worth keeping: with many validators those of checkpoints are large and many."""


@contextmanager
def remember() -> Iterator[None]:
    """Within it pure functions of bytes are computed once for all nodes; the rules themselves are untouched.

    Signatures are verified, records decoded and places in the state tree hashed once a run.
    """
    known: dict[tuple[Address, str, bytes, Signature], bool] = {}
    records: dict[tuple[object, bytes], object] = {}

    def verify(address: Address, tag: str, data: bytes, signature: Signature) -> bool:
        key = (address, tag, data, signature)
        result = known.get(key)
        if result is None:
            result = known[key] = crypto.verify(address, tag, data, signature)
        return result

    def decode(cls: type[object], data: bytes) -> object:
        if len(data) > MAX_REMEMBERED:
            return decode_stored(cls, data)
        key = (cls, data)
        result = records.get(key)
        if result is None:
            result = records[key] = decode_stored(cls, data)
        return result

    patches: list[tuple[ModuleType, str, object]] = [(module, "verify", verify) for module in MODULES]
    patches.append((consensus.state, "decode_stored", decode))
    patches.append((consensus.tree, "_compute_path", lru_cache(maxsize=None)(consensus.tree._compute_path)))
    before = [module.__dict__[name] for module, name, _ in patches]
    for module, name, new in patches:
        module.__dict__[name] = new
    try:
        yield
    finally:
        for (module, name, _), original in zip(patches, before, strict=True):
            module.__dict__[name] = original


class Violation(AssertionError):
    """An invariant of the simulator is broken."""


@dataclass(slots=True, eq=False)
class VoteItem:
    vote: Vote
    size: int
    is_valid: bool
    rivals: list["VoteItem"] = field(default_factory=list)
    """Votes of the run that are slashable together with this one."""


@dataclass(slots=True, eq=False)
class TransactionItem:
    transaction: SignedTransaction
    size: int
    problem: Reason | None
    """Why it is refused whatever the state."""
    rivals: list["TransactionItem"] = field(default_factory=list)
    """Openings of the same step that differ."""


@dataclass(slots=True, eq=False)
class BlockItem:
    block: Block
    header: Header
    hash: Hash32
    size: int
    parent: Hash32
    votes: tuple[VoteItem, ...]
    transactions: tuple[TransactionItem, ...]
    problem: InvalidBlock | None = None
    state: State | None = None
    tasks: tuple[tuple[Hash32, TaskState], ...] | None = None

    def get_state(self) -> State:
        if self.state is None:
            raise Violation(f"block {self.hash.hex()[:8]} was used before it was judged")
        return self.state


class TrueVerifier:
    """Knows every loss ciphertext; whether a node has the blobs is asked apart."""

    def get_verdict(self, check: LossCheck) -> WorkVerdict:
        return WorkVerdict(check, compute_loss_ciphertext(check.task, check.step, check.weights))


Observer = Callable[[BlockItem, BlockItem], None]
"""Told of every valid block with its parent."""


class Archive:
    """The run's blocks, votes and transactions."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        self.params = genesis.params
        self.chain_id = compute_chain_id(genesis)
        state = build_genesis_state(genesis)
        header = build_genesis_header(genesis, state)
        block = Block(header, Signature(bytes(64)), consensus.block.Body((), None, ()))
        self.genesis_item = BlockItem(block, header, compute_block_hash(header), 0, header.parent, (), ())
        self.genesis_item.state = state
        self.valid: dict[Hash32, BlockItem] = {self.genesis_item.hash: self.genesis_item}
        self.openings: dict[Hash32, tuple[OpenGradient | OpenLoss, Signature]] = {}
        """Openings that any valid block holds, by hash."""
        self.observers: list[Observer] = []
        self.reasons: dict[str, int] = {}
        """How often each rule refused something new."""
        self._blocks: dict[bytes, BlockItem] = {}
        self._votes: dict[bytes, VoteItem] = {}
        self._votes_by_validator: dict[Address, list[VoteItem]] = {}
        self._transactions: dict[bytes, TransactionItem] = {}
        self._openings: dict[tuple[Address, Hash32, int, bool], list[TransactionItem]] = {}
        self._verifier = TrueVerifier()

    def count_reason(self, reason: Reason) -> None:
        if not isinstance(reason, Reason):
            raise Violation(f"a refusal without a reason: {reason!r}")
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    # --- what is sent -------------------------------------------------------------------------

    def add_vote(self, vote: Vote) -> VoteItem:
        key = encode(vote)
        item = self._votes.get(key)
        if item is None:
            is_valid = consensus.vote.verify_vote(self.chain_id, vote)
            item = self._votes[key] = VoteItem(vote, len(key), is_valid)
            if is_valid:
                others = self._votes_by_validator.setdefault(vote.validator, [])
                for other in others:
                    if is_slashable(vote, other.vote):
                        item.rivals.append(other)
                        other.rivals.append(item)
                others.append(item)
        return item

    def add_transaction(self, transaction: SignedTransaction) -> TransactionItem:
        encoded = encode(transaction)
        key = sha256(encoded).digest()
        item = self._transactions.get(key)
        if item is None:
            problem = None
            try:
                consensus.transition.check_transaction(transaction, self.chain_id)
            except InvalidTransaction as error:
                problem = error.reason
                self.count_reason(error.reason)
            item = self._transactions[key] = TransactionItem(transaction, len(encoded), problem)
            payload = transaction.payload
            if problem is None and isinstance(payload, OpenGradient | OpenLoss):
                place = (transaction.sender, payload.task, payload.step, isinstance(payload, OpenLoss))
                others = self._openings.setdefault(place, [])
                for other in others:
                    item.rivals.append(other)
                    other.rivals.append(item)
                others.append(item)
        return item

    def add_block(self, block: Block) -> BlockItem:
        encoded = encode(block)
        key = sha256(encoded).digest()
        item = self._blocks.get(key)
        if item is None:
            header = block.header
            item = self._blocks[key] = BlockItem(
                block,
                header,
                compute_block_hash(header),
                len(encoded),
                header.parent,
                tuple(self.add_vote(vote) for vote in block.body.votes),
                tuple(self.add_transaction(transaction) for transaction in block.body.transactions),
            )
        return item

    # --- judgement ----------------------------------------------------------------------------

    def judge(self, item: BlockItem) -> State:
        """The state after a block whose parent is valid.

        Raises: InvalidBlock; Violation if the rules raise anything else.
        """
        if item.problem is not None:
            raise item.problem
        if item.state is not None:
            return item.state
        parent = self.valid[item.parent]
        try:
            item.state = consensus.validation.validate_block(
                parent.header, parent.get_state(), item.block, self.params, self.chain_id, self._verifier
            )
        except InvalidBlock as error:
            item.problem = error
            self.count_reason(error.reason)
            if error.cause is not None:
                self.count_reason(error.cause)
            elif error.reason in (Reason.B6_TRANSACTION, Reason.B8_VOTES):
                raise Violation(f"{error} without its cause") from error
            raise
        except ConsensusError as error:
            raise Violation(f"a block was refused by {error!r}") from error
        if item.hash in self.valid:
            return item.state
        self.valid[item.hash] = item
        for transaction in item.transactions:
            payload = transaction.transaction.payload
            if isinstance(payload, OpenGradient | OpenLoss):
                signature = transaction.transaction.signature
                self.openings[compute_opening_hash(payload)] = (payload, signature)
        for observe in self.observers:
            observe(parent, item)
        return item.state

    def check(self, item: BlockItem) -> None:
        """What can be said of a block without its parent.

        Raises: InvalidBlock.
        """
        if item.problem is not None:
            raise item.problem
        if item.state is None:
            try:
                consensus.validation.check_block(item.block, self.params, self.chain_id)
            except InvalidBlock as error:
                item.problem = error
                self.count_reason(error.reason)
                raise

    # --- reading ------------------------------------------------------------------------------

    def get_tasks(self, item: BlockItem) -> tuple[tuple[Hash32, TaskState], ...]:
        """The tasks that live after a valid block."""
        if item.tasks is None:
            state = item.get_state()
            found = ((task, state.get_task(task)) for task in state.get_tasks())
            item.tasks = tuple((task, record) for task, record in found if record and record.status in LIVING)
        return item.tasks

    def is_ancestor(self, ancestor: Hash32, block_hash: Hash32) -> bool:
        """Judged by headers alone, without the fork choice."""
        low, item = self.valid[ancestor].header.height, self.valid[block_hash]
        while item.header.height > low:
            item = self.valid[item.parent]
        return item.hash == ancestor
