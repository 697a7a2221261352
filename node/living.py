"""The tasks of the head's state that have not ended, read from the state once a head."""

from consensus.records import TaskState, TaskStatus
from consensus.settlement import LIVING
from consensus.types import Hash32
from node.core import Core


class LivingTasks:
    """Services look after every pulse, and a state keeps its tasks for ever: most looks must cost nothing."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._head: Hash32 | None = None
        self._tasks: list[tuple[Hash32, TaskState]] = []
        self._ended: set[Hash32] = set()

    def get(self, *statuses: TaskStatus) -> list[tuple[Hash32, TaskState]]:
        """Oldest first; of all living statuses unless some are named."""
        self._refresh()
        wanted = statuses or LIVING
        return [(identifier, task) for identifier, task in self._tasks if task.status in wanted]

    def get_ended(self) -> set[Hash32]:
        """The tasks that are no longer living."""
        self._refresh()
        return self._ended

    def _refresh(self) -> None:
        chain = self._core.chain
        if self._head == chain.head_hash:
            return
        state = chain.head_state
        found = [(identifier, state.get_task(identifier)) for identifier in state.get_tasks()]
        self._tasks = [(i, task) for i, task in found if task is not None and task.status in LIVING]
        self._ended = {i for i, task in found if task is not None and task.status not in LIVING}
        self._head = chain.head_hash
