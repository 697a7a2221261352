"""A task as the node's services see it: its definition, and its tip ahead of the chain.

Openings are valid on every fork and miners go on as soon as one is signed (DESIGN 3.5), so the tip
is the head's state with the pending openings of the mempool applied by the chain's own rules.
"""

from dataclasses import dataclass

from consensus.errors import InvalidTransaction
from consensus.state import State, TaskState, TaskStatus
from consensus.task import Batch, Draft, PublishTask
from consensus.transaction import compute_transaction_id
from consensus.transition import BlockContext, apply_checked_transaction
from consensus.types import ZERO_HASH, Address, Hash32, Height, Millis
from consensus.upgrade import get_nearest_rules
from node.chain import Chain
from node.mempool import Mempool
from workloads.base import WorkloadError, get_workload


@dataclass(frozen=True, slots=True)
class TaskDefinition:
    """Everything about a task that never changes."""

    id: Hash32
    custody: Address
    draft: Draft
    publication: PublishTask
    training: tuple[Batch, ...]
    validation: tuple[Batch, ...]

    def get_step_batches(self, step: int) -> tuple[int, ...]:
        """The indices of the training batches of one step, ascending."""
        k, order = self.publication.batches_per_step, self.publication.order
        return tuple(sorted(order[(step * k + i) % len(order)] for i in range(k)))


@dataclass(frozen=True, slots=True)
class TaskTip:
    """Where a task stands once the pending openings are counted in."""

    state: TaskState
    chain_state: State
    """The whole state with those openings applied."""
    rungs: int
    """Length of the ladder."""
    pending: int
    """How many openings are not on the chain yet."""

    @property
    def is_finished(self) -> bool:
        return self.state.status is not TaskStatus.OPEN or self.is_qualified

    @property
    def is_qualified(self) -> bool:
        """Every rung is met; only proposals are outstanding."""
        return self.state.next_rung == self.rungs


def load_definition(state: State, task_id: Hash32) -> TaskDefinition | None:
    """The definition of a published task, or None if the state has no such task."""
    task = state.get_task(task_id)
    publication = state.get_publication(task_id)
    if task is None or publication is None:
        return None
    draft = state.get_draft(publication.draft)
    if draft is None:
        raise KeyError(f"task {task_id.hex()} refers to a draft that the state lacks")
    contributions = []
    for contribution_id in publication.contributions:
        record = state.get_contribution(contribution_id)
        if record is None:
            raise KeyError(f"task {task_id.hex()} refers to a contribution that the state lacks")
        contributions.append(record.contribute)
    return TaskDefinition(
        task_id,
        task.custody,
        draft.draft,
        publication,
        tuple(batch for c in contributions for batch in c.training),
        tuple(batch for c in contributions for batch in c.validation),
    )


def check_definition(definition: TaskDefinition) -> None:
    """Refuse a task that this node can't serve, before a byte of its blobs is fetched.

    Raises: WorkloadError naming the field.
    """
    draft = definition.draft
    expected_clipping = "per-patch" if draft.ceremony == ZERO_HASH else "box"
    if draft.clipping != expected_clipping:
        raise WorkloadError(f"clipping: expected {expected_clipping}, got {draft.clipping!r}")
    workload = get_workload(draft.kind)
    workload.check_model(draft.preset, draft.model, draft.parameters, draft.weight_box)
    sizes, slots = workload.get_sizes(draft.preset, draft.model), workload.get_slots(draft.preset)
    expected = [
        ("public_key", draft.public_key, sizes.public_key),
        ("relin_keys", draft.relin_keys, sizes.relin_keys),
    ]
    expected += [("training batch", batch.blob, sizes.training_batch) for batch in definition.training]
    expected += [("validation batch", batch.blob, sizes.validation_batch) for batch in definition.validation]
    for name, blob, length in expected:
        if blob.length != length:
            raise WorkloadError(f"{name}: {blob.length} bytes, one of this model has {length}")
    if any(batch.patches > slots for batch in (*definition.training, *definition.validation)):
        raise WorkloadError(f"patches: a batch of this preset has at most {slots}")


def compute_tip(chain: Chain, mempool: Mempool, task_id: Hash32, now: Millis) -> TaskTip | None:
    """The task's state after the head and every pending opening that follows in order."""
    state = chain.head_state
    task, publication = state.get_task(task_id), state.get_publication(task_id)
    if task is None or publication is None:
        return None
    pending = 0
    context = get_next_context(chain, now)
    while task.status is TaskStatus.OPEN:
        transaction = mempool.get_opening(task_id, task.previous)
        if transaction is None:
            break
        try:
            state = apply_checked_transaction(
                state, transaction, compute_transaction_id(transaction), context
            )
        except InvalidTransaction:
            break
        following = state.get_task(task_id)
        if following is None:
            break
        task = following
        pending += 1
    return TaskTip(task, state, len(publication.ladder), pending)


def get_next_context(chain: Chain, now: Millis) -> BlockContext:
    head = chain.head
    return BlockContext(
        height=Height(head.height + 1),
        time=max(now, Millis(head.time + chain.params.min_block_ms)),
        params=chain.params,
        chain_id=chain.chain_id,
        rules=get_nearest_rules(chain.head_state, head.height + 1),
    )
