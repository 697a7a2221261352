"""Transfers that clients sign themselves and hand to any node that answers, until they are on the chain.

Each account has one transfer under way. A client whose transfer is not included after a while hands the same
bytes to another node: nodes keep pending transactions in memory alone, so one that is killed forgets them.
"""

import asyncio
import random
import time
from dataclasses import dataclass, field

from benchmarks.reliability.backend import Backend, poll
from benchmarks.reliability.watch import Watcher
from consensus.crypto import SigningKey
from consensus.task import Transfer
from consensus.transaction import SignedTransaction, compute_transaction_id, sign_transaction
from consensus.types import ZERO_HASH, Address, Amount, Hash32
from node.api.client import ApiError, Client

BANK = "node4"
"""Its account funds the payers: it drafts, contributes and publishes nothing, so its nonces are ours."""
FUNDS = 100_000
RESEND_S = 10.0
CALL_S = 5.0
PATIENT_S = 120.0
"""For what costs a node more: a whole task with its accounting of privacy."""
FUND_S = 120.0
POLL_S = 0.1


@dataclass(slots=True)
class Payer:
    """An account with everything it signed, by nonce."""

    key: SigningKey
    sent: list[SignedTransaction] = field(default_factory=list)
    acknowledged: set[str] = field(default_factory=set)
    """Ids that a node answered for with 202."""
    included: int = 0
    """How many of `sent` some node has ever had on its chain."""
    tried: float = 0.0

    @property
    def address(self) -> str:
        return self.key.address.hex()


