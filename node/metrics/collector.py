"""What a node is, read from its view when it is scraped; keeps nothing."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from consensus.finality import is_finality_wanted
from consensus.state import State, TaskStatus
from consensus.types import Hash32
from node.api.convert import TaskReader
from node.api.view import NodeView

MAX_TASKS = 32
"""Tasks that have series of their own: the living ones first, then the latest."""
LIVING = (TaskStatus.OPEN, TaskStatus.CLOSING, TaskStatus.PENDING)


class NodeCollector(Collector):
    """The chain, its finality, readiness, peers and tasks."""

    def __init__(self, view: NodeView) -> None:
        self._view = view
        self._tasks = TaskCollector(view)

    def collect(self) -> Iterator[Metric]:
        yield self._build_info()
        yield from self._collect_chain()
        yield from self._collect_readiness()
        yield from self._collect_finality()
        yield from self._tasks.collect()

    def _build_info(self) -> Metric:
        info = self._view.info
        family = GaugeMetricFamily(
            "bmif_node_info",
            "Who this node is, always 1",
            labels=["name", "version", "network", "organisation", "roles"],
        )
        labels = [info.name, info.version, info.network, info.organisation, ",".join(info.roles)]
        family.add_metric(labels, 1)
        return family

    def _collect_chain(self) -> Iterator[Metric]:
        view = self._view
        head = view.get_head().header
        yield GaugeMetricFamily("bmif_head_height", "Height of the head", head.height)
        yield GaugeMetricFamily("bmif_head_timestamp_seconds", "Time of the head's block", head.time / 1000)
        yield GaugeMetricFamily(
            "bmif_justified_height", "Height of the justified block", view.get_justified().height
        )
        yield GaugeMetricFamily("bmif_final_height", "Height of the final block", view.get_finalized().height)
        yield GaugeMetricFamily("bmif_base_height", "Lowest height whose bodies are held", view.get_base())
        yield GaugeMetricFamily(
            "bmif_sync_target_height",
            "Greatest height at a peer, at least the head's",
            view.get_sync_target(),
        )
        yield GaugeMetricFamily("bmif_mempool_transactions", "Waiting transactions", len(view.get_mempool()))
        peers = view.get_peers()
        yield GaugeMetricFamily("bmif_peers", "Linked peers", sum(peer.connected for peer in peers))

    def _collect_readiness(self) -> Iterator[Metric]:
        readiness = self._view.get_readiness()
        yield GaugeMetricFamily("bmif_ready", "1 when the node can serve", int(readiness.ready))
        family = GaugeMetricFamily(
            "bmif_ready_criterion", "1 for each criterion of readiness that is met", labels=["criterion"]
        )
        for criterion in readiness.criteria:
            family.add_metric([criterion.name], int(criterion.ok))
        yield family

    def _collect_finality(self) -> Iterator[Metric]:
        view, state = self._view, self._view.get_state()
        yield GaugeMetricFamily(
            "bmif_finality_wanted",
            "1 while a block with transactions or work waits to be final",
            int(is_finality_wanted(state)),
        )
        final = view.get_finalized()
        record = state.get_checkpoint(final.height)
        if final.height and record is not None and record.hash == final.hash:
            total = state.get_total_stake()
            stake = sum(v.stake for v in state.get_validators() if v.address in record.voters)
            yield GaugeMetricFamily(
                "bmif_final_participation_ratio",
                "Part of the stake whose votes made the last final block justified",
                stake / total if total else 0.0,
            )
        yield GaugeMetricFamily(
            "bmif_validators", "Members of the active validator set", len(state.get_validators())
        )
        family = GaugeMetricFamily("bmif_voting", "1 for what this node's voter does now", labels=["state"])
        family.add_metric([view.get_voting().state.value], 1)
        yield family


class TaskCollector(Collector):
    """The tasks of the head's state."""

    def __init__(self, view: NodeView) -> None:
        self._view = view
        self._ended: dict[Hash32, TaskStatus] = {}
        """A chain's ended tasks only grow in number; they are not read again at each scrape."""

    def collect(self) -> Iterator[Metric]:
        state = self._view.get_state()
        known = state.get_tasks()
        latest = set(known[-MAX_TASKS:])
        readers = [
            TaskReader(self._view, state, task) for task in known if task in latest or task not in self._ended
        ]
        living = [reader for reader in readers if reader.record.status in LIVING]
        ended = [reader for reader in readers if reader.record.status not in LIVING]
        self._ended |= {reader.id: reader.record.status for reader in ended}
        for reader in living:
            self._ended.pop(reader.id, None)  # its end was undone
        counts = Counter([*self._ended.values(), *(reader.record.status for reader in living)])
        tasks = GaugeMetricFamily("bmif_tasks", "Tasks by status", labels=["status"])
        for status in TaskStatus:
            tasks.add_metric([status.value], counts[status])
        yield tasks
        yield from self._collect_shown(state, [*living[::-1], *ended[::-1]][:MAX_TASKS])

    def _collect_shown(self, state: State, readers: list[TaskReader]) -> Iterator[Metric]:
        step = GaugeMetricFamily("bmif_task_step", "Next step of a task", labels=["task"])
        loss = GaugeMetricFamily("bmif_task_loss", "Last opened validation loss", labels=["task"])
        target = GaugeMetricFamily("bmif_task_target_loss", "Target of the next rung", labels=["task"])
        margin = GaugeMetricFamily(
            "bmif_task_loss_margin", "Target of the next rung less the last loss", labels=["task"]
        )
        rungs = GaugeMetricFamily("bmif_task_rungs_taken", "Rungs of the ladder taken", labels=["task"])
        left = GaugeMetricFamily(
            "bmif_task_openings_left", "Openings that the task still allows", labels=["task", "kind"]
        )
        sizes = GaugeMetricFamily(
            "bmif_task_ciphertext_bytes",
            "Bytes of a task's keys and encrypted batches",
            labels=["task", "part"],
        )
        for reader in readers:
            task, record, draft = reader.id.hex(), reader.record, reader.draft
            ladder = reader.publication.ladder
            step.add_metric([task], record.step)
            rungs.add_metric([task], record.next_taken_rung)
            if record.last_loss is not None:
                loss.add_metric([task], reader.scale_loss(record.last_loss))
            if record.next_rung < len(ladder):
                goal = ladder[record.next_rung].target
                target.add_metric([task], reader.scale_loss(goal))
                if record.last_loss is not None:
                    margin.add_metric([task], reader.scale_loss(goal - record.last_loss))
            left.add_metric([task, "gradient"], draft.max_gradient_openings - record.gradient_openings)
            left.add_metric([task, "loss"], draft.max_loss_openings - record.loss_openings)
            for part, length in _measure(state, reader).items():
                sizes.add_metric([task, part], length)
        yield from (step, loss, target, margin, rungs, left, sizes)


def _measure(state: State, reader: TaskReader) -> dict[str, int]:
    sizes = Counter({"keys": reader.draft.public_key.length + reader.draft.relin_keys.length})
    for identifier in reader.publication.contributions:
        found = state.get_contribution(identifier)
        if found is not None:
            sizes["training"] += sum(batch.blob.length for batch in found.contribute.training)
            sizes["validation"] += sum(batch.blob.length for batch in found.contribute.validation)
    return sizes
