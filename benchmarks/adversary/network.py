"""Peers against nodes: floods, junk, endless headers, poisoned snapshots, an eclipse."""

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial

import pytest

from benchmarks import flood
from benchmarks.adversary.profile import (
    Outcome,
    Profile,
    Scene,
    note,
    require,
    require_least,
    require_most,
)
from benchmarks.voted_chain import VotedChain
from consensus.codec import encode
from consensus.crypto import SigningKey, hash_domain
from consensus.identifiers import compute_block_hash
from consensus.task import Transfer
from consensus.transaction import sign_transaction
from consensus.types import Address, Amount, Hash32, Height
from node.gossip.messages import MAX_HEADERS, MAX_REQUEST_BYTES, Kind, PeerStatus, Route
from node.gossip.transport import Status, TransportError
from node.ledger.check import check_ledger
from node.testnet import PORTS_PER_NODE
from node.waiting import MAX_BLOCKS
from tests.integration.intruder import Intruder
from tests.integration.peers import World
from tests.integration.rig import Mallory, Rig, find_free_ports, wait_until
from tests.integration.syncing import (
    PAYERS,
    ChainNode,
    build_chain,
    build_snapshot,
    running,
    syncing,
)
from tests.integration.taskcluster import TaskCluster
from tests.integration.test_eclipse import CASES, SLOTS, build_siege, play
from tests.integration.test_snapshot import SPOILS, Poisoner
from tests.integration.test_sync import Boaster

REAL_NODES = "Whole nodes as `bmif run` starts them: LevelDB, HTTPS with mutual TLS on real sockets."
CHAINS = "Nodes with real chains and networks, reduced to synchronising"

LONELY_S = 5.0

# --- headers without end ------------------------------------------------------------------------


