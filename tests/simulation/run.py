"""One run: builds the nodes of a scenario, lets virtual time pass, checks, and says what came out."""

import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from random import Random

from consensus.finality import is_finality_wanted
from consensus.params import Genesis, GenesisAccount, Validator
from consensus.types import Amount, Height, Millis
from tests.simulation.archive import Archive, Violation, VoteItem, remember
from tests.simulation.byzantine import Byzantine
from tests.simulation.clients import Operators, Payer
from tests.simulation.engine import GOOD, Engine, Network
from tests.simulation.invariants import (
    BlockChecks,
    FinalChecks,
    check_agreement,
    check_arrival,
    extract_guilty,
    has_agreed,
)
from tests.simulation.node import Node, Run
from tests.simulation.scenario import Scenario, build_attack, build_scenario, get_name
from tests.simulation.tasks import Custody, TaskBook, TaskScript
from tests.simulation.truth import get_key

START = Millis(1_700_000_000_000)
BALANCE = 1_000_000
SYNC_MS = 2_500
ARRIVAL_MS = 6_000
"""A block reaches everyone within 0.2 s on a network that works, and is final two blocks later."""
LOOK_MS = 50
PAYERS = ("payer 0", "payer 1")
PROGRESS_MS = 30_000
"""While more than two thirds are honest and connected, finality moves at least this often if it is wanted."""
SAMPLE_MS = 1_000


@dataclass(slots=True)
class Outcome:
    seed: int
    kind: str
    violation: str = ""
    blocks: int = 0
    height: int = 0
    final: int = 0
    messages: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    conflict: bool = False
    guilty_share: float = 0.0
    nodes: int = 0
    validators: int = 0
    events: Counter[str] = field(default_factory=Counter)
    """What came about on the first honest node's chain, and how the run was disturbed."""
    cpu_s: float = 0.0
    gap_ms: int = 0
    digest: str = ""

    @property
    def command(self) -> str:
        kind = "--attack " if self.kind == "attack" else ""
        return f"python -m tests.simulation {kind}--seed {self.seed} --verbose"


