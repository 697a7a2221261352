"""How members come to one opening: a state machine without clock, disk or network.

Inputs are messages, results of jobs and the time; outputs are records that must be on disk *before* anything
else of the same output is done, then messages, jobs, and in the end the opening.

Who does what. The member of rank r proposes r times `lead` after it knows enough members that are ready. A
member of a proposal's subset answers at most one proposal of an attempt, for what it has confirmed itself.
Whoever has all parts combines them and signs the numbers; enough signatures of one content are the opening.

What keeps it to one. A member signs one content of an opening, ever. Who has answered attempt 2 does not sign
attempt 1, and who has signed attempt 1 does not answer attempt 2; a threshold of more than half does the
rest. If f members break this, two contents need 2t <= n + f, and their signatures prove it. Before it answers
or signs, a member waits `settle`, so that a lead that tells members different subsets, or a member that sends
different parts, is seen by those it plays off against each other: then nobody answers, or signs. Members that
messages reach later than that are not protected by this, and two subsets can be had open by who lies.

Attempt 2 has another subset, and comes if attempt 1 gave implausible numbers, was spoiled by a contradiction,
or misses parts after `retry`. There is no third: the opening is then closed, unless late parts complete it.

Noise and masks are functions of secrets and the question, so a member that restarts gives the same answer.
"""

import contextlib

from consensus.committee import sign_content
from consensus.crypto import SigningKey, hash_domain
from consensus.types import Hash32, Millis, Signature
from node.committee.boxes import BoxError, SharedBox
from node.committee.choice import (
    Suspects,
    choose_subset,
    get_leads,
    get_usable,
    is_spoiled,
    note_suspects,
    rank_candidates,
)
from node.committee.messages import (
    MAX_ATTEMPTS,
    Content,
    Cosign,
    MessageError,
    OpeningKind,
    Partial,
    Proposal,
    Ready,
    RoundMessage,
    compute_proposal_id,
    compute_question,
    encode_content,
    sign_message,
)
from node.committee.ports import Effects, Judge, Opened, PartWanted, Sealer, SumWanted
from node.committee.records import Answered, Cosigned, Proposed, Record, Records
from node.committee.tally import Candidate, Refusal, Refused, Tally
from node.committee.terms import Terms


