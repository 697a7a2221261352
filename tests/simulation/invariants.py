"""What must hold in every run, checked at every valid block and every finalisation, and at the end."""

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from consensus.errors import InvalidBlock
from consensus.fork_choice import Store
from consensus.records import TaskState
from consensus.settlement import LIVING
from consensus.state import State, TaskStatus
from consensus.types import Address, Hash32, Height
from consensus.vote import Checkpoint
from tests.simulation.archive import Archive, BlockItem, Violation, VoteItem

if TYPE_CHECKING:
    from tests.simulation.node import Node


def count_money(state: State, addresses: tuple[Address, ...]) -> int:
    """Balances, stakes, deposits, locks, treasury, escrows and bonds of all who ever held any."""
    jailed = state.get_jailed()
    pending = state.get_pending_set()
    total: int = sum(state.get_account(address).balance for address in addresses)
    total += sum(member.stake for member in state.get_validators() if member.address not in jailed)
    total += sum(member.stake for member in pending.deposits) if pending else 0
    total += sum(lock.amount for lock in state.get_locks()) + state.get_charter().treasury
    for task in state.get_tasks():
        record = state.get_task(task)
        if record is not None:
            total += record.escrow + record.bond
    return total


@dataclass
class BlockChecks:
    """Observes every valid block of the run, on whatever fork."""

    archive: Archive
    addresses: tuple[Address, ...]
    honest: frozenset[Address]
    """Validators and miners that keep the rules."""
    honest_tasks: frozenset[Hash32]
    """Of custodies that keep them."""
    money: int = 0
    paid: dict[Hash32, dict[Hash32, frozenset[int]]] = field(default_factory=dict)
    """Rungs settled by a block's chain, by task."""
    checks_money_every: int = 1

    def __post_init__(self) -> None:
        genesis = self.archive.genesis_item
        self.money = count_money(genesis.get_state(), self.addresses)
        self.paid[genesis.hash] = {}
        self.archive.observers.append(self.on_block)

    def on_block(self, parent: BlockItem, item: BlockItem) -> None:
        before, state = parent.get_state(), item.get_state()
        where = f"block {item.hash.hex()[:8]} at height {item.header.height}"
        if item.header.height % self.checks_money_every == 0:
            money = count_money(state, self.addresses)
            if money != self.money:
                raise Violation(f"{where}: money {self.money} became {money}")
            if min(state.get_account(address).balance for address in self.addresses) < 0:
                raise Violation(f"{where}: a balance is negative")
        jailed = self.honest.intersection(state.get_jailed())
        if jailed:
            raise Violation(f"{where}: an honest validator is slashed")
        old, new = before.get_finality(), state.get_finality()
        if new.finalized.height < old.finalized.height or new.justified.height < old.justified.height:
            raise Violation(f"{where}: finality of a state falls")
        self._check_tasks(where, before, parent, item)

    def _check_tasks(self, where: str, before: State, parent: BlockItem, item: BlockItem) -> None:
        state = item.get_state()
        paid = self.paid[parent.hash]
        tasks = state.get_tasks()
        if not tasks:
            self.paid[item.hash] = paid
            return
        if tasks[: len(before.get_tasks())] != before.get_tasks():
            raise Violation(f"{where}: a task has vanished")
        result = dict(paid)
        for task in tasks:
            old, new = before.get_task(task), state.get_task(task)
            if old is None or new is None or old == new:
                continue
            rungs = result.get(task, frozenset())
            result[task] = rungs | self._check_payment(where, state, task, old, new, rungs)
        self.paid[item.hash] = result

    def _check_payment(
        self, where: str, state: State, task: Hash32, old: TaskState, new: TaskState, paid: frozenset[int]
    ) -> frozenset[int]:
        """The rungs that this block settled: none for the second time, each at its price."""
        publication = state.get_publication(task)
        if publication is None:
            raise Violation(f"{where}: a task without its publication")
        if old.status not in LIVING:
            raise Violation(f"{where}: an ended task changed")
        first = old.settled.last_rung + 1 if old.settled else 0
        last = new.settled.last_rung if new.settled else -1
        settled = frozenset(range(first, last + 1))
        if last < first - 1 or settled & paid:
            raise Violation(f"{where}: a milestone of task {task.hex()[:8]} is settled twice")
        if new.status in LIVING:
            known = [*(item.milestone for item in old.unsettled), *old.qualified]
            left = {item.milestone.loss_opening for item in new.unsettled}
            left |= {milestone.loss_opening for milestone in new.qualified}
            cost = 0
            for milestone in known:
                if milestone.loss_opening in left:
                    continue
                batches = sum(credit.batches for credit in milestone.credits)
                cost += publication.batch_fee * batches
                if milestone.last_rung <= last and batches:
                    rungs = publication.ladder[milestone.first_rung : milestone.last_rung + 1]
                    cost += sum(rung.reward for rung in rungs)
            if new.status == TaskStatus.CLOSING and old.status != TaskStatus.CLOSING:
                cost += publication.batch_fee * sum(credit.batches for credit in old.interval_credits)
            # A block may open and close at once; then only the whole sum is checked, by conservation.
            if new.step == old.step and old.escrow - new.escrow != cost:
                raise Violation(f"{where}: task {task.hex()[:8]} paid {old.escrow - new.escrow}, not {cost}")
        elif new.escrow or new.bond:
            raise Violation(f"{where}: an ended task holds money")
        return settled


