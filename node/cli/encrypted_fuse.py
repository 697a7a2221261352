"""`bmif fuse-encrypted`: a peer fuses a pair that it can't see.

The pair is encrypted here, under keys that are made for it and kept in this process' memory alone.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from node.api.client import ApiError
from node.api.fusion_client import FusionClient
from node.api.fusion_payloads import FusionModel
from node.api.schemas import TrainedModel
from node.cli.common import DEFAULT_API, CliError, JsonOption, err, out, parse_hash, print_json
from node.clock import SystemClock

if TYPE_CHECKING:
    from workloads.fusion_request import FusedPair, FusionRequest

FirstArgument = Annotated[Path, typer.Argument(help="PNG of the first modality")]
SecondArgument = Annotated[Path, typer.Argument(help="PNG of the second, registered and of equal size")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="PNG to write")]
TaskIdOption = Annotated[str, typer.Option("--task", "-t", help="Task whose settled model fuses")]
PeersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--peer",
        envvar="BMIF_API_URL",
        help=f"URL of a node's public API [default: {DEFAULT_API}]; with several, each evaluates the same"
        " request and all must come to the same bytes",
    ),
]


def fuse_encrypted(
    first: FirstArgument,
    second: SecondArgument,
    output: OutputOption,
    task: TaskIdOption,
    peer: PeersOption = None,
    json: JsonOption = False,
) -> None:
    """Have a peer fuse two registered images that it never sees, with a model of the chain.

    Only ciphertexts leave this machine; what comes back is decrypted here.
    """
    identifier = parse_hash(task, "task").hex()
    peers = list(dict.fromkeys(peer or [DEFAULT_API]))
    clock = SystemClock()
    begun = clock.monotonic()
    request, model, fused, seconds = asyncio.run(_fuse(first, second, identifier, peers))
    from workloads.fusion_request import save_image

    provenance = {"task": identifier, "block": model.block, "weights": model.weights_digest}
    save_image(fused, output, {"Software": "bmif fuse-encrypted", **provenance})
    height, width = fused.luminance.shape
    if json:
        print_json(
            {
                "output": str(output),
                "width": width,
                "height": height,
                **provenance,
                "peers": list(peers),
                "tile": request.tile,
                "requests": request.parts,
                "uploaded_bytes": request.parts * request.request_bytes,
                "downloaded_bytes": request.parts * request.result_bytes,
                "evaluation_s": seconds,
                "total_s": clock.monotonic() - begun,
            }
        )
        return
    out.print(
        f"{output}: {width}x{height} pixels, model settled at step {model.step}; sent"
        f" {request.parts * request.request_bytes / 1e6:.1f} MB to {len(peers)}"
        f" peer{'s' if len(peers) > 1 else ''}, received {request.parts * request.result_bytes / 1e6:.1f} MB,"
        f" evaluated in {seconds:.1f} s, {clock.monotonic() - begun:.1f} s in all",
        soft_wrap=True,
    )


async def _fuse(
    first: Path, second: Path, task: str, peers: list[str]
) -> tuple["FusionRequest", TrainedModel, "FusedPair", float]:
    """The request, the model, the fused pair and the seconds of the first peer's evaluation."""
    # Imported here: other commands have no use for the encryption library.
    from workloads.fusion_request import FusionRequest, load_pair

    pair = load_pair(first, second)
    async with FusionClient(peers[0]) as client:
        model = await client.get_model(task)
    request = FusionRequest(bytes.fromhex(model.specification), model.weights, pair)
    seconds = 0.0
    with _build_progress() as bar:
        for part in range(request.parts):
            name = "" if request.parts == 1 else f" {part + 1}/{request.parts}"
            line = bar.add_task(f"encrypting{name}", total=None)
            data = await asyncio.to_thread(request.encrypt, part, _build_report(bar, line))
            results = []
            for url in peers:
                result, found = await _ask(url, task, model, request.tile, data, bar, name)
                results.append(result)
                if url == peers[0]:
                    seconds += found.seconds or 0.0
            if any(result != results[0] for result in results):
                raise CliError(
                    "the peers' results differ: at least one of them did not evaluate this model as the"
                    " protocol says; ask others"
                )
            request.decrypt(part, results[0])
    return request, model, request.finish(), seconds


async def _ask(
    url: str, task: str, model: TrainedModel, tile: int, data: bytes, bar: Progress, name: str
) -> tuple[bytes, FusionModel]:
    """One peer's result; the peer is told to forget it."""
    async with FusionClient(url) as client:
        line = bar.add_task(f"uploading{name} to {url}", total=len(data))
        found = await client.post_fusion(task, model.weights_digest, tile, data, _build_report(bar, line))
        line = bar.add_task(f"waiting{name} at {url}", total=1.0)
        try:
            found = await client.wait_fusion(found.id, lambda seen: _show(bar, line, seen, name, url))
            return await client.get_fusion_result(found), found
        finally:
            await _delete(client, found.id)


async def _delete(client: FusionClient, fusion: str) -> None:
    try:
        await client.delete_fusion(fusion)
    except ApiError as error:
        err.print(f"the peer keeps the result until it expires: {error}", markup=False)


def _show(bar: Progress, line: TaskID, found: FusionModel, name: str, url: str) -> None:
    waits = found.state == "waiting" and found.ahead
    text = f"waiting{name} behind {found.ahead} at {url}" if waits else f"fusing{name} at {url}"
    bar.update(line, completed=found.progress, description=text)


def _build_report(bar: Progress, line: TaskID) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        bar.update(line, completed=done, total=total)

    return report


def _build_progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    return Progress(*columns, TimeElapsedColumn(), console=err)
