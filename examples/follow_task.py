"""Prints what becomes of a task, as it happens: `python examples/follow_task.py URL TASK`.

Uses the typed client and the event stream, and needs no key. Ends with the task.
"""

import argparse
import asyncio

from node.api.client import Client

ENDED = ("complete", "expired", "closed")
KINDS = ("opening", "milestone", "verdict", "task")


async def follow(url: str, task: str) -> None:
    """Events only tell that it is worth while to read the task again."""
    async with Client(url) as client:
        found = await client.get_task(task)
        print(
            f"{found.title}: {found.status}, {found.rungs} rungs, {found.training_patches} training patches"
        )
        if found.status not in ENDED:
            # From the first event that the node keeps: the task may have ended since it was read.
            async for event in client.stream_events(after=0, kinds=KINDS):
                found = await client.get_task(task)
                print(f"{event.kind}: step {found.step}, {found.rungs_taken} of {found.rungs} rungs taken")
                if found.status in ENDED:
                    break
        async for opening in client.iterate_openings(task):
            if opening.loss_value is not None:
                print(f"step {opening.step}: loss {opening.loss_value:.6f}")
        for milestone in (await client.get_milestones(task)).items:
            for verdict in milestone.verdicts:
                said = "accepts" if verdict.accept else "rejects"
                print(f"milestone of step {milestone.step}: {verdict.organisation} {said}")
        print(f"{found.title} is {found.status}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="a node's public API, http://127.0.0.1:8100")
    parser.add_argument("task", help="64 hexadecimal digits")
    options = parser.parse_args()
    asyncio.run(follow(options.url, options.task))