class Round:
    """One member's side of one opening."""

    def __init__(
        self,
        terms: Terms,
        key: SigningKey,
        sealer: Sealer,
        judge: Judge,
        suspects: Suspects,
        records: Records | None = None,
    ) -> None:
        """`suspects` are of all openings with these shares, `records` those that were stored of this one.

        Raises: ValueError for no member's key.
        """
        place = terms.get_place(key.address)
        if place is None:
            raise ValueError("only a member takes part in an opening")
        self.terms = terms
        self.tally = Tally(terms)
        self._place = place
        self._key = key
        self._sealer = sealer
        self._judge = judge
        self._suspects = suspects
        self._stored = records or Records()
        self._own: Content | None = None
        self._question: Hash32 | None = None
        self._enough: Millis | None = None
        self._failed: dict[int, Millis] = {}
        self._said: dict[tuple[type, int], RoundMessage] = {}
        self._repeated: Millis | None = None
        self._now = Millis(0)
        self._opened: Opened | None = None
        self._closed: str | None = None
        self._clear()
        for record in self._stored.get_all():
            if isinstance(record, Proposed | Answered):
                self._recall(record)

    def _clear(self) -> None:
        self._records: list[Record] = []
        self._messages: list[RoundMessage] = []
        self._jobs: list[PartWanted | SumWanted] = []

    # --- inputs -------------------------------------------------------------------------------

    def on_checked(self, now: Millis, content: Content) -> Effects:
        """This member has everything that is opened, and has checked it; as it would propose it."""
        self._now = now
        question = compute_question(self.terms.task, self.terms.step, content)
        if self._question is None:
            self._own, self._question = content, question
            self._restore()
            for candidate in self.tally.candidates.values():
                self._check_content(candidate)
            self._say(Ready(*self._where, self._key.address, question, Signature(b"")))
        elif question == self._question:
            self._own = content
        return self._finish(now)

    def on_message(self, now: Millis, message: RoundMessage) -> Effects:
        """Whose signature was verified."""
        self._now = now
        try:
            self.tally.check(message)
            match message:
                case Ready():
                    self.tally.add_ready(message)
                case Proposal():
                    candidate = self.tally.add_proposal(now, message)
                    self._open_content(candidate)
                    self._add_early(candidate)
                    if candidate.refusal is not None:
                        raise Refused(candidate.refusal)
                case Partial():
                    self.tally.add_partial(now, message)
                case Cosign():
                    self.tally.add_cosign(message)
        except Refused as refused:
            return self._finish(now, refused)
        return self._finish(now)

    def on_part(self, now: Millis, proposal: Hash32, values: tuple[tuple[int, ...], ...]) -> Effects:
        """The part that was wanted; it leaves only as the answer that is on record."""
        self._now = now
        candidate = self.tally.candidates.get(proposal)
        if candidate is None or self._stored.get_answer(candidate.attempt) != proposal:
            raise ValueError("no answer to this proposal is on record")
        own = self._key.address
        self._say(Partial(*self._where, candidate.attempt, own, proposal, values, Signature(b"")))
        return self._finish(now)

    def on_sum(self, now: Millis, proposal: Hash32, numbers: tuple[int, ...] | None) -> Effects:
        """The opened numbers, or None if they are implausible."""
        self._now = now
        candidate = self.tally.candidates[proposal]
        candidate.implausible, candidate.numbers = numbers is None, numbers
        note_suspects(self._suspects, self.tally)
        if numbers is not None and candidate.content is not None:
            candidate.opened = self._judge.compute_opened(candidate.content, candidate.attempt, numbers)
        return self._finish(now)

    def on_tick(self, now: Millis) -> Effects:
        """Time has passed; once a fraction of `settle` is often enough."""
        self._now = now
        if self._repeated is None or now - self._repeated >= self.terms.waits.repeat:
            self._repeated = now
            self._messages.extend(self._said.values())
        return self._finish(now)

    @property
    def opened(self) -> Opened | None:
        return self._opened

    @property
    def closed(self) -> str | None:
        """Why nothing more is tried, if so; late parts may still complete it."""
        return None if self._opened is not None else self._closed

    # --- what is said -------------------------------------------------------------------------

    @property
    def _where(self) -> tuple[Hash32, Hash32, int, OpeningKind]:
        terms = self.terms
        return terms.ceremony, terms.task, terms.step, terms.kind

    def _say(self, message: Ready | Partial | Cosign) -> None:
        """Signed, sent, and heard by oneself."""
        signed = sign_message(self._key, self.terms.chain_id, message)
        attempt = 0 if isinstance(signed, Ready | Cosign) else signed.attempt
        known = (type(signed), attempt) in self._said
        self._hear(signed)
        self._said[type(signed), attempt] = signed
        if not known:
            self._messages.append(signed)

    def _hear(self, message: Ready | Partial | Cosign) -> None:
        try:
            if isinstance(message, Ready):
                self.tally.add_ready(message)
            elif isinstance(message, Cosign):
                self.tally.add_cosign(message)
            else:
                self.tally.add_partial(self._now, message)
        except Refused as refused:
            if refused.reason is not Refusal.KNOWN:
                raise

    def _store(self, record: Record) -> None:
        self._stored = self._stored.add(record)
        self._records.append(record)

    def _finish(self, now: Millis, refused: Refused | None = None) -> Effects:
        opened = closed = None
        if self._opened is None:
            self._proceed(now)
            opened, was_closed = self._find_opened(), self._closed
            self._opened = opened
            if opened is None and was_closed is None and (why := self._find_end()) is not None:
                self._closed = closed = why
        effects = Effects(
            tuple(self._records), tuple(self._messages), tuple(self._jobs), refused, opened, closed
        )
        self._clear()
        return effects

    # --- what follows -------------------------------------------------------------------------

    def _proceed(self, now: Millis) -> None:
        if self._question is None:
            return
        if self._enough is None and len(self.tally.get_ready(self._question)) >= self.terms.threshold:
            self._enough = now
        for attempt in range(1, MAX_ATTEMPTS + 1):
            self._answer(now, attempt)
            self._combine(now, attempt)
            self._cosign(now, attempt)
            self._note_failure(now, attempt)
            self._propose(now, attempt)

    def _recall(self, record: Proposed | Answered) -> None:
        """A proposal that is on record, as it was heard before the restart."""
        if compute_proposal_id(record.proposal) not in self.tally.candidates:
            self.tally.add_proposal(self._now, record.proposal).content = record.get_content()

    def _restore(self) -> None:
        """What is on record is said again, just as it was."""
        for candidate in self.tally.candidates.values():
            candidate.seen = self._now
        for record in self._stored.get_all():
            if isinstance(record, Proposed):
                self._said[Proposal, record.proposal.attempt] = record.proposal
                self._messages.append(record.proposal)
            elif isinstance(record, Answered):
                self._want_part(self.tally.candidates[record.id], record.get_content())
            else:
                self._say_cosign(record)

    def _open_content(self, candidate: Candidate) -> None:
        try:
            candidate.content = self._sealer.open(candidate.proposal)
        except (BoxError, MessageError):
            candidate.refusal = Refusal.BOX
            return
        self._check_content(candidate)

    def _add_early(self, candidate: Candidate) -> None:
        for partial in self.tally.take_early(candidate.id):
            with contextlib.suppress(Refused):  # as it would have been, had it come now
                self.tally.add_partial(self._now, partial)

    def _check_content(self, candidate: Candidate) -> None:
        """Once this member knows itself what is to be opened."""
        if self._question is None or candidate.content is None or candidate.refusal is not None:
            return
        if candidate.proposal.question != self._question:
            candidate.refusal = Refusal.UNCONFIRMED
            return
        try:
            self._judge.check_content(candidate.content)
        except Refused as refused:
            candidate.refusal = refused.reason

    def _is_open(self, attempt: int) -> bool:
        """Whether an attempt's time has come, as far as this member has seen."""
        return attempt == 1 or attempt - 1 in self._failed

    def _get_usable(self, attempt: int) -> list[Candidate]:
        return get_usable(self.tally, attempt, self._stored.get_answer(1), self._failed)

    def _answer(self, now: Millis, attempt: int) -> None:
        if not self._is_open(attempt) or self._stored.get_answer(attempt) is not None:
            return
        if not self._judge.has_budget(self.terms.kind, attempt):
            return
        if attempt == 2 and self._stored.cosigned is not None:
            return
        for candidate in self._get_usable(attempt):
            if now - candidate.seen < self.terms.waits.settle:
                return  # the lowest rank's goes first, once its time has come
            if self._place in candidate.subset and candidate.content is not None:
                self._store(Answered(candidate.proposal, encode_content(candidate.content)))
                self._want_part(candidate, candidate.content)
                return

    def _want_part(self, candidate: Candidate, content: Content) -> None:
        proposal = candidate.proposal
        self._jobs.append(
            PartWanted(candidate.id, candidate.subset, candidate.attempt, proposal.question, content)
        )

    def _combine(self, now: Millis, attempt: int) -> None:
        for candidate in rank_candidates(self.tally, attempt):
            if candidate.asked or candidate.complete is None:
                continue
            if now - candidate.complete >= self.terms.waits.settle and candidate.content is not None:
                candidate.asked = True
                parts = tuple(candidate.parts[place].values for place in candidate.subset)
                self._jobs.append(
                    SumWanted(candidate.id, candidate.subset, attempt, candidate.content, parts)
                )

    def _cosign(self, now: Millis, attempt: int) -> None:
        if self._stored.cosigned is not None or (attempt == 1 and self._stored.get_answer(2) is not None):
            return
        for candidate in rank_candidates(self.tally, attempt):
            if candidate.opened is not None:
                record = Cosigned(attempt, candidate.opened)
                self._store(record)
                self._say_cosign(record)
                return

    def _say_cosign(self, record: Cosigned) -> None:
        signature = sign_content(self._key, self.terms.chain_id, record.opened).signature
        own = self._key.address
        self._say(Cosign(*self._where, record.attempt, own, record.opened, signature, Signature(b"")))

    def _note_failure(self, now: Millis, attempt: int) -> None:
        if attempt in self._failed or not self._is_open(attempt):
            return
        since = self._failed.get(attempt - 1, Millis(0))
        live = self._get_usable(attempt)
        late = [item for item in live if now - max(item.seen, since) >= self.terms.waits.retry]
        is_late = bool(late) and all(item.complete is None for item in live)
        if is_late or is_spoiled(self.tally, attempt, self._stored.get_answer(attempt)):
            self._failed[attempt] = now

    def _propose(self, now: Millis, attempt: int) -> None:
        terms, base = self.terms, self._enough if attempt == 1 else self._failed.get(attempt - 1)
        if base is None or self._own is None or self._question is None or attempt in self._failed:
            return
        slot = get_leads(self.tally, attempt).index(self._key.address) * terms.waits.lead
        if now - base < slot:
            return
        if self._stored.has_proposed(attempt) or not self._judge.has_budget(terms.kind, attempt):
            return
        if self._get_usable(attempt) or (attempt == 2 and self._stored.cosigned is not None):
            return
        answer = self._stored.get_answer(1)
        subset = choose_subset(
            self.tally, self._question, self._place, attempt, answer, self._failed, self._suspects, self._draw
        )
        if subset is None:
            return
        others = [place for place in subset if place != self._place]
        is_complete = len(self.tally.get_ready(self._question)) == len(terms.members)
        if (
            not is_complete
            and any(map(self._suspects.count, others))
            and now - base < slot + terms.waits.lead // 2
        ):
            return  # Those who are not ready yet may be better.
        content = encode_content(self._own)
        blank = Proposal(
            *self._where,
            attempt,
            self._key.address,
            subset,
            self._question,
            Hash32(bytes(32)),
            SharedBox(b"", ()),
            Signature(b""),
        )
        proposal = self._sealer.seal(blank, content)
        self._store(Proposed(proposal, content))
        self._said[Proposal, attempt] = proposal
        self._messages.append(proposal)
        self.tally.add_proposal(now, proposal).content = self._own

    def _draw(self, place: int) -> bytes:
        """Known to nobody else before: signatures here are functions of key and message."""
        where = self.terms.chain_id + self.terms.task + (self._question or b"")
        return hash_domain("committee-draw", self._key.sign("committee-draw", where) + bytes([place]))

    def _find_opened(self) -> Opened | None:
        for item in self.tally.candidates.values():
            if item.opened is None or item.numbers is None or item.content is None:
                continue
            signatures = self.tally.get_cosignatures(item.opened)
            if len(signatures) >= self.terms.threshold:
                return Opened(item.content, item.attempt, item.numbers, item.opened, signatures)
        return None

    def _find_end(self) -> str | None:
        if MAX_ATTEMPTS in self._failed:
            return f"{MAX_ATTEMPTS} attempts gave no plausible opening, and there is no third"
        if 1 in self._failed and not self._judge.has_budget(self.terms.kind, 2):
            return "attempt 1 gave no plausible opening, and the task may open no more"
        if self._enough is not None and not self._judge.has_budget(self.terms.kind, 1):
            return "the task may open no more"
        return None
