"""What must hold when all faults are over, on every node, as any client can read it by REST."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.reliability.backend import Backend, BackendError, poll
from benchmarks.reliability.load import Load
from benchmarks.reliability.training import BOND, ENDED
from benchmarks.reliability.watch import Watcher
from node.api.schemas import BlockModel, TaskModel

POLL_S = 0.25
QUIET_S = 120.0
"""Longest wait for all nodes to stand at one head with nothing pending."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One invariant and what was seen of it."""

    what: str
    seen: str
    problems: tuple[str, ...] = ()


async def wait_quiet(watcher: Watcher, names: Sequence[str]) -> int:
    """The height of the head at which all nodes stand with empty mempools. Raises: BackendError."""
    height = 0

    async def is_quiet() -> bool:
        nonlocal height
        views = [await watcher.look(name) for name in names]
        stood = [view for view in views if view is not None and view.mempool == 0]
        height = max((view.head.height for view in stood), default=0)
        return len(stood) == len(names) and len({(v.head.hash, v.finalized.height) for v in stood}) == 1

    await poll(is_quiet, "all nodes rest at one head", QUIET_S, POLL_S)
    return height


async def count_money(load: Load, name: str, addresses: Sequence[str]) -> dict[str, int]:
    """Balances of these accounts, what tasks hold, and the locked bonds of ended ones, all read at one head.

    A manifest's evidence is admissible for longer than it runs, so no bond has been unlocked yet.
    """
    client = load.get_client(name)
    while True:
        accounts = [await client.get_account(address) for address in addresses]
        listed = [task async for task in client.iterate_tasks()]
        tasks = [await client.get_task(task.id) for task in listed]
        head = (await client.get_status()).head.hash
        if {account.block for account in accounts} == {head}:
            held = {
                "tasks": sum(task.escrow + task.bond for task in tasks),
                "locks": sum(BOND for task in tasks if task.status in ENDED),
            }
            return {account.address: account.balance for account in accounts} | held
        await asyncio.sleep(POLL_S)


async def _read_chain(load: Load, name: str) -> dict[int, str]:
    """Hash by height."""
    return {block.height: block.hash async for block in load.get_client(name).iterate_blocks()}


async def _read_blocks(load: Load, name: str, top: int) -> tuple[BlockModel, ...]:
    client = load.get_client(name)
    return tuple([await client.get_block(str(height)) for height in range(1, top + 1)])


def check_prefix(chains: dict[str, dict[int, str]], final_height: int, sighted: dict[int, str]) -> Finding:
    """Every node has the same finalised blocks, and every block that was ever called final is among them."""
    problems = []
    reference, chain = next(iter(chains.items()))
    for name, other in chains.items():
        differ = [h for h in range(final_height + 1) if chain.get(h) != other.get(h)]
        if differ:
            problems.append(f"{name} and {reference} differ from height {differ[0]}")
    lost = [height for height, block in sorted(sighted.items()) if chain.get(height) != block]
    if lost:
        problems.append(f"the block that was final at height {lost[0]} is not on the chain")
    seen = f"{final_height + 1} blocks, {len(sighted)} heights seen final meanwhile"
    return Finding("finalised prefix equal on every node, and never changed", seen, tuple(problems))


def check_roots(roots: dict[str, str], height: int) -> Finding:
    """One state root."""
    problems = () if len(set(roots.values())) == 1 else (f"state roots differ: {roots}",)
    return Finding("state root equal on every node", f"at height {height}", problems)


def check_money(before: dict[str, int], after: dict[str, dict[str, int]]) -> Finding:
    """The sum is what it was at the beginning, on every node, and every account is the same everywhere."""
    total = sum(before.values())
    problems = [
        f"{name}: {sum(money.values())} instead of {total}"
        for name, money in after.items()
        if sum(money.values()) != total
    ]
    if len({tuple(sorted(money.items())) for money in after.values()}) != 1:
        problems.append("the nodes tell different balances")
    return Finding("money conserved, to the last unit", f"{total:,} in all", tuple(problems))


