"""Nodes that break the rules, each with a few habits; below a third of stake none of it may matter."""

from dataclasses import replace
from typing import TYPE_CHECKING

from consensus.block import Block, Body, Work
from consensus.crypto import hash_domain
from consensus.governance import sign_governance
from consensus.identifiers import (
    compute_block_hash,
    compute_transactions_root,
    compute_votes_root,
    compute_work_root,
)
from consensus.params import Validator
from consensus.payload import (
    Accuse,
    Govern,
    Governance,
    Payload,
    ReportOpenings,
    ReportVotes,
    SettleTask,
    SetValidators,
    SignedOpening,
    Verdict,
    WrongBundle,
)
from consensus.proposal import Proposal, build_work, get_carrier_entitled_time
from consensus.records import Unsettled
from consensus.task import Available, ExpireTask, OpenGradient, OpenLoss, Transfer
from consensus.transaction import sign_transaction, uses_nonce
from consensus.types import ZERO_HASH, Amount, Hash32, Height, Millis, Signature
from consensus.vote import Checkpoint, Vote, sign_vote
from tests.simulation.archive import BlockItem, TransactionItem, VoteItem
from tests.simulation.duties import Duties
from tests.simulation.node import Node, Run

if TYPE_CHECKING:
    from collections.abc import Callable

HABITS = (
    "silent",
    "double votes",
    "surround votes",
    "late votes",
    "fork votes",
    "stale votes",
    "equivocate",
    "siblings",
    "hide blocks",
    "old parent",
    "early",
    "forge",
    "junk",
    "accept all",
    "reject all",
    "late evidence",
    "deaf",
)
"""What a Byzantine node may do beside what the protocol asks of it."""


class LiarDuties(Duties):
    """Judges by habit, and reports late or never."""

    def __init__(self, node: "Byzantine") -> None:
        super().__init__(node)
        self._habits = node.habits
        self.watches = False

    def judge(self, task: Hash32, item: Unsettled) -> None:
        if "accept all" in self._habits or "reject all" in self._habits:
            accept = "accept all" in self._habits
            self.send(Verdict(task, item.milestone.loss_opening, accept, 1, 2))
        else:
            super().judge(task, item)


