"""A client that follows a chain's finality through one node's REST API and believes nothing that it can't
check."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import TypeVar

from consensus.block import Header
from consensus.codec import CodecError, decode
from consensus.genesis import build_genesis_header, build_genesis_state
from consensus.identifiers import compute_block_hash
from consensus.jobs import Receipt
from consensus.light import (
    MAX_SET_CHANGES,
    FinalityProof,
    LightError,
    LightReason,
    LightState,
    SetChange,
    SetProof,
    trust_header,
    update,
    update_at_any_age,
    verify_account,
    verify_headers,
    verify_receipt,
    verify_task,
    verify_transaction,
)
from consensus.params import Genesis
from consensus.proofs import ListProof
from consensus.records import Account, TaskState
from consensus.state import NO_ACCOUNT
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.tree import Proof
from consensus.types import Address, Hash32, Millis
from consensus.vote import Checkpoint
from node.api.client import ApiError, Client
from node.api.light import (
    MAX_HEADERS,
    LightFinalityModel,
    LightHeadersModel,
    LightSetModel,
    LightTransactionModel,
    LightValueModel,
)
from node.clock import Clock
from node.events import EventKind

T = TypeVar("T")
MAX_ROUNDS = 8
"""How often a node may be ahead of what was just proved before the client gives up."""


class LightApi(Client):
    """The routes for light clients."""

    async def get_finality_proof(self, set_number: int) -> LightFinalityModel:
        return await self._get("/v1/finality/proof", LightFinalityModel, {"set": str(set_number)})

    async def get_light_headers(self, from_height: int, count: int) -> LightHeadersModel:
        query = {"from": str(from_height), "count": str(count)}
        return await self._get("/v1/light/headers", LightHeadersModel, query)

    async def get_validators_proof(self, height: int) -> LightSetModel:
        return await self._get(f"/v1/proofs/validators/{height}", LightSetModel)

    async def get_account_proof(self, address: Address) -> LightValueModel:
        return await self._get(f"/v1/proofs/accounts/{address.hex()}", LightValueModel)

    async def get_task_proof(self, task: Hash32) -> LightValueModel:
        return await self._get(f"/v1/proofs/tasks/{task.hex()}", LightValueModel)

    async def get_receipt_proof(self, job: Hash32) -> LightValueModel:
        return await self._get(f"/v1/proofs/receipts/{job.hex()}", LightValueModel)

    async def get_transaction_proof(self, transaction: Hash32) -> LightTransactionModel:
        return await self._get(f"/v1/proofs/transactions/{transaction.hex()}", LightTransactionModel)


def trust_genesis(genesis: Genesis) -> LightState:
    """A client that knows a chain's genesis document."""
    state = build_genesis_state(genesis)
    header = build_genesis_header(genesis, state)
    return LightState(header.chain_id, header, state.get_validator_set())


async def trust_checkpoint(api: LightApi, checkpoint: Checkpoint) -> LightState:
    """A client that knows the hash of a final block; its header and set come from the node, checked.

    Raises: LightError; ApiError.
    """
    found = await api.get_validators_proof(checkpoint.height)
    header = _decode(Header, found.header)
    if compute_block_hash(header) != checkpoint.hash or header.height != checkpoint.height:
        detail = f"the node has {compute_block_hash(header).hex()} at height {checkpoint.height}"
        raise LightError(LightReason.HEADERS, detail)
    return trust_header(header, _decode(SetProof, found.validators))


def _decode(cls: type[T], text: str) -> T:
    try:
        return decode(cls, bytes.fromhex(text))
    except (CodecError, ValueError) as error:
        raise LightError(LightReason.VALUE, f"no canonical {cls.__name__}: {error}") from error