class Simulation:
    """All parts of one run."""

    def __init__(self, scenario: Scenario, is_verbose: bool = False) -> None:
        self.scenario = scenario
        engine = Engine(START)
        random = Random(f"run {scenario.seed}")
        network = Network(engine, Random(f"network {scenario.seed}"))
        self.archive = Archive(self._build_genesis())
        self.run = Run(engine, network, self.archive, random, TaskBook(), is_verbose)
        until = START + scenario.liars_ms
        self._build_nodes(until)
        network.heal()
        self.honest = [node for node in self.run.nodes if node.is_honest]
        scripts = [TaskScript(plan, self.archive) for plan in scenario.tasks]
        for script in scripts:
            Custody(self.run, script)
        names = {get_name(index) for index in scenario.habits}
        self.operators = Operators(self.run, scenario.changes, frozenset(names), until)
        for name in PAYERS:
            Payer(self.run, name, scenario.pay_ms, until)
        self.finals = FinalChecks(self.archive, allows_conflict=scenario.is_attack)
        self.run.finalisations.append(self.finals)
        BlockChecks(
            self.archive,
            tuple(account.address for account in self.archive.genesis.accounts),
            frozenset(node.address for node in self.honest),
            frozenset(script.task for script in scripts if script.plan.mode in ("honest", "late", "vanish")),
            checks_money_every=1 if len(self.run.nodes) < 50 else 8,
        )
        self.longest_gap = 0
        """Most milliseconds for which finality stood still on a network that works."""
        self._schedule()

    def _build_genesis(self) -> Genesis:
        scenario = self.scenario
        names = [get_name(index) for index in range(scenario.validators + scenario.observers)]
        accounts = [GenesisAccount(get_key(name).address, Amount(BALANCE), f"lab-{name}") for name in names]
        for plan in scenario.tasks:
            custody = get_key(f"custody {plan.number}").address
            accounts.append(GenesisAccount(custody, Amount(BALANCE), "lab-n0" if plan.number else "hospital"))
            accounts.append(GenesisAccount(get_key(f"contributor {plan.number}").address, Amount(0), ""))
        accounts += [
            GenesisAccount(get_key(name).address, Amount(BALANCE), "") for name in (*PAYERS, "payee")
        ]
        return Genesis(
            name=f"simulated {scenario.seed}",
            time=START,
            params=scenario.params,
            accounts=tuple(accounts),
            validators=tuple(
                Validator(get_key(get_name(index)).address, stake)
                for index, stake in enumerate(scenario.stakes)
            ),
            mining_organisations=tuple(f"lab-{name}" for name in names),
        )

    def _build_nodes(self, until: int) -> None:
        scenario, run = self.scenario, self.run
        for index in range(scenario.validators + scenario.observers):
            name, offset = get_name(index), scenario.offsets[index]
            if index not in scenario.habits:
                Node(run, index, name, offset, prunes=index % 3 == 1)
            else:
                Byzantine(run, index, name, scenario.habits[index], until, offset)
        for index in scenario.twins:
            Byzantine(run, len(run.nodes), get_name(index), frozenset(), until)

    def _schedule(self) -> None:
        engine, scenario, network = self.run.engine, self.scenario, self.run.network
        network.weather = scenario.weather
        for outage in scenario.outages:
            if outage.groups:
                groups = [*outage.groups, *(0 for _ in range(len(self.run.nodes) - len(outage.groups)))]
                engine.after(outage.start_ms, network.set_groups, groups)
                engine.after(outage.end_ms, network.heal)
            else:
                engine.after(outage.start_ms, self._crash, self.run.nodes[outage.node])
                engine.after(outage.end_ms, self._restart, self.run.nodes[outage.node])
        engine.after(scenario.chaos_ms, self._calm)
        for node in self.run.nodes:
            node.on_head()
            engine.after(self.run.random.randrange(SYNC_MS), self._sync, node)

    def _crash(self, node: Node) -> None:
        if node.is_up:
            node.crash()

    def _restart(self, node: Node) -> None:
        if not node.is_up:
            node.restart()

    def _calm(self) -> None:
        network = self.run.network
        network.weather = GOOD
        network.heal()
        for node in self.run.nodes:
            self._restart(node)
        self.run.trace("network", "is calm")

    def _sync(self, node: Node) -> None:
        peer = self.run.network.random.choice(self.run.nodes)
        if peer is not node:
            node.sync(peer)
        self.run.engine.after(SYNC_MS, self._sync, node)

    # --- passing time -------------------------------------------------------------------------

    def execute(self) -> None:
        """Raises: Violation."""
        engine, scenario = self.run.engine, self.scenario
        engine.run_until(START + scenario.chaos_ms)
        if scenario.is_attack:
            engine.run_until(START + scenario.end_ms)
            return
        self._check_progress()
        check_agreement(self.honest, self._await_agreement())
        for node in self.honest[:3]:
            check_arrival(node, self.run.random)

    def _await_agreement(self) -> Height:
        """Return once all have one head and what is in blocks by now is final, or after `ARRIVAL_MS`.

        Blocks are made to the very end: the last may be on its way, and carry something, when the time is up.
        The height of what had to be final.
        """
        engine = self.run.engine
        content = max(node.state.get_finality().content for node in self.honest)
        until = engine.now + ARRIVAL_MS
        while engine.now < until and not has_agreed(self.honest, content):
            engine.run_until(Millis(engine.now + LOOK_MS))
        return content

    def _check_progress(self) -> None:
        """More than two thirds are honest and connected: while something waits to be final, finality moves.

        Who voted on a branch that lost signs again once the chain is higher than that branch was, so how long
        this takes after a partition depends on how much was built in it.
        """
        engine = self.run.engine
        last = [(engine.now, node.finalized.height) for node in self.honest]
        while engine.now < START + self.scenario.end_ms:
            engine.run_until(engine.now + SAMPLE_MS)
            for place, node in enumerate(self.honest):
                since, height = last[place]
                if node.finalized.height > height or not is_finality_wanted(node.state):
                    last[place] = engine.now, node.finalized.height
                    continue
                self.longest_gap = max(self.longest_gap, engine.now - since)
                if engine.now - since > PROGRESS_MS:
                    raise Violation(f"{node.name}: finality stands at {height} for {engine.now - since} ms")

    def check_evidence(self) -> float:
        """The share of stake that the votes of honest nodes convict.

        Raises: Violation if two conflicting blocks are final and it is less than a third.
        """
        votes: dict[VoteItem, None] = {}
        for node in self.honest:
            votes.update(dict.fromkeys(item for item in node.seen if isinstance(item, VoteItem)))
        guilty = extract_guilty([item for item in votes if item.is_valid])
        honest = {node.address for node in self.honest}
        if guilty & honest:
            raise Violation("votes of an honest validator are slashable")
        stakes = {get_key(get_name(i)).address: stake for i, stake in enumerate(self.scenario.stakes)}
        share = sum(stakes.get(address, 0) for address in guilty) / sum(stakes.values())
        if self.finals.conflict is not None and 3 * share < 1 - 1e-9:
            raise Violation(f"conflicting blocks are final, evidence against {share:.3f} of stake")
        return share

    def fill(self, outcome: Outcome) -> None:
        node = self.honest[0]
        outcome.blocks = len(self.archive.valid)
        outcome.height = node.head.header.height
        outcome.final = node.finalized.height
        outcome.messages = self.run.network.messages
        outcome.reasons = dict(sorted(self.archive.reasons.items()))
        outcome.conflict = self.finals.conflict is not None
        outcome.nodes = len(self.run.nodes)
        outcome.validators = self.scenario.validators
        outcome.events = self._count_events(node)
        outcome.gap_ms = self.longest_gap
        outcome.digest = f"{node.head.hash.hex()} {self.run.engine.count} {self.run.network.messages}"

    def _count_events(self, node: Node) -> "Counter[str]":
        scenario, state = self.scenario, node.state
        events = Counter(
            {
                "validators jailed": len(state.get_jailed()),
                "changes of set": state.get_validator_set().number,
                "organisations suspended": len(state.get_suspended()),
                "Byzantine validators": len(scenario.habits),
                "partitions": sum(1 for outage in scenario.outages if outage.groups),
                "crashes": sum(1 for outage in scenario.outages if not outage.groups),
                "blocks": len(self.archive.valid),
                "blocks off the chain": len(self.archive.valid) - node.head.header.height - 1,
            }
        )
        for task in state.get_tasks():
            record = state.get_task(task)
            if record is not None:
                events[f"tasks {record.status}"] += 1
                events["rungs settled"] += record.settled.last_rung + 1 if record.settled else 0
        item = node.head
        while item.header.height:
            events["work blocks"] += item.block.body.work is not None
            events["votes in blocks"] += len(item.votes)
            for transaction in item.transactions:
                events[f"{type(transaction.transaction.payload).__name__} in blocks"] += 1
            item = self.archive.valid[item.parent]
        return events


def simulate(seed: int, kind: str = "random", is_verbose: bool = False) -> Outcome:
    """The run of this seed; a violation is in the outcome and not raised."""
    scenario = build_attack(seed) if kind == "attack" else build_scenario(seed)
    outcome = Outcome(seed, kind)
    started = time.process_time()
    with remember():
        simulation = Simulation(scenario, is_verbose)
        try:
            simulation.execute()
            outcome.guilty_share = simulation.check_evidence()
        except Violation as violation:
            outcome.violation = str(violation)
        except Exception:
            # Whatever escapes the rules is a violation too, and the run's seed is what counts.
            outcome.violation = f"an exception escaped: {traceback.format_exc()}"
        simulation.fill(outcome)
    outcome.cpu_s = time.process_time() - started
    return outcome