class Byzantine(Node):
    """Knows and enters blocks by the rules, and sends what it likes."""

    is_honest = False

    def __init__(
        self, run: Run, index: int, name: str, habits: frozenset[str], until: int, offset: int = 0
    ) -> None:
        self.habits = habits
        self.until = until
        """When it has had its say: what it withheld is out by then."""
        self._old: list[VoteItem] = []
        super().__init__(run, index, name, offset)
        self.duties = LiarDuties(self)
        for habit, action, pace in (
            ("early", self._propose_early, 2_500),
            ("forge", self._forge, 3_000),
            ("junk", self._send_junk, 2_000),
            ("late evidence", self._report_late, 9_000),
            ("stale votes", self._replay, 2_000),
        ):
            if habit in habits:
                self._repeat(action, pace)

    def _repeat(self, action: "Callable[[], None]", pace: int) -> None:
        def act() -> None:
            if self.run.engine.now < self.until:
                action()
                self._repeat(action, pace)

        self.run.engine.after(self.run.random.randrange(pace // 2, 2 * pace), act)

    def _has(self, habit: str, chance: float = 1.0) -> bool:
        is_time = self.run.engine.now < self.until
        return is_time and habit in self.habits and self.run.random.random() < chance

    def _split(self) -> tuple[list[int], list[int]]:
        """All nodes, in two random halves."""
        order = list(range(len(self.run.nodes)))
        self.run.random.shuffle(order)
        middle = len(order) // 2
        return order[:middle], order[middle:]

    def _send(self, item: BlockItem | VoteItem, targets: list[int]) -> None:
        self.run.network.broadcast(self.index, item, item.size, targets)

    def _send_late(self, item: BlockItem | VoteItem, least: int, most: int) -> None:
        at = min(self.run.engine.now + self.run.random.randrange(least, most), self.until)
        self.run.engine.at(at, self.run.network.broadcast, self.index, item, item.size)

    # --- votes --------------------------------------------------------------------------------

    def _vote_for(self, source: Checkpoint, target: Checkpoint) -> VoteItem:
        return self.run.archive.add_vote(sign_vote(self.key, self.run.archive.chain_id, source, target))

    def cast(self, source: Checkpoint, target: Checkpoint) -> None:
        if self._has("silent", 0.95):
            return
        vote = self._vote_for(source, target)
        self._old.append(vote)
        self.receive(vote, self.index)
        if self._has("double votes", 0.3):
            others = [
                item.hash
                for item in self.blocks.values()
                if item.header.height == target.height and item.hash != target.hash
            ]
            wrong = others[-1] if others else hash_domain("simulated-block", target.hash)
            twin = self._vote_for(source, Checkpoint(target.height, wrong))
            first, second = self._split()
            self._send(vote, first)
            self._send(twin, second)
        elif self._has("late votes", 0.7):
            self._send_late(vote, 1_000, 15_000)
        else:
            self.broadcast(vote)
        if self._has("surround votes", 0.2):
            genesis = self.run.archive.genesis_item
            wide = self._vote_for(Checkpoint(Height(0), genesis.hash), target)
            self._send(wide, self._split()[0])

    def on_accepted(self, item: BlockItem) -> None:
        if self._has("fork votes") and item is not self.head:
            source = item.get_state().get_finality().justified
            if source.height < item.header.height:
                self.broadcast(self._vote_for(source, Checkpoint(item.header.height, item.hash)))

    def _replay(self) -> None:
        if self._old:
            self.broadcast(self.run.random.choice(self._old))

    def _report_late(self) -> None:
        for seen in self.run.random.sample(self._old, min(3, len(self._old))):
            for rival in seen.rivals:
                self.duties.send(ReportVotes(seen.vote, rival.vote))
                return

    # --- blocks -------------------------------------------------------------------------------

    def propose(self) -> bool:
        if self._has("silent", 0.9) or self._has("deaf", 0.3):
            return False
        if self._has("old parent", 0.5):
            self._propose_on_old()
        return super().propose()

    def _propose_on_old(self) -> None:
        """A fork from a little below the head, where its turn has come on that parent."""
        parent = self.head
        final = self.store.finalized.height
        for _ in range(self.run.random.randrange(1, 4)):
            if parent.header.height > final:
                parent = self.blocks[parent.parent]
        now = self.now
        at = get_carrier_entitled_time(
            parent.get_state(), self.run.archive.params, parent.header, self.address, parent.header.time
        )
        if parent is not self.head and at is not None and at <= now:
            proposal = self.build(None, at, on=parent)
            if proposal is not None:
                self._enter_and_send(proposal)

    def _enter_and_send(self, proposal: Proposal) -> None:
        item = self.run.archive.add_block(proposal.block)
        self.seen.add(item)
        self.receive_block(item, self.index)
        self.broadcast(item)

    def publish(self, proposal: Proposal) -> bool:
        archive, random = self.run.archive, self.run.random
        if not (self.habits & {"equivocate", "siblings", "hide blocks"}) or self.run.engine.now >= self.until:
            return super().publish(proposal)
        item = archive.add_block(proposal.block)
        parent = self.head
        variants = self._build_variants(parent, proposal, 6 if "siblings" in self.habits else 1)
        self._trace_block(proposal.block)
        self.seen.add(item)
        self.receive_block(item, self.index)
        if self._has("equivocate", 0.6) and variants:
            first, second = self._split()
            self._send(item, first)
            self._send(variants[0], second)
        elif self._has("siblings", 0.6):
            for variant in (*variants, item):
                self._send_late(variant, 1, 2_000)
        elif self._has("hide blocks", 0.6):
            self._send_late(item, 1_000, 12_000)
        else:
            self.broadcast(item)
        random.random()
        return self.head is item

    def _build_variants(self, parent: BlockItem, proposal: Proposal, count: int) -> list[BlockItem]:
        """Other valid blocks of its own on the same parent."""
        found = []
        for i in range(count):
            time = Millis(proposal.block.header.time + 1 + i)
            other = self.build(proposal.block.body.work, time, on=parent, transactions=())
            if other is not None:
                found.append(self.run.archive.add_block(other.block))
        return found

    def _propose_early(self) -> None:
        """A block that is valid later, or out of turn and never valid."""
        archive, parent = self.run.archive, self.head
        at = get_carrier_entitled_time(
            self.state, archive.params, parent.header, self.address, Millis(self.now + 500)
        )
        if at is None:
            return
        proposal = self.build(None, at, on=parent)
        if proposal is None:
            return
        if self.run.random.random() < 0.5:
            self.broadcast(archive.add_block(proposal.block))
        else:
            earlier = parent.header.time + self.run.random.randrange(1, archive.params.idle_ms + 4_000)
            self.broadcast(archive.add_block(self._forge_header(proposal.block, time=Millis(earlier))))

    # --- what no rule allows ------------------------------------------------------------------

    def _forge_header(self, block: Block, body: Body | None = None, **header: object) -> Block:
        """With other contents, its roots made to fit and signed again."""
        body = body or block.body
        fields: dict[str, object] = {
            "transactions_root": compute_transactions_root(body.transactions),
            "work_root": compute_work_root(body.work),
            "votes_root": compute_votes_root(body.votes),
        }
        forged = replace(block.header, **(fields | header))  # type: ignore[arg-type]
        return Block(forged, self.key.sign("block", compute_block_hash(forged)), body)

    def _forge(self) -> None:
        archive, random = self.run.archive, self.run.random
        params = archive.params
        at = get_carrier_entitled_time(
            self.state,
            params,
            self.head.header,
            self.address,
            Millis(self.head.header.time + params.min_block_ms),
        )
        proposal = None if at is None else self.build(None, at)
        if proposal is None:
            return
        block = proposal.block
        body, header = block.body, block.header
        genesis = Checkpoint(Height(0), archive.genesis_item.hash)
        source, head = (
            self.state.get_finality().justified,
            Checkpoint(self.head.header.height, self.head.hash),
        )
        forged_vote = sign_vote(self.key, archive.chain_id, source, head)
        wrong_vote = sign_vote(self.key, archive.chain_id, source, Checkpoint(head.height, ZERO_HASH))
        old_source = sign_vote(self.key, archive.chain_id, genesis, head)
        unsigned = replace(forged_vote, signature=Signature(bytes(64)))
        stranger = next(node for node in self.run.nodes if node.is_honest)
        stolen = replace(forged_vote, validator=stranger.address)
        old: list[Vote] = [item.vote for item in self._old[:1]]
        choice = random.randrange(18)
        votes: list[list[Vote]] = [[wrong_vote], [old_source], [unsigned], [stolen], [forged_vote] * 2, old]
        if choice < len(votes):
            forged = self._forge_header(block, replace(body, votes=(*body.votes, *votes[choice])))
        elif choice == 6:
            forged = Block(header, block.signature, Body((), None, ()))
        elif choice == 7:
            forged = Block(header, Signature(bytes(64)), body)
        elif choice == 8:
            forged = self._forge_header(block, state_root=ZERO_HASH)
        elif choice == 9:
            forged = self._forge_header(block, height=Height(header.height + 1))
        elif choice == 10:
            forged = self._forge_header(block, time=Millis(self.head.header.time - 1))
        elif choice == 11:
            forged = self._forge_header(block, chain_id=ZERO_HASH)
        elif choice == 12:
            forged = self._forge_header(block, version=2)
        elif choice == 13:
            forged = self._forge_header(block, parent=hash_domain("simulated-block", header.parent))
        elif choice == 14:
            transfer = Transfer(self.address, Amount(2**40))
            forged = self._forge_transactions(block, transfer)
        elif choice == 15:
            forged = self._forge_transactions(block, Available(ZERO_HASH))
        else:
            forged = self._forge_work(block)
        item = archive.add_block(forged)
        self.trace(f"forges block {item.hash.hex()[:8]}, kind {choice}")
        self.broadcast(item)

    def _forge_transactions(self, block: Block, payload: Payload) -> Block:
        nonce = self.state.get_account(self.address).nonce if uses_nonce(payload) else 0
        transaction = sign_transaction(self.key, self.run.archive.chain_id, nonce, payload)
        body = block.body
        return self._forge_header(block, replace(body, transactions=(*body.transactions, transaction)))

    def _forge_work(self, block: Block) -> Block:
        """Work that is not there, or wrong in one field."""
        random = self.run.random
        found = [(task, record) for task, record in self.run.archive.get_tasks(self.head) if record.qualified]
        if not found:
            work = Work(ZERO_HASH, 0, 0, 0, ZERO_HASH, 0, ZERO_HASH, (1,), ())
        else:
            task, record = found[0]
            weights = self.run.book.get_weights(task, record.qualified[0].step) or (0,)
            work = build_work(self.state, task, weights)
            changes: list[dict[str, object]] = [
                {"weights": (1, 2, 3)},
                {"weights": (2_000, 0, 0)},
                {"loss": work.loss - 1},
                {"step": work.step + 1},
                {"last_rung": work.last_rung + 1},
                {"credits": ()},
                {"openings": ZERO_HASH},
                {"first_rung": work.first_rung + 1},
                {},
            ]
            work = replace(work, **random.choice(changes))  # type: ignore[arg-type]
        return self._forge_header(block, replace(block.body, work=work))

    def _send_junk(self) -> None:
        """A transaction that no state admits, or none yet."""
        archive, random = self.run.archive, self.run.random
        votes = [item for block in list(self.blocks.values())[-5:] for item in block.votes]
        payloads: list[Payload] = [
            Available(ZERO_HASH),
            SettleTask(ZERO_HASH, ZERO_HASH),
            ExpireTask(ZERO_HASH),
            Verdict(ZERO_HASH, ZERO_HASH, True, 0, 0),
            Transfer(self.address, Amount(0)),
            Transfer(self.address, Amount(2**60)),
        ]
        if len(votes) > 1:
            payloads.append(ReportVotes(votes[0].vote, votes[1].vote))
            harmless = votes[0].vote
            payloads.append(
                ReportVotes(harmless, replace(harmless, target=Checkpoint(harmless.target.height, ZERO_HASH)))
            )
        for task, record in archive.get_tasks(self.head):
            payloads += [
                SettleTask(task, ZERO_HASH),
                ExpireTask(task),
                Verdict(task, ZERO_HASH, False, 2**60, 0),
            ]
            for milestone in (*record.qualified, *(item.milestone for item in record.unsettled)):
                payloads.append(Verdict(task, milestone.loss_opening, False, 1, 2))
                payloads.append(SettleTask(task, milestone.loss_opening))
        for opening, signature in list(archive.openings.values())[-2:]:
            signed = SignedOpening(opening, signature)
            other: OpenGradient | OpenLoss = replace(opening, weights=ZERO_HASH)
            payloads += [
                ReportOpenings(signed, signed),
                ReportOpenings(signed, SignedOpening(other, signature)),
                opening,
            ]
            if isinstance(opening, OpenGradient):
                claim = opening.claims[0]
                payloads += [
                    Accuse(WrongBundle(claim, claim.bundle.root)),
                    Accuse(WrongBundle(claim, ZERO_HASH)),
                ]
        own_set = SetValidators((Validator(self.address, 1),))
        governance = Governance(self.state.get_charter().sequence, own_set)
        approval = sign_governance(self.key, archive.chain_id, governance)
        payloads.append(Govern(governance, (approval,)))
        payload = random.choice(payloads)
        nonce = self.state.get_account(self.address).nonce if uses_nonce(payload) else random.randrange(2)
        transaction = sign_transaction(self.key, archive.chain_id, nonce, payload)
        if random.random() < 0.1:
            transaction = replace(transaction, signature=Signature(bytes(64)))
        item: TransactionItem = archive.add_transaction(transaction)
        self.submit(item)