class LightNode:
    """Follows one node; every answer is proved under a header that it knows to be final."""

    def __init__(
        self, api: LightApi, state: LightState, clock: Clock, evidence_ms: int, *, at_any_age: bool = False
    ) -> None:
        """`at_any_age`: the first update is made however old the trusted header is."""
        self._api = api
        self._clock = clock
        self._evidence_ms = evidence_ms
        self._at_any_age = at_any_age
        self.state = state
        self.changes = 0
        """Of validator sets that were followed."""

    async def follow(self) -> LightState:
        """Go forward as far as the node proves. Raises: LightError; ApiError."""
        while await self._step():
            pass
        return self.state

    async def catch_up(self, timeout_s: float) -> LightState:
        """Go forward until what the node's head holds now is proved final, which takes a few blocks.

        The node's events tell when it is worth while to ask again; what it says of its head is no more than
        something to wait for. A head that is undone meanwhile may be waited for in vain.
        Raises: LightError, of QUORUM if it is not final after `timeout_s`; ApiError.
        """
        status = await self._api.get_status()
        stream = self._api.stream_events(after=status.last_event_id, kinds=(EventKind.FINALIZED,))
        try:
            async with asyncio.timeout(timeout_s), aclosing(stream) as events:
                while (await self.follow()).trusted.height < status.content_height:
                    await anext(events)
        except TimeoutError:
            final = self.state.trusted.height
            detail = f"block {status.content_height} is not final after {timeout_s:g} s, block {final} is"
            raise LightError(LightReason.QUORUM, detail) from None
        return self.state

    async def _step(self) -> bool:
        """True if more can be had."""
        number = self.state.validators.number
        changes: list[SetChange] = []
        while len(changes) < MAX_SET_CHANGES:
            reply = await self._api.get_finality_proof(number + len(changes))
            changes += [_decode(SetChange, text) for text in reply.changes]
            if reply.proof is not None:
                before = self.state
                self._update(changes, _decode(FinalityProof, reply.proof))
                return self.state.checkpoint.height > before.checkpoint.height
            if not reply.changes:
                break
        return False

    def _update(self, changes: Sequence[SetChange], proof: FinalityProof) -> None:
        if proof.source.height < self.state.trusted.height:
            return  # the node is behind, which is no lie
        if self._at_any_age:
            self.state = update_at_any_age(self.state, changes, proof)
        else:
            self.state = update(self.state, changes, proof, self._now(), self._evidence_ms)
        self._at_any_age = False
        self.changes += len(changes)

    def _now(self) -> Millis:
        return self._clock.now_ms()

    # --- values -------------------------------------------------------------------------------

    async def get_account(self, address: Address) -> tuple[Header, Account]:
        """An account and the final header under which it is so. Raises: LightError; ApiError."""
        found = await self._api.get_account_proof(address)
        header = await self._prove(_decode(Header, found.header))
        account = NO_ACCOUNT if found.value is None else _decode(Account, found.value)
        verify_account(header, address, account, _decode(Proof, found.proof))
        return header, account

    async def get_task(self, task: Hash32) -> tuple[Header, TaskState | None]:
        """A task, None for one that is not there. Raises: LightError; ApiError."""
        found = await self._api.get_task_proof(task)
        header = await self._prove(_decode(Header, found.header))
        state = None if found.value is None else _decode(TaskState, found.value)
        verify_task(header, task, state, _decode(Proof, found.proof))
        return header, state

    async def get_receipt(self, job: Hash32) -> tuple[Header, Receipt | None]:
        """A job's receipt, None while there is none. Raises: LightError; ApiError."""
        found = await self._api.get_receipt_proof(job)
        header = await self._prove(_decode(Header, found.header))
        receipt = None if found.value is None else _decode(Receipt, found.value)
        verify_receipt(header, job, receipt, _decode(Proof, found.proof))
        return header, receipt

    async def get_transaction(self, name: Hash32) -> tuple[Header, SignedTransaction]:
        """A transaction of a final block, an opening for one. Raises: LightError; ApiError."""
        found = await self._api.get_transaction_proof(name)
        header = await self._prove(_decode(Header, found.header))
        transaction = _decode(SignedTransaction, found.transaction)
        if compute_transaction_id(transaction) != name:
            raise LightError(LightReason.VALUE, f"another transaction than {name.hex()}")
        verify_transaction(header, transaction, _decode(ListProof, found.proof))
        return header, transaction

    async def _prove(self, header: Header) -> Header:
        """The header, if it is the trusted one or an ancestor of it, after going forward where needed."""
        for _ in range(MAX_ROUNDS):
            if header.height <= self.state.trusted.height or not await self._step():
                break
        if header.height > self.state.trusted.height:
            raise LightError(LightReason.QUORUM, f"the block at height {header.height} is not final yet")
        if header.chain_id != self.state.chain_id:
            raise LightError(LightReason.CHAIN, header.chain_id.hex())
        # Downwards, each range proved by the one above it, until the header itself.
        top, expected = self.state.trusted, compute_block_hash(self.state.trusted)
        if header.height == top.height:
            verify_headers(expected, [header])
            return header
        at, expected = top.height - 1, top.parent
        while at >= header.height:
            count = min(MAX_HEADERS, at - header.height + 1)
            found = await self._api.get_light_headers(at - count + 1, count)
            headers = [_decode(Header, text) for text in found.items]
            if len(headers) != count:
                raise ApiError(f"the node gave {len(headers)} of {count} headers")
            verify_headers(expected, headers)
            at, expected = at - count, headers[0].parent
            if at < header.height and headers[0] != header:
                raise LightError(LightReason.HEADERS, f"height {header.height} is another block")
        return header