def check_transfers(blocks: Sequence[BlockModel], acknowledged: set[str], resent: int) -> Finding:
    """Each acknowledged transfer is on the chain exactly once."""
    counts = Counter(t.id for block in blocks for t in block.transactions)
    lost = [i for i in acknowledged if not counts[i]]
    doubled = [i for i, count in counts.items() if count > 1]
    problems = []
    if lost:
        problems.append(f"{len(lost)} acknowledged transfers are not on the chain")
    if doubled:
        problems.append(f"{len(doubled)} transactions are on the chain twice")
    seen = f"{len(acknowledged):,} transfers, {resent} handed in again after their node lost them"
    return Finding("every acknowledged transfer on the chain exactly once", seen, tuple(problems))


def check_milestones(blocks: Sequence[BlockModel], tasks: Sequence[TaskModel]) -> Finding:
    """No rung of a task is claimed by two blocks, and every rung that is called taken by one."""
    counts = Counter(
        (block.work.task, rung)
        for block in blocks
        if block.work is not None
        for rung in range(block.work.first_rung, block.work.last_rung + 1)
    )
    doubled = [(task, rung) for (task, rung), count in counts.items() if count > 1]
    problems = [f"rung {rung} of {task[:12]} is on the chain twice" for task, rung in doubled]
    taken = sum(task.rungs_taken for task in tasks)
    if taken != len(counts):
        problems.append(f"{taken} rungs are taken, {len(counts)} are on the chain")
    return Finding("no milestone taken twice", f"{len(counts)} milestones", tuple(problems))


def check_pay(
    tasks: Sequence[TaskModel], before: dict[str, int], after: dict[str, int], custody: str, bank: set[str]
) -> Finding:
    """What the custody lost is exactly what miners got: rewards once, and a fee for each credited batch."""
    parts = ("tasks", "locks")
    earned = {a: after[a] - before.get(a, 0) for a in after if a not in bank and a not in parts}
    owed = sum(
        sum(rung.reward for rung in task.ladder if rung.state == "settled")
        + task.batch_fee * sum(credit.batches for credit in task.credits)
        for task in tasks
    )
    held = sum(after[part] - before[part] for part in parts)
    problems = []
    if -earned[custody] != owed + held:
        problems.append(f"the custody paid {-earned[custody]}, owed {owed}, and {held} is still held")
    if sum(gain for address, gain in earned.items() if address != custody) != owed:
        problems.append(f"miners got {sum(g for a, g in earned.items() if a != custody)}, not {owed}")
    credited = {credit.miner for task in tasks for credit in task.credits}
    if {a for a, gain in earned.items() if gain and a != custody} - credited:
        problems.append("somebody without credit was paid")
    return Finding(
        "nothing paid twice: rewards and fees as the chain credits them", f"{owed:,} paid", tuple(problems)
    )


async def check_net(
    backend: Backend,
    watcher: Watcher,
    load: Load,
    node_addresses: dict[str, str],
    before: dict[str, int],
    old: set[str],
) -> tuple[Finding, ...]:
    """All invariants of a net whose faults are over and whose load has been drained.

    `before` is the money at the beginning, `old` are the tasks that had ended then.
    """
    names = backend.names
    await wait_quiet(watcher, names)
    chains = {name: await _read_chain(load, name) for name in names}
    views = [await watcher.look(name) for name in names]
    stood = [view for view in views if view is not None]
    if len(stood) != len(names):
        raise BackendError("a node fell silent after the net came to rest")
    final_height = min(view.finalized.height for view in stood)
    roots = {
        name: (await load.get_client(name).get_block(str(final_height))).header.state_root for name in names
    }
    addresses = [*node_addresses.values(), *load.addresses]
    money = {name: await count_money(load, name, addresses) for name in names}
    first = load.get_client(names[0])
    tasks = [await first.get_task(task.id) async for task in first.iterate_tasks()]
    blocks = await _read_blocks(load, names[0], max(chains[names[0]]))
    last = money[names[0]]
    bank = {node_addresses["node4"], *load.addresses}
    return (
        check_prefix(chains, final_height, watcher.finalized),
        check_roots(roots, final_height),
        Finding(
            "no two nodes finalised different blocks, none went back",
            f"{len(watcher.history):,} looks",
            tuple(watcher.violations),
        ),
        check_money(before, money),
        check_transfers(blocks, load.acknowledged, load.resent),
        check_milestones(blocks, tasks),
        check_pay(
            [task for task in tasks if task.id not in old], before, last, node_addresses["node1"], bank
        ),
    )