@dataclass(slots=True)
class Load:
    """`run` until cancelled, then `drain`."""

    backend: Backend
    watcher: Watcher
    choose: random.Random
    accounts: int
    per_second: float
    payers: list[Payer] = field(default_factory=list)
    probe_payer: Payer = field(init=False)
    resent: int = 0
    """Transfers that a node had acknowledged and that had to be handed in again."""
    _clients: dict[str, Client] = field(default_factory=dict)
    _patient: dict[str, Client] = field(default_factory=dict)
    _chain_id: Hash32 = ZERO_HASH

    async def connect(self) -> None:
        """Open a client to each node and make the accounts' keys."""
        for name in self.backend.names:
            url = self.backend.get_url(name)
            self._clients[name] = await Client(url, timeout_s=CALL_S).__aenter__()
            self._patient[name] = await Client(url, timeout_s=PATIENT_S).__aenter__()
        status = await self._clients[BANK].get_status()
        self._chain_id = Hash32(bytes.fromhex(status.chain_id))
        self.payers = [Payer(SigningKey(self.choose.randbytes(32))) for _ in range(self.accounts)]
        self.probe_payer = Payer(SigningKey(self.choose.randbytes(32)))

    async def fund(self) -> None:
        """Return once each account has its money on the bank's chain."""
        bank = await self.backend.load_key(BANK)
        base = (await self._clients[BANK].get_account(bank.address.hex())).nonce
        for number, payer in enumerate((*self.payers, self.probe_payer)):
            transfer = Transfer(payer.key.address, Amount(FUNDS))
            signed = sign_transaction(bank, self._chain_id, base + number, transfer)
            await self._clients[BANK].submit_transaction(signed)
        for payer in (*self.payers, self.probe_payer):
            await poll(lambda payer=payer: self._is_funded(payer), "accounts are funded", FUND_S)  # type: ignore[misc]

    async def _is_funded(self, payer: Payer) -> bool:
        try:
            return (await self._clients[BANK].get_account(payer.address)).balance == FUNDS
        except ApiError as error:
            if error.status == 404:
                return False
            raise

    async def end(self) -> None:
        for client in (*self._clients.values(), *self._patient.values()):
            await client.__aexit__(None, None, None)

    @property
    def addresses(self) -> list[str]:
        """All accounts that this load made."""
        return [payer.address for payer in (*self.payers, self.probe_payer)]

    @property
    def acknowledged(self) -> set[str]:
        """Ids of all transfers that some node took."""
        return {i for payer in (*self.payers, self.probe_payer) for i in payer.acknowledged}

    async def run(self) -> None:
        """Until cancelled; no fault of the net ends it."""
        turn = 0
        pause_s = 1 / self.per_second
        while True:
            due = time.monotonic() + pause_s
            await self._serve(self.payers[turn % len(self.payers)], grow=True)
            turn += 1
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _serve(self, payer: Payer, *, grow: bool) -> None:
        """Move one payer on by one call or two, at whichever node answers."""
        names = self.watcher.get_answering()
        if not names:
            return
        name = self.choose.choice(names)
        try:
            nonce = (await self._clients[name].get_account(payer.address)).nonce
        except ApiError:
            return  # it went away, or has no such account yet: another node next time
        payer.included = max(payer.included, nonce)
        if nonce == len(payer.sent):
            if grow:
                payer.sent.append(self._sign(payer))
                await self._submit(name, payer, nonce)
        elif time.monotonic() - payer.tried > RESEND_S:
            if payer.included <= nonce and self._get_id(payer, nonce) in payer.acknowledged:
                self.resent += 1
            await self._submit(name, payer, nonce)

    def _sign(self, payer: Payer, amount: int = 1) -> SignedTransaction:
        others: list[Address] = [p.key.address for p in self.payers if p is not payer]
        transfer = Transfer(self.choose.choice(others), Amount(amount))
        return sign_transaction(payer.key, self._chain_id, len(payer.sent), transfer)

    def _get_id(self, payer: Payer, nonce: int) -> str:
        return compute_transaction_id(payer.sent[nonce]).hex()

    async def _submit(self, name: str, payer: Payer, nonce: int) -> None:
        payer.tried = time.monotonic()
        try:
            await self._clients[name].submit_transaction(payer.sent[nonce])
        except ApiError:
            return  # refused (known there already) or not reached: its nonce will tell
        payer.acknowledged.add(self._get_id(payer, nonce))

    async def drain(self, bound_s: float) -> None:
        """Return once every node's chain has everything that was ever signed. Raises: BackendError."""
        for payer in (*self.payers, self.probe_payer):
            await poll(lambda payer=payer: self._drain(payer), "every transfer is on every chain", bound_s)  # type: ignore[misc]

    async def _drain(self, payer: Payer) -> bool:
        if await self._is_everywhere(payer):
            return True
        await self._serve(payer, grow=False)
        return False

    async def _is_everywhere(self, payer: Payer) -> bool:
        try:
            for client in self._clients.values():
                if (await client.get_account(payer.address)).nonce != len(payer.sent):
                    return False
        except ApiError:
            return False
        return True

    async def probe(self, bound_s: float) -> str:
        """Sign a transfer now; return its id once every node finalised it in one block, the same everywhere.

        Raises: TimeoutError.
        """
        payer = self.probe_payer
        payer.sent.append(self._sign(payer))
        nonce = len(payer.sent) - 1
        identifier = self._get_id(payer, nonce)
        payer.tried = -RESEND_S
        async with asyncio.timeout(bound_s):
            while not await self._is_final(identifier):
                await self._serve(payer, grow=False)
                await asyncio.sleep(POLL_S)
        return identifier

    async def _is_final(self, identifier: str) -> bool:
        blocks: set[tuple[int, str]] = set()
        for name, client in self._clients.items():
            try:
                found = await client.get_transaction(identifier)
            except ApiError:
                return False
            view = await self.watcher.look(name)
            if found.inclusion is None or view is None or view.finalized.height < found.inclusion.height:
                return False
            blocks.add((found.inclusion.height, found.inclusion.block))
        return len(blocks) == 1

    def get_client(self, name: str) -> Client:
        """A client for reading; it waits long for an answer."""
        return self._patient[name]
