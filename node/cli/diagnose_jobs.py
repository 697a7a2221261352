"""`bmif diagnose register|submit|status|fetch|retire`: encrypted inference as jobs on the chain."""

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from consensus.crypto import hash_domain
from consensus.jobs import RegisterModel, RequestInference, RetireModel
from consensus.publication import MAX_STATEMENT, MAX_TITLE
from consensus.task import BlobRef
from consensus.types import MAX_TIME_MS, ZERO_HASH, Amount, Hash32, Millis
from node.api.client import SyncClient
from node.api.jobs import InferenceJob, InferenceJobSummary, InferenceModel
from node.cli.common import (
    POLL_S,
    ApiOption,
    CliError,
    ConfigOption,
    JsonOption,
    TimeoutOption,
    compute_file_ref,
    connect,
    connect_operator,
    err,
    find_config,
    load_config,
    out,
    parse_hash,
    print_facts,
    print_json,
    print_table,
    shorten,
    submit_alone,
    wait_included,
)
from node.config import NodeConfig
from workloads.base import WorkloadError

KindOption = Annotated[str, typer.Option("--kind", help="diagnosis or sequence-diagnosis")]
JobArgument = Annotated[str, typer.Argument(help="Job id")]
DEFAULT_KIND = "diagnosis"
HOUR_MS = 3_600_000


def _get_now_ms() -> int:
    return time.time_ns() // 1_000_000


def _upload(client: SyncClient, files: dict[str, Path]) -> dict[str, BlobRef]:
    """Store files at the node, with their progress on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    refs = {}
    with Progress(*columns, console=err) as bar:
        for name, path in files.items():
            line = bar.add_task(f"uploading {name}", total=path.stat().st_size)
            refs[name] = client.call(client.api.put_blob(path, partial(bar.advance, line)))
    return refs


# --- models -----------------------------------------------------------------------------------


def register(
    model: Annotated[Path, typer.Argument(help="The model's file, as `bmif diagnose` compiled it")],
    price: Annotated[int, typer.Option(help="Your part of each job's fee, smallest units", min=0)] = 0,
    label: Annotated[str | None, typer.Option(help="Name [default: the file's own label]")] = None,
    provenance: Annotated[str, typer.Option(help="What the model was made of, in words")] = "",
    provenance_file: Annotated[
        Path | None, typer.Option(help="Text to publish instead, such as what `train` wrote beside the model")
    ] = None,
    evidence: Annotated[
        Path | None, typer.Option(help="File that the words refer to; only its digest is published")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="Evaluation keys of the pair that an encrypted model is under")
    ] = None,
    expires_hours: Annotated[float, typer.Option(help="Hours until requests end", min=0.01)] = 24 * 365,
    kind: KindOption = DEFAULT_KIND,
    config: ConfigOption = None,
    timeout: TimeoutOption = 120,
    json: JsonOption = False,
) -> None:
    """Offer a model for encrypted inference: upload it, and enter it in the chain's register."""
    # Imported here: other commands have no use for it.
    from workloads.inference import get_inference

    facts = get_inference(kind).describe_model(model)
    if facts.weights == "encrypted" and keys is None:
        raise CliError(f"{model} has encrypted weights: give --keys, the evaluation keys of its key pair")
    if facts.weights == "clear" and keys is not None:
        raise CliError(f"{model} has clear weights, which any keys fit: leave --keys out")
    if keys is not None and keys.stat().st_size != facts.keys_bytes:
        raise CliError(
            f"--keys: {keys} has {keys.stat().st_size} bytes, this model's keys have {facts.keys_bytes}"
        )
    if provenance_file is not None:
        provenance = _read_provenance(provenance_file)
    digest = ZERO_HASH if evidence is None else hash_domain("evidence", evidence.read_bytes())
    with connect_operator(load_config(config)) as client:
        refs = _upload(client, {"model": model} | ({} if keys is None else {"keys": keys}))
        payload = RegisterModel(
            workload=kind,
            label=facts.label[:MAX_TITLE] if label is None else label,
            provenance=provenance,
            evidence=digest,
            model=refs["model"],
            keys=refs.get("keys"),
            keys_bytes=facts.keys_bytes,
            request_bytes=facts.request_bytes,
            result_bytes=facts.result_bytes,
            price=Amount(price),
            expires=Millis(min(MAX_TIME_MS, _get_now_ms() + round(expires_hours * HOUR_MS))),
        )
        transaction = client.call(client.api.sign_and_submit(payload))
        height = wait_included(client, transaction, timeout)
    if json:
        print_json({"model": transaction.hex(), "height": height, "root": refs["model"].root.hex()})
    else:
        out.print(f"model {transaction.hex()}, {facts.weights} weights, in block {height}")