@dataclass
class FinalChecks:
    """Of every honest node's last finalised block: one chain for all, and it only grows."""

    archive: Archive
    allows_conflict: bool
    chain: dict[int, Hash32] = field(default_factory=dict)
    """The finalised block of each height."""
    conflict: tuple[Hash32, Hash32] | None = None
    times: dict[Hash32, int] = field(default_factory=dict)

    def on_final(self, node: "Node", before: Checkpoint, after: Checkpoint) -> None:
        if not node.is_honest:
            return
        if after.height <= before.height or not self.archive.is_ancestor(before.hash, after.hash):
            raise Violation(f"{node.name}: final {before.height} is left for {after.height}")
        self.times.setdefault(after.hash, node.run.engine.now)
        item = self.archive.valid[after.hash]
        while item.header.height > before.height:
            other = self.chain.setdefault(item.header.height, item.hash)
            if other != item.hash:
                if not self.allows_conflict:
                    raise Violation(f"two final blocks at height {item.header.height}")
                self.conflict = self.conflict or (other, item.hash)
            item = self.archive.valid[item.parent]


def check_arrival(node: "Node", random: Random) -> None:
    """The node's blocks in another order of arrival give the same head and checkpoints."""
    genesis = node.run.archive.genesis_item
    store = Store(genesis.hash, genesis.header.time)
    children: dict[Hash32, list[BlockItem]] = {}
    for item in node.blocks.values():
        if item.header.height:
            children.setdefault(item.parent, []).append(item)
    ready = list(children.get(genesis.hash, ()))
    while ready:
        item = ready.pop(random.randrange(len(ready)))
        finality, header = item.get_state().get_finality(), item.header
        try:
            store.on_block(
                item.hash,
                item.parent,
                header.height,
                header.time,
                None,
                finality.justified,
                finality.finalized,
            )
        except InvalidBlock:
            continue
        ready += children.get(item.hash, ())
    found = (store.get_head(), store.justified, store.finalized)
    wanted = (node.store.get_head(), node.store.justified, node.store.finalized)
    if found != wanted:
        raise Violation(f"{node.name}: the head depends on the order of arrival")


def has_agreed(nodes: list["Node"], content: Height) -> bool:
    """Whether all these nodes have one head, in whose state everything up to height `content` is final."""
    heads = {node.head.hash for node in nodes}
    return len(heads) == 1 and nodes[0].state.get_finality().finalized.height >= content


def check_agreement(nodes: list["Node"], content: Height) -> None:
    """All honest nodes have one head, and what waited for finality, up to height `content`, is final."""
    if has_agreed(nodes, content):
        return
    if len({node.head.hash for node in nodes}) > 1:
        names = ", ".join(
            f"{node.name} {node.head.hash.hex()[:8]} at {node.head.header.height}" for node in nodes
        )
        raise Violation(f"no common head after healing: {names}")
    finality = nodes[0].state.get_finality()
    raise Violation(
        f"not final after healing: head {nodes[0].head.header.height}, content {content}, "
        f"justified {finality.justified.height}, final {finality.finalized.height}"
    )


def extract_guilty(votes: list[VoteItem]) -> frozenset[Address]:
    """Validators whom two of these votes convict."""
    held = set(votes)
    return frozenset(item.vote.validator for item in votes if any(rival in held for rival in item.rivals))