async def spam_headers(scene: Scene) -> Outcome:
    """A peer claims a million blocks above a real chain and signs headers as long as it is asked; another
    sends blocks without parents."""
    length = 60 if scene.quick else 300
    source = build_chain(length)
    filled = ChainNode("filled", source.genesis)
    filled.fill(source.encoded)
    alone, _ = await _synchronise(scene, source, filled, None)
    half = ChainNode("half", source.genesis)
    half.fill(source.encoded[: length // 2])
    liar = half.copy("a")
    boaster = liar.service = Boaster(liar.chain, SigningKey(b"m" * 32))
    victim, faults = await _synchronise(scene, source, filled, liar)
    lonely, again = ChainNode("lonely", source.genesis), half.copy("a")
    more = again.service = Boaster(again.chain, SigningKey(b"m" * 32))
    again.get_status = liar.get_status  # type: ignore[method-assign]
    async with running(World(scene.directory, False), again, lonely), syncing(lonely):
        await lonely.wait_until(lambda: more.served > 0, 60)
        await lonely.clock.sleep(LONELY_S)
    orphans, kept, blamed = await _send_orphans(scene)
    figures = (
        require("the victim has the honest head", victim.chain.head_hash == source.head.hash, True),
        require(
            "entries in its ledger beyond those without the attack",
            sum(1 for _ in victim.store.iterate(b"")) - sum(1 for _ in alone.store.iterate(b"")),
            0,
        ),
        require_most("headers that it took from the spammer, of a million", boaster.served, 8 * MAX_HEADERS),
        require_most("blocks without parents that a node keeps", kept, MAX_BLOCKS),
        require("honest peers blamed", sorted(faults.keys() - {"a"}), []),
        require(
            "made-up blocks on the chain of a victim that knows nobody else",
            max(0, lonely.chain.head.height - length // 2),
            0,
        ),
        note(
            "its height, of real blocks that the spammer has", f"{lonely.chain.head.height} of {length // 2}"
        ),
        note(f"headers that such a victim takes in {LONELY_S:.0f} s", more.served),
        note("blocks without parents that were sent", orphans),
        note("score of who sent them (an honest node may have such blocks, too)", blamed),
    )
    return Outcome(
        f"at most {8 * MAX_HEADERS} headers and {MAX_BLOCKS} blocks in memory, nothing on disk",
        "a signature for each header that it wants read",
        "nothing",
        figures,
    )


async def _synchronise(
    scene: Scene, source: VotedChain, filled: ChainNode, liar: ChainNode | None
) -> tuple[ChainNode, dict[str, float]]:
    """A new node to the head, beside a liar that says it is far ahead; with its peers' scores."""
    node, servers = ChainNode("new", source.genesis), [filled.copy("b")]
    if liar is not None:
        status = liar.get_status()
        claim = PeerStatus(status.chain_id, status.genesis, Height(10**6), Hash32(b"\x99" * 32), "boast")
        liar.get_status = lambda: claim  # type: ignore[method-assign]
        servers.insert(0, liar)
    async with running(World(scene.directory, False), *servers, node), syncing(node):
        await node.wait_until(lambda: node.chain.head_hash == source.head.hash, 180)
        if liar is not None:
            await node.wait_until(lambda: liar.service.served > 0, 60)  # type: ignore[attr-defined]
        return node, node.get_faults()


async def _send_orphans(scene: Scene) -> tuple[int, int, float]:
    """How many were sent, how many a node keeps, and how it scores their sender."""
    async with TaskCluster(scene.directory / "orphans").run(1, 2, 3, 4) as cluster:
        await cluster.finalize()
        await cluster.stop(4)
        script, victim = cluster.build_script(), cluster[1]
        template, count = script.build_carrier(), 2 * MAX_BLOCKS
        async with Intruder(cluster, "node4") as intruder:
            for number in range(count):
                parent = hash_domain("none", number.to_bytes(4))
                block = script.forge(template, key=cluster.keys["node4"], parent=parent, height=Height(10**6))
                intruder.announce(Kind.BLOCK, compute_block_hash(block.header), encode(block))
            last = compute_block_hash(block.header)
            await cluster.wait_until(lambda: victim.chain.is_waiting(last), "they were taken")
            kept = len(victim.chain._orphans)
            await cluster.finalize()
            info = intruder.get_info(victim)
            return count, kept, 0.0 if info is None else info.score


# --- five hundred connections -------------------------------------------------------------------


async def flood_connections(scene: Scene) -> Outcome:
    """As `benchmarks/flood.py`, which says what each connection does."""
    ports = find_free_ports(5 * PORTS_PER_NODE)
    figures = await asyncio.to_thread(flood.run, scene.directory, ports, quick=scene.quick)
    reached = {figure.what: figure.reached for figure in figures}
    slower = [
        f.reached.split("(")[1].split(",")[0]
        for f in figures
        if f.what.endswith("under flood") and "(" in f.reached
    ]
    served = reached.get("hostile requests answered with what was asked", "?")
    return Outcome(
        f"{served} answers to well-formed requests, within its rates",
        "its three certificates are banned again and again",
        f"medians {', '.join(slower)} of idle; no request failed",
        tuple(figures),
    )


# --- junk ---------------------------------------------------------------------------------------

RECEIVER = Address(hash_domain("none", b"receiver"))


async def send_junk(scene: Scene) -> Outcome:
    """One hostile node sends oversize and malformed requests, another one invalid objects of every kind."""
    rng = random.Random(scene.seed)
    rig = Rig.make(scene.directory / "rig", 5)
    try:
        for name in ("node1", "node2", "node3"):
            await rig.start(name)
        await rig.include("node2", Transfer(RECEIVER, Amount(7)))
        statuses = await _send_requests(rig, scene, rng)
        async with Mallory(rig, "node5", scene.directory) as mallory:
            objects = _build_junk(rig, mallory, rng)
            sent = 0
            for kind, data in objects:
                sent += 1
                object_id = hash_domain("none", data)
                before = {name: mallory.get_score(name) for name in rig.nodes}
                mallory.announce(kind, object_id, data)
                await wait_until(partial(_is_blamed, mallory, before), f"every node blames it for the {kind}")
                if all(mallory.is_banned(name) for name in rig.nodes):
                    break
            await wait_until(lambda: all(mallory.is_banned(name) for name in rig.nodes), "it is banned")
        held = sum(
            node.core.has_object(kind, hash_domain("none", data))
            for node in rig.nodes.values()
            for kind, data in objects
        )
        begun = asyncio.get_running_loop().time()
        await rig.include("node2", Transfer(RECEIVER, Amount(7)))
        await rig.wait_agreement()
        took = asyncio.get_running_loop().time() - begun
        hostile = {"node4", "node5"}
        blamed = [p.node_id for n in rig.nodes.values() for p in n.network.peers() if p.score]
        figures = (
            require(
                "requests answered with anything but a refusal", sum(s is Status.OK for s in statuses), 0
            ),
            require_most("malformed requests until the sender was banned", statuses.count(Status.BAD), 4),
            require_most("invalid objects until every node had banned the sender", sent, 6),
            require("objects of it that any node holds", held, 0),
            require("honest nodes blamed by others", sorted(set(blamed) - hostile), []),
            require("transfers of the honest paid", rig.get_state().get_account(RECEIVER).balance, 14),
            note("answers to the requests", [f"{n} {s.name}" for s, n in Counter(statuses).items()]),
            note("seconds for an honest transfer afterwards", took),
        )
        return Outcome(
            "nothing",
            f"banned after {statuses.count(Status.BAD)} malformed requests, or {sent} objects",
            "nothing",
            figures,
        )
    finally:
        await rig.stop()


async def _send_requests(rig: Rig, scene: Scene, rng: random.Random) -> list[Status]:
    """Oversize and malformed bodies on any route of node1, until it answers that their sender is banned."""
    sender = Mallory(rig, "node4", scene.directory)
    node = rig.testnet.select(("node1",))[0]
    statuses: list[Status] = []
    try:
        while Status.FORBIDDEN not in statuses:
            assert len(statuses) < 100, "it is never banned"
            route = rng.choice(list(Route))
            body = rng.choice([bytes(MAX_REQUEST_BYTES[route] + 1), b"\xc1", rng.randbytes(90)])
            try:
                reply = await sender.transport.request(
                    f"{node.host}:{node.peer_port}", route, body, max_reply=10_000, timeout_s=60
                )
                statuses.append(reply.status)
            except TransportError:
                statuses.append(Status.TOO_LARGE)  # the node hung up before it had read it all
    finally:
        await sender.transport.stop()
    return statuses


def _build_junk(rig: Rig, mallory: Mallory, rng: random.Random) -> list[tuple[Kind, bytes]]:
    chain = rig.nodes["node1"].core.chain
    block = chain.ledger.get_block(chain.head_hash)
    assert block is not None
    forged = sign_transaction(mallory.key, hash_domain("none", b"x"), 0, Transfer(RECEIVER, Amount(1)))
    return [
        (Kind.CLAIM, b"\x93\x01"),
        (Kind.PRESENCE, bytes(200)),
        (Kind.TRANSACTION, encode(forged)),
        (Kind.BLOCK, block[:-1] + bytes([block[-1] ^ 1])),
        (Kind.VOTE, rng.randbytes(150)),
        (Kind.BLOCK, rng.randbytes(1_000)),
    ]


def _is_blamed(mallory: Mallory, before: dict[str, float]) -> bool:
    return all(mallory.is_banned(name) or mallory.get_score(name) > before[name] + 15 for name in before)


# --- a snapshot's poisoned part -----------------------------------------------------------------


async def poison_snapshot(scene: Scene) -> Outcome:
    """A new node takes a snapshot from a liar and an honest node; the liar spoils replies in five ways."""
    length = 40 if scene.quick else 120
    source = build_chain()
    for height in range(length):
        payers = PAYERS[4 * (height % 40) : 4 * (height % 40) + 4]
        source.add([source.sign(payer, Transfer(payers[0].address, Amount(7 + height))) for payer in payers])
    filled = ChainNode("filled", source.genesis)
    filled.fill(source.encoded)
    known = {value for _, value in filled.store.iterate(b"n")}
    ways = ["a flipped bit", "only late"] if scene.quick else list(SPOILS)
    replies, wrong, damaged, banned, roots = [], 0, 0, [], 0
    with pytest.MonkeyPatch.context() as patch:
        # So that a small state takes many replies.
        patch.setattr("node.sync.serving.MAX_NODES", 20)
        patch.setattr("node.sync.state.NODES_A_JOB", 4)
        for number, way in enumerate(ways):
            liar, honest = filled.copy("a"), filled.copy("b")
            node = ChainNode("new", source.genesis)
            service = liar.service = Poisoner(liar.chain, SPOILS[way])
            async with AsyncExitStack() as stack:
                world = World(scene.directory / str(number), not scene.quick)
                (scene.directory / str(number)).mkdir()
                await stack.enter_async_context(running(world, liar, honest, node))
                assert await build_snapshot(node).run()
                banned.append(sorted(node.get_banned()))
            replies.append(service.replies)
            wrong += len({value for _, value in node.store.iterate(b"n")} - known)
            damaged += len(list(check_ledger(node.chain.ledger)))
            roots += node.chain.head_state.root == source.states[node.chain.head.height].root
    figures = (
        require("snapshots that came to the right state root", roots, len(ways)),
        require("state nodes on disk that the honest chain has not", wrong, 0),
        require("findings of `bmif ledger check` afterwards", damaged, 0),
        require("banned, each time", sorted({", ".join(names) for names in banned}), ["a"]),
        note("replies that were taken from the liar until it was banned", replies),
    )
    return Outcome("nothing", "banned at its first wrong part", "its parts are asked for again", figures)


# --- an eclipse ---------------------------------------------------------------------------------


async def eclipse(scene: Scene) -> Outcome:
    """200 hostile addresses of one to four organisations against 16 honest nodes of eight."""
    seeds = 3 if scene.quick else 30
    rng = random.Random(scene.seed)
    figures, most = [], 0
    for organisations, poisoned, _ in CASES:
        lowest, hostile = SLOTS.chosen, 0
        for _ in range(seeds):
            siege = build_siege(rng.randrange(2**32), organisations, poisoned=poisoned)
            counts = play(siege, 80, 30)
            lowest = min(lowest, *(honest for honest, _ in counts))
            hostile = max(hostile, *(links for _, links in counts))
        most = max(most, hostile)
        book = ", the book poisoned for hours before" if poisoned else ""
        figures.append(
            require_least(
                f"least honest links of {SLOTS.chosen} at any minute, {organisations} hostile "
                f"organisations{book} (gained at most {hostile})",
                lowest,
                1,
            )
        )
    return Outcome(
        f"at most {most} of {SLOTS.chosen} links that the victim chooses, never all",
        "a certificate for each organisation; addresses alone gain two links",
        "fewer honest links",
        tuple(figures),
    )


PROFILES = (
    Profile(
        "header-spammer",
        "a peer with a certificate, no stake",
        "claims a million blocks and signs headers as long as it is asked; sends hundreds of blocks whose "
        "parents do not exist",
        f"{CHAINS}, over a network in memory; the orphans go to the cluster of the other profiles.",
        spam_headers,
        covered="tests/integration/test_sync.py, tests/integration/test_forged_blocks.py",
        remark="Believed is at most one window of signed headers of a peer at a time, and nothing of it is "
        "stored before the bodies are here and judged. A validator in its turn can make valid blocks on end, "
        "too: that is a fork like any other, and final blocks bound it.",
    ),
    Profile(
        "flood",
        "three nodes with certificates, no stake",
        "opens 500 connections from ten addresses: idle ones, half handshakes, silent ones, spam of requests",
        "One node as a process of its own, real sockets and TLS, the attacker in another process.",
        flood_connections,
        is_slow=True,
        covered="tests/integration/test_flood.py",
        remark="All from one machine's addresses: an attacker with thousands of them meets the bound on all "
        "connections and handshakes, which then keeps out new honest ones as well, but not open ones.",
    ),
    Profile(
        "oversize-and-malformed",
        "two nodes with certificates, no stake",
        "one sends oversize and malformed requests on every route, the other invalid objects of every kind",
        REAL_NODES,
        send_junk,
        is_slow=True,
        covered="tests/integration/test_hostile_peer.py",
        remark="Every decoder is fuzzed apart, guided by coverage, with its corpus in the repository "
        "(`make fuzz`, tests/fuzz).",
    ),
    Profile(
        "poisoned-snapshot",
        "a peer with a certificate, no stake",
        "serves a new node state nodes with a flipped bit, of elsewhere, twice, garbage, or only late",
        f"{CHAINS}, over HTTPS with mutual TLS; replies are made small so that the state takes many.",
        poison_snapshot,
        covered="tests/integration/test_snapshot.py",
    ),
    Profile(
        "eclipse",
        "200 nodes of one to four organisations, no stake",
        "fills a victim's address book and its links, which it does without pause from its first minute on",
        "A simulation of the real address book and choice of links over minutes, no sockets.",
        eclipse,
        covered="tests/integration/test_eclipse.py",
        remark="Who controls more organisations than the victim has honest ones around it gains more; the "
        "authority that issues certificates is what bounds that. A victim that is cut off all the same can't "
        "be made to follow another final chain without a third of stake.",
    ),
)