def _read_provenance(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CliError(f"--provenance-file: {path} is no text; give its digest by --evidence") from error
    if len(text) > MAX_STATEMENT:
        raise CliError(f"--provenance-file: {path} has {len(text)} characters, the most is {MAX_STATEMENT}")
    return text


def retire(
    model: Annotated[str, typer.Argument(help="Model id")],
    config: ConfigOption = None,
    timeout: TimeoutOption = 120,
    json: JsonOption = False,
) -> None:
    """Take a model of yours out of the register; jobs that run go on."""
    submit_alone(RetireModel(parse_hash(model, "model")), f"model {model} is retired", config, timeout, json)


# --- jobs -------------------------------------------------------------------------------------


def check_files(model: InferenceModel, request: BlobRef, keys: BlobRef, deadline_ms: int) -> None:
    """Refuse, before anything is uploaded or paid, what the chain would refuse.

    Raises: CliError naming what is wrong and what to do.
    """
    name = f"model {shorten(model.id)} ({model.label})"
    if model.retired:
        raise CliError(f"{name} is retired; choose another (bmif diagnose status --models)")
    if deadline_ms > model.expires:
        what = "keys end" if model.weights == "encrypted" else "registration ends"
        raise CliError(f"the {what} of {name} before this job's deadline; choose a shorter --hours")
    if request.length != model.request_bytes:
        raise CliError(
            f"the request has {request.length} bytes, one for {name} has {model.request_bytes}: it was "
            "encrypted for another model; encrypt again for this one"
        )
    if keys.length != model.keys_bytes:
        raise CliError(
            f"the keys have {keys.length} bytes, those for {name} have {model.keys_bytes}: they were made "
            "for another model"
        )
    if model.keys is not None and model.keys.root != keys.root.hex():
        raise CliError(
            f"{name} is encrypted under one key pair, and these keys are of another: use the keys that its "
            "owner registered"
        )


def _check_contents(client: SyncClient, model: InferenceModel, request: Path, keys: Path) -> None:
    """The evaluators' own checks, here and before paying; the node fetches the model if it has to."""
    import tempfile

    from workloads.inference import get_inference

    workload = get_inference(model.workload)
    ref = BlobRef(Hash32(bytes.fromhex(model.model.root)), model.model.length)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model"
        client.call(client.api.get_blob(ref, path))
        for name, check, file in (
            ("keys", workload.check_keys, keys),
            ("request", workload.check_request, request),
        ):
            try:
                check(path, file)
            except WorkloadError as error:
                raise CliError(f"{file} is no {name} for model {shorten(model.id)}: {error}") from error


def submit(
    model: Annotated[str, typer.Argument(help="Model id")],
    request: Annotated[Path, typer.Argument(help="The encrypted request's file")],
    keys: Annotated[Path, typer.Argument(help="The evaluation keys' file")],
    fee: Annotated[int, typer.Option(help="Fee, smallest units; the model's price is part of it", min=0)],
    hours: Annotated[float, typer.Option(help="Hours until the job ends", min=0.001)] = 1.0,
    commit_hours: Annotated[
        float | None, typer.Option(help="Hours in which organisations may commit [a third of --hours]")
    ] = None,
    check: Annotated[bool, typer.Option(help="Check the files as evaluators do, before paying")] = True,
    config: ConfigOption = None,
    timeout: TimeoutOption = 120,
    json: JsonOption = False,
) -> None:
    """Ask peers to evaluate a model on an encrypted request; the fee is held until they agree."""
    commit = hours / 3 if commit_hours is None else commit_hours
    if not 0 < commit < hours:
        raise CliError("--commit-hours must be more than 0 and less than --hours")
    model_id, now = parse_hash(model, "model"), _get_now_ms()
    deadline = min(MAX_TIME_MS, now + round(hours * HOUR_MS))
    with connect_operator(load_config(config)) as client:
        found = client.call(client.api.get_inference_model(model_id.hex()))
        check_files(found, compute_file_ref(request), compute_file_ref(keys), deadline)
        if fee < found.price:
            raise CliError(f"--fee {fee}: the model's price alone is {found.price}")
        if check:
            _check_contents(client, found, request, keys)
        refs = _upload(client, {"keys": keys, "request": request})
        payload = RequestInference(
            model=model_id,
            request=refs["request"],
            keys=refs["keys"],
            fee=Amount(fee),
            commit_until=Millis(now + round(commit * HOUR_MS)),
            deadline=Millis(deadline),
        )
        job = client.call(client.api.sign_and_submit(payload))
        height = wait_included(client, job, timeout)
    if json:
        print_json({"job": job.hex(), "height": height})
    else:
        out.print(f"job {job.hex()}, in block {height}")
        out.print(f"Fetch its result with: bmif diagnose fetch {job.hex()} -o RESULT")


def fetch(
    job: JobArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write the encrypted result to")],
    config: ConfigOption = None,
    timeout: TimeoutOption = 600,
    json: JsonOption = False,
) -> None:
    """Wait until organisations agree on a job's result, and download it."""
    identifier = parse_hash(job, "job").hex()
    if output.exists():
        raise CliError(f"{output} exists already; choose another --output")
    with connect_operator(load_config(config)) as client:
        found = _wait_result(client, identifier, timeout, config)
        if found.result is None:
            raise CliError(f"job {shorten(identifier)} has no result")
        ref = BlobRef(Hash32(bytes.fromhex(found.result.root)), found.result.length)
        client.call(client.api.get_blob(ref, output))
    got = compute_file_ref(output)
    if got != ref:
        output.unlink()
        raise CliError(f"the node gave other bytes than the confirmed result {ref.root.hex()}")
    if json:
        print_json(
            {"job": identifier, "status": found.status, "result": ref.root.hex(), "output": str(output)}
        )
    else:
        out.print(f"{output}: {ref.length} bytes, confirmed; {found.reveals} of {found.commits} have shown")


def _wait_result(client: SyncClient, job: str, timeout_s: float, config: Path | None) -> InferenceJob:
    """The bar is of the stake whose organisations have committed."""
    end = time.monotonic() + timeout_s
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bar:
        line = bar.add_task("waiting", total=None)
        while True:
            found = client.call(client.api.get_job(job))
            text = f"{found.status}: {found.commits} committed, {found.reveals} shown"
            own = read_own_progress(config, job)
            here = "" if own is None else f", {own} done here"
            bar.update(
                line, description=text + here, completed=found.committed_stake, total=found.total_stake
            )
            if found.result is not None:
                return found
            if found.status == "refunded":
                raise CliError(
                    f"job {shorten(job)} ended without a result that organisations with more than a third "
                    "of stake agree on; its fee was refunded: submit it again"
                )
            if time.monotonic() > end:
                raise CliError(f"job {shorten(job)} has no result after {timeout_s:.0f} s ({text})")
            time.sleep(POLL_S)


def read_own_progress(config: Path | None, job: str) -> str | None:
    """How far the evaluation of a job by the node with these settings is; None if it does none now."""
    from node.evaluator import SCRATCH, get_progress_path
    from workloads.refusals import read_progress

    found = find_config(config)
    if found is None:
        return None
    scratch = NodeConfig.load(found).data_dir / SCRATCH
    progress = read_progress(get_progress_path(scratch, parse_hash(job, "job")))
    return None if progress is None else f"{100 * progress[0] // max(1, progress[1])} %"


def status(
    job: Annotated[str | None, typer.Argument(help="Job id [all jobs]")] = None,
    models: Annotated[bool, typer.Option("--models", help="List the registered models instead")] = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show a job with everybody's part in it; or list all jobs, or all models."""
    with connect(api, config) as client:
        if models:
            _print_models(client.collect(client.api.iterate_inference_models()), json)
        elif job is not None:
            found = client.call(client.api.get_job(parse_hash(job, "job").hex()))
            _print_job(found, None if api is not None else read_own_progress(config, job), json)
        else:
            _print_jobs(client.collect(client.api.iterate_jobs()), json)


def _print_jobs(jobs: list[InferenceJobSummary], json: bool) -> None:
    if json:
        print_json(jobs)
        return
    print_table(
        None,
        ("job", "model", "status", "fee", "committed", "shown"),
        ((j.id, shorten(j.model), j.status, j.fee, j.commits, j.reveals) for j in jobs),
    )


def _print_models(models: list[InferenceModel], json: bool) -> None:
    if json:
        print_json(models)
        return
    print_table(
        None,
        ("model", "label", "kind", "weights", "price", "request (bytes)", "retired"),
        (
            (m.id, m.label, m.workload, m.weights, m.price, m.request_bytes, "yes" if m.retired else "no")
            for m in models
        ),
    )


def _print_job(job: InferenceJob, own: str | None, json: bool) -> None:
    if json:
        print_json(job)
        return
    caught = () if job.receipt is None else job.receipt.caught
    print_facts(
        [
            ("job", job.id),
            ("model", job.model),
            ("requester", job.requester),
            ("status", job.status),
            ("fee", f"{job.fee}, {job.escrow} held"),
            (
                "committed",
                f"{job.commits} organisations with {job.committed_stake} of {job.total_stake} stake",
            ),
            ("evaluated here", own),
            ("result", None if job.result is None else job.result.root),
        ]
    )
    print_table(
        "Evaluators",
        ("organisation", "evaluator", "result", "verdict"),
        (
            (
                part.organisation,
                shorten(part.evaluator),
                None if part.result is None else shorten(part.result),
                "wrong" if part.evaluator in caught else None,
            )
            for part in job.evaluations
        ),
    )
