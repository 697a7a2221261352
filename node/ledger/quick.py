"""The check at every start: cheap whatever the ledger's size, so not complete. `node.ledger.check` is."""

from collections.abc import Mapping

from consensus.types import Hash32
from node.ledger import schema
from node.ledger.damage import Damage
from node.ledger.rows import Rows
from node.ledger.schema import Meta
from node.ledger.store import KeyValueStore

RECENT_BLOCKS = 8
TOP_NODES = 64


def check_quickly(store: KeyValueStore, meta: Meta, genesis_nodes: Mapping[Hash32, bytes]) -> list[Damage]:
    """What is wrong with the newest blocks, the top of the head's state and samples of the height index."""
    rows = Rows(store)
    for height in _choose_samples(meta):
        rows.get(schema.height_key(height), "heights", f"the height index at {height}", height, None)
    if store.get(schema.height_key(meta.height)) != meta.head:
        rows.add(
            "heights", f"the head at height {meta.height} is not in the height index", height=meta.height
        )
    if store.get(schema.height_key(meta.height + 1)) is not None:
        rows.add("heights", "the height index goes on above the head", height=meta.height + 1)
    if not meta.height:
        for node in genesis_nodes:
            rows.get(
                schema.node_key(node), "state", f"node {node.hex()} of the genesis state", 0, meta.chain_id
            )
    _check_recent(rows, meta)
    return rows.damages


def _choose_samples(meta: Meta) -> list[int]:
    """Genesis, the base, and heights ever further below the head."""
    distances = [1 << power for power in range(meta.height.bit_length())]
    return sorted({0, meta.base, *(meta.height - distance for distance in distances)})


def _check_recent(rows: Rows, meta: Meta) -> None:
    block = meta.head
    for height in range(meta.height, max(0, meta.base - 1, meta.height - RECENT_BLOCKS), -1):
        rows.get_index(block, height)
        header = rows.get_header(block, height)
        if header is None:
            return
        rows.get_block(block, header)
        if height == meta.height:
            rows.walk_state(header.state_root, height, block, set(), TOP_NODES)
        block = header.parent
        indexed = rows.store.get(schema.height_key(height - 1))
        if indexed is not None and indexed != block:
            rows.add(
                "heights", f"the height index at {height - 1} is not the head's ancestor", height=height - 1
            )
            return
