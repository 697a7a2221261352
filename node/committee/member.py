"""A member's work around one opening: what it checks itself, keeps on disk, and has computed by workers.

The member's share is read from its file by worker processes and never crosses a pipe: jobs carry paths, and
residues come back. Records are on disk before anything of the same output is begun.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Protocol

from consensus.crypto import SigningKey, hash_domain
from consensus.types import Hash32, Millis
from node.committee.choice import Suspects
from node.committee.messages import Content, Proposal, RoundMessage, open_proposal, seal_proposal
from node.committee.ports import Effects, Judge, Opened, PartWanted, SumWanted
from node.committee.records import Records, decode_record, encode_record, get_name
from node.committee.rounds import Round
from node.committee.terms import Terms, compute_opening_name

FULL_RATE = 10_000
"""Of recomputation, in ten-thousandths: every confirmed bundle."""
_PREFIX = b"committee/"


class RecordStore(Protocol):
    """As the ledger has it: synced when a call returns."""

    def put_records(self, records: Mapping[bytes, bytes], deletes: Sequence[bytes] = ()) -> None: ...

    def iterate_records(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]: ...


class Workers(Protocol):
    """Computes in other processes; the same result at every call."""

    async def compute_part(self, wanted: PartWanted, opening: Hash32) -> tuple[tuple[int, ...], ...]:
        """This member's residues; noise and masks bound to `opening`, subset and attempt."""
        ...

    async def compute_sum(self, wanted: SumWanted) -> tuple[int, ...] | None:
        """The opened integers; None if they are implausible."""
        ...


def must_recompute(secret: bytes, question: Hash32, batch: int, rate: int) -> bool:
    """Whether a member computes a confirmed bundle itself before it answers for it: a draw that nobody who
    lacks its 32 secret bytes can foresee, the same at every call. `rate` is in ten-thousandths."""
    if len(secret) != 32 or not 0 <= rate <= FULL_RATE:
        raise ValueError(f"expected 32 secret bytes and a rate of 0 to {FULL_RATE}")
    drawn = hash_domain("committee-recompute", secret + question + batch.to_bytes(8, "big"))
    return int.from_bytes(drawn[:8], "big") * FULL_RATE < rate << 64


class MemberSealer:
    """Seals proposals to all members, and opens those that are sealed to this one."""

    def __init__(self, terms: Terms, key: SigningKey, private: bytes, publics: Sequence[bytes]) -> None:
        """`private` is this member's X25519 key, `publics` those of all, by place."""
        place = terms.get_place(key.address)
        if place is None or len(publics) != len(terms.members):
            raise ValueError("expected a member's key, and a key of each member")
        self._terms = terms
        self._key = key
        self._private = private
        self._publics = tuple(publics)
        self._place = place

    def seal(self, proposal: Proposal, content: bytes) -> Proposal:
        return seal_proposal(self._key, self._terms.chain_id, proposal, content, self._publics)

    def open(self, proposal: Proposal) -> Content:
        """Raises: BoxError, MessageError."""
        return open_proposal(self._private, self._place, self._terms.chain_id, proposal)


def get_record_prefix(terms: Terms) -> bytes:
    """Of the records of one opening."""
    where = terms.task + terms.step.to_bytes(4, "big") + terms.kind.encode() + b"/"
    # Whoever has the shares after a renewal has answered nothing with them.
    return _PREFIX + where + terms.ceremony + b"/"


def load_records(store: RecordStore, terms: Terms) -> Records:
    """Raises: RecordDamaged."""
    return Records(decode_record(data) for _, data in store.iterate_records(get_record_prefix(terms)))


def forget_task(store: RecordStore, task: Hash32) -> None:
    """Once the task has ended; while it is open its records are kept, also of steps that are opened: a fork
    may have them opened again."""
    store.put_records({}, [key for key, _ in store.iterate_records(_PREFIX + task)])


class OpeningMember:
    """Drives one round: stores, sends, computes, and gives back what was computed."""

    def __init__(
        self,
        terms: Terms,
        key: SigningKey,
        sealer: MemberSealer,
        judge: Judge,
        store: RecordStore,
        workers: Workers,
        send: Callable[[RoundMessage], None],
        now: Callable[[], Millis],
        suspects: Suspects,
    ) -> None:
        """Raises: RecordDamaged."""
        self.round = Round(terms, key, sealer, judge, suspects, load_records(store, terms))
        self.opened: asyncio.Future[Opened] = asyncio.get_running_loop().create_future()
        self._terms = terms
        self._store = store
        self._workers = workers
        self._send = send
        self._now = now
        self._jobs: set[asyncio.Task[None]] = set()

    def check(self, content: Content) -> Effects:
        """Everything that is opened is here and checked."""
        return self._apply(self.round.on_checked(self._now(), content))

    def take(self, message: RoundMessage) -> Effects:
        """One whose signature was verified."""
        return self._apply(self.round.on_message(self._now(), message))

    def tick(self) -> Effects:
        return self._apply(self.round.on_tick(self._now()))

    async def drain(self) -> None:
        """Wait for what is being computed now."""
        await asyncio.gather(*self._jobs)

    async def close(self) -> None:
        """Give up what is being computed."""
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)

    def _apply(self, effects: Effects) -> Effects:
        prefix = get_record_prefix(self._terms)
        if effects.records:
            self._store.put_records(
                {prefix + get_name(record): encode_record(record) for record in effects.records}
            )
        for message in effects.messages:
            self._send(message)
        for wanted in effects.jobs:
            self._start(self._compute(wanted))
        if effects.opened is not None and not self.opened.done():
            self.opened.set_result(effects.opened)
        return effects

    def _start(self, job: Awaitable[None]) -> None:
        task = asyncio.ensure_future(job)
        self._jobs.add(task)
        task.add_done_callback(self._finish)

    def _finish(self, task: "asyncio.Task[None]") -> None:
        self._jobs.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self.opened.done():
            self.opened.set_exception(error)

    async def _compute(self, wanted: PartWanted | SumWanted) -> None:
        if isinstance(wanted, PartWanted):
            terms = self._terms
            opening = compute_opening_name(terms.chain_id, terms.ceremony, wanted.question)
            values = await self._workers.compute_part(wanted, opening)
            self._apply(self.round.on_part(self._now(), wanted.proposal, values))
        else:
            numbers = await self._workers.compute_sum(wanted)
            self._apply(self.round.on_sum(self._now(), wanted.proposal, numbers))
