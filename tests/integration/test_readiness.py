"""`/readyz` by its criteria, over real chains in one process: idle is ready, stalled is not."""

from dataclasses import replace
from pathlib import Path

from node.api.fields import CriterionModel
from node.api.view import Criterion, Readiness
from node.readiness import Links, ReadinessJudge
from node.settings import ReadySettings
from node.sync.ports import Phase, SyncProgress
from node.voting import VotingState, VotingStatus
from tests.integration.cluster import Cluster

PROGRESS = SyncProgress(height=0, target=0, phase=Phase.IDLE, proved=0, done=0, wanted=0, peers=())
SETTINGS = ReadySettings(lag_blocks=3, tip_age_s=30.0)


def judge(judge: ReadinessJudge, height: int = 0, configured: int = 3, connected: int = 3) -> Readiness:
    return judge.judge(Links(configured, connected, height), PROGRESS)


def find(readiness: Readiness, name: str) -> Criterion:
    return next(item for item in readiness.criteria if item.name == name)


async def test_an_idle_chain_is_ready_and_a_stalled_one_is_not(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    async with cluster.run():
        ready = ReadinessJudge(cluster[1].core, SETTINGS)
        await cluster.finalize()
        await cluster.pass_time(60.0)  # nothing to do
        assert judge(ready).ready, judge(ready).reasons
        assert "nothing waits" in find(judge(ready), "tip_age").detail
        await cluster.stop(3, 4)  # two of four can't finalise
        cluster[1].send(cluster.build_transfer())
        await cluster.wait_until(lambda: not judge(ready).ready, "it stalls", most_s=600.0)
        assert [item.name for item in judge(ready).criteria if item.blocking and not item.ok] == ["tip_age"]
        assert judge(ready).reasons[0].startswith("stalled")
        assert judge(ReadinessJudge(cluster[1].core, replace_age(0.0))).ready
        assert judge(ReadinessJudge(cluster[1].core, SETTINGS)).ready  # it has just come up
        cluster.start(3, 4)
        await cluster.wait_until(lambda: judge(ready).ready, "the chain goes on", most_s=600.0)


def replace_age(seconds: float) -> ReadySettings:
    return SETTINGS.model_copy(update={"tip_age_s": seconds})


async def test_each_criterion_has_its_name_and_reason(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, size=1)
    async with cluster.run():
        core = cluster[1].core
        ready = ReadinessJudge(core, SETTINGS)
        documented = CriterionModel.model_fields["name"].description or ""
        for item in judge(ready).criteria:
            assert f"`{item.name}`" in documented
            assert item.detail
        top = core.chain.head.height
        assert judge(ready, top + 3).ready
        assert judge(ready, top + 4).reasons == ("syncing: 4 blocks behind the best peer (at most 3)",)
        assert judge(ready, connected=0).reasons == ("alone: 0 peers are linked (at least 1)",)
        assert judge(ready, configured=0, connected=0).ready  # nobody to dial
        state = ready.judge(Links(1, 1, top), replace(PROGRESS, phase=Phase.STATE))
        assert state.reasons[0].startswith("recovering")
        core.takes_blocks = False
        assert not find(judge(ready), "recovery").ok
        core.takes_blocks = True
        core.voting = VotingStatus(VotingState.WAITING, "until it can do no harm")
        assert judge(ready).ready
        assert find(judge(ready), "voting") == Criterion(
            "voting", False, "waiting: until it can do no harm", blocking=False
        )
