"""A loss whose blobs can't be had is recomputed once they come, and not given up."""

import asyncio

import pytest

from consensus.work import LossCheck
from node.recomputer import Recomputer
from tests.integration.bench import Bench
from tests.integration.material import Material
from tests.integration.rig import wait_until


async def test_a_loss_is_recomputed_once_its_blobs_come(
    bench: Bench, material: Material, caplog: pytest.LogCaptureFixture
) -> None:
    core = bench.miners[0]
    definition = core.get_definition(bench.task)
    assert definition is not None
    bench.blobs.remove(definition.validation[0].blob.root)
    check = LossCheck(bench.task, 0, material.weights)
    recomputer = Recomputer(core)

    def is_given_up() -> bool:
        bench.clock.advance(1.0)
        return "can't be recomputed yet" in caplog.text

    def is_recomputed() -> bool:
        bench.clock.advance(1.0)
        return core.work.verdicts.get_verdict(check) is not None

    running = asyncio.create_task(recomputer.run())
    try:
        recomputer.request(check)
        await wait_until(is_given_up, "no peer has the blob")
        await bench.blobs.put_file(material.validation[0][0])
        await wait_until(is_recomputed, "the loss is recomputed")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
