"""A chain with finality as honest validators would make it, from the pure rules alone: no node, disk or
clock.

Each block carries everyone's votes for the one below it, so finality follows two blocks behind. Blocks are
built once and not validated again, which is what makes ten thousand of them affordable.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from consensus.block import Block, Header
from consensus.codec import encode
from consensus.crypto import SigningKey
from consensus.genesis import build_genesis_header, build_genesis_state
from consensus.governance import sign_governance
from consensus.identifiers import compute_block_hash, compute_chain_id
from consensus.params import ChainParams, Genesis, GenesisAccount, Validator
from consensus.payload import Action, Govern, Governance, Payload
from consensus.proposal import build_proposal
from consensus.state import State
from consensus.transaction import SignedTransaction, sign_transaction, uses_nonce
from consensus.turns import get_carrier_proposer
from consensus.types import Address, Amount, Hash32, Height, Millis
from consensus.vote import Checkpoint, Vote, sign_vote

START = Millis(1_700_000_000_000)


def build_keys(count: int, label: str = "v") -> tuple[SigningKey, ...]:
    return tuple(SigningKey(f"{label}{number}".encode().ljust(32, b".")) for number in range(count))


def build_genesis(
    validators: Sequence[SigningKey],
    others: Sequence[SigningKey] = (),
    time: Millis = START,
    params: ChainParams | None = None,
) -> Genesis:
    """Validators of equal stake; they and the others have money."""
    accounts = tuple(GenesisAccount(key.address, Amount(10**9), "lab") for key in (*validators, *others))
    stakes = tuple(Validator(key.address, 100) for key in validators)
    return Genesis("voted", time, params or ChainParams(), accounts, stakes, ("lab",))


@dataclass
class VotedChain:
    """The head of a chain that grows block by block; `keys` sign whatever honest validators would."""

    genesis: Genesis
    keys: dict[Address, SigningKey]
    header: Header = field(init=False)
    state: State = field(init=False)
    chain_id: Hash32 = field(init=False)
    blocks: list[Block] = field(default_factory=list)
    """From height 1 on."""
    states: dict[int, State] = field(default_factory=dict)
    """By height; empty if `keeps` is false, which saves memory in long chains."""
    keeps: bool = True

    def __post_init__(self) -> None:
        self.state = build_genesis_state(self.genesis)
        self.header = build_genesis_header(self.genesis, self.state)
        self.chain_id = compute_chain_id(self.genesis)
        if self.keeps:
            self.states[0] = self.state

    @property
    def head(self) -> Checkpoint:
        return Checkpoint(self.header.height, compute_block_hash(self.header))

    def get_header(self, height: int) -> Header:
        return self.blocks[height - 1].header

    def get_checkpoint(self, height: int) -> Checkpoint:
        return Checkpoint(Height(height), compute_block_hash(self.get_header(height)))

    def sign(self, key: SigningKey, payload: Payload) -> SignedTransaction:
        nonce = self.state.get_account(key.address).nonce if uses_nonce(payload) else 0
        return sign_transaction(key, self.chain_id, nonce, payload)

    def govern(self, sender: SigningKey, action: Action) -> SignedTransaction:
        """A change that the whole active set signs, and everyone else with a key here."""
        change = Governance(self.state.get_charter().sequence, action)
        signers = sorted(self.keys)
        approvals = tuple(sign_governance(self.keys[each], self.chain_id, change) for each in signers)
        return self.sign(sender, Govern(change, approvals))

    def build_votes(self, voters: Sequence[SigningKey] | None = None) -> tuple[Vote, ...]:
        """What honest validators sign for the head: all members of the sets concerned by default."""
        source = self.state.get_finality().justified
        if self.header.height <= source.height:
            return ()
        if voters is None:
            following = self.state.get_validator_set()
            before = self.state.find_validator_set(following.number - 1)
            members = [*following.validators, *(before.validators if before else ())]
            voters = [self.keys[each] for each in dict.fromkeys(member.address for member in members)]
        return tuple(sign_vote(key, self.chain_id, source, self.head) for key in voters)

    def add(
        self,
        transactions: Sequence[SignedTransaction] = (),
        voters: Sequence[SigningKey] | None = None,
        after: int | None = None,
    ) -> Block:
        """The next carrier block, by whoever's turn it is `after` milliseconds."""
        params = self.genesis.params
        time = Millis(self.header.time + (params.idle_ms if after is None else after))
        proposer = get_carrier_proposer(self.state, params, self.header, time)
        if proposer is None:
            raise ValueError(f"nobody may propose {time - self.header.time} ms after the head")
        proposal = build_proposal(
            self.header,
            self.state,
            transactions,
            None,
            time,
            self.keys[proposer],
            params,
            self.chain_id,
            self.build_votes(voters),
        )
        block = proposal.block
        if len(block.body.transactions) != len(transactions):
            raise ValueError(f"refused: {proposal.refused} {proposal.premature}")
        self.header, self.state = block.header, proposal.state
        if self.keeps:
            self.blocks.append(block)
            self.states[block.header.height] = proposal.state
        return block

    def grow(self, count: int) -> None:
        for _ in range(count):
            self.add()

    @property
    def encoded(self) -> list[bytes]:
        return [encode(block) for block in self.blocks]
