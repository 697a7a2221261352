"""`bmif diagnose sequence`: what comes before and after the jobs of an encrypted sequence."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import JsonValue

from node.cli.common import CliError, JsonOption, err, out, print_facts, print_json, print_table
from node.cli.diagnose_local import (
    OwnerKeysOption,
    WantsOption,
    build_progress,
    build_report,
    check_outputs,
)

if TYPE_CHECKING:
    from workloads.sequence_client import SequenceDecision, Step

app = typer.Typer(no_args_is_help=True, help="Encrypted sequences of frames, one request after another.")

KeysOption = Annotated[
    Path,
    typer.Option("--keys", "-k", help="Folder of the keys; its secret.key files never leave this machine"),
]
SessionArgument = Annotated[Path, typer.Argument(help="Folder of the session, as `start` wrote it")]


@app.command()
def train(
    data: Annotated[
        Path,
        typer.Argument(
            help=".npz, a row a frame: images (n, S, S[, 3]) of 8 bits, case, order in the case, label 0 or 1"
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the trained network")],
    side: Annotated[int, typer.Option(help="Side that frames are averaged to", min=4, max=64)] = 16,
    window: Annotated[int, typer.Option(help="Frames that are decided together", min=1, max=3)] = 3,
    features: Annotated[int, typer.Option(help="Features of a frame", min=1, max=32)] = 8,
    epochs: Annotated[int, typer.Option(help="Passes over the training sequences", min=1)] = 80,
    seed: Annotated[int, typer.Option(help="Of weights, order and patients held back", min=0)] = 0,
    json: JsonOption = False,
) -> None:
    """Train a sequence network in clear on labelled sequences; a quarter of the patients is held back.

    Writes the network and, beside it, a provenance that may be published: digest of the data, seed, AUC.
    """
    from workloads.diagnosis_keys import write_file
    from workloads.diagnosis_model import get_provenance_path
    from workloads.sequence_model import train_sequences

    encoded, found = train_sequences(
        data, side=side, window=window, features=features, epochs=epochs, seed=seed
    )
    write_file(output, encoded)
    write_file(get_provenance_path(output), found.encode())
    if json:
        print_json(
            {
                "output": str(output),
                "network_sha256": found.network_sha256,
                "data_sha256": found.data_sha256,
                "patients": list[JsonValue](found.patients),
                "seed": seed,
                "auc": list[JsonValue](found.auc),
            }
        )
        return
    out.print(f"{output}, provenance in {get_provenance_path(output)}; seed {seed}", soft_wrap=True)
    value, low, high = found.auc
    print_facts(
        [
            ("patients", "{} trained on, {} held back".format(*found.patients)),
            ("data", found.data_sha256),
            ("auc", f"{value:.3f}, 95 % interval {low:.3f} to {high:.3f}"),
        ]
    )


@app.command("compile")
def compile_models(
    network: Annotated[Path, typer.Argument(help="Network as `bmif diagnose sequence train` wrote it")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the models that evaluators get")
    ] = None,
    weights: Annotated[str, typer.Option(help="clear, or encrypted under --keys")] = "clear",
    keys: OwnerKeysOption = None,
    wants: WantsOption = None,
    json: JsonOption = False,
) -> None:
    """Compile a network into models of frames and of segments, and print the plan with its refreshes.

    Each model is registered by `bmif diagnose register --kind sequence-diagnosis`. With encrypted weights
    models and frames are under the same key pairs, one for frames and one for segments: their holder can
    read all of it.
    """
    from workloads.sequence_models import compile_sequence, write_wanted

    if weights not in ("clear", "encrypted"):
        raise CliError(f"--weights: expected clear or encrypted, got {weights!r}")
    if (weights == "encrypted") != (keys is not None or wants is not None):
        raise CliError("--keys or --wants: encrypted weights take one of them, clear weights none")
    written = check_outputs(output, keys, wants)
    if wants is not None:
        plan = write_wanted(network, written)
    else:
        with build_progress() as bar:
            plan = compile_sequence(network, written, keys, build_report(bar, "encrypting weights"))
    if json:
        lines = list[JsonValue](plan.describe())
        print_json({"output": str(written), "refreshes": plan.refreshes, "plan": lines})
        return
    for line in plan.describe():
        out.print(line, markup=False, soft_wrap=True)


@app.command()
def start(
    models: Annotated[Path, typer.Argument(help="Folder as `bmif diagnose sequence compile` wrote it")],
    sequences: Annotated[
        Path,
        typer.Argument(help=".npz, a row a frame: images (n, S, S[, 3]) of 8 bits, case, order in the case"),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the session")],
    keys: KeysOption = Path("sequence-keys"),
    json: JsonOption = False,
) -> None:
    """Begin a session: encrypt the frames of all sequences; keys are made if there are none yet.

    The request and the named evaluation.keys go to evaluators, who can decrypt neither.
    """
    from workloads.sequence_client import start_session

    with build_progress() as bar:
        step = start_session(models, sequences, output, keys, build_report(bar, "encrypting frames"))
    _print_step(step, json)


@app.command()
def advance(
    session: SessionArgument,
    result: Annotated[
        Path, typer.Argument(help="Result of the last request, as `bmif diagnose fetch` wrote it")
    ],
    keys: KeysOption = Path("sequence-keys"),
    models: Annotated[
        Path | None, typer.Option("--models", "-m", help="Folder of the models, if it was moved")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Take a result: decrypt it and encrypt the next request, or at the end print each case's decision.

    What lies between two requests is in the session's folder, in clear, for its owner alone.
    """
    from workloads.sequence_client import Step, advance_session

    with build_progress() as bar:
        report = build_report(bar, "decrypting, encrypting again")
        found = advance_session(session, result, keys, models, report)
    if isinstance(found, Step):
        _print_step(found, json)
    else:
        _print_decisions(found, json)


def _print_step(step: "Step", json: bool) -> None:
    if json:
        print_json(
            {
                "number": step.number,
                "of": step.total,
                "refreshes": step.refreshes,
                "request": str(step.request),
                "model": str(step.model),
                "keys": str(step.keys),
            }
        )
        return
    if step.refreshes:
        err.print(f"decrypted and encrypted again: refresh {step.refreshes} of {step.total - 1}")
    out.print(
        f"{step.request}: request {step.number} of {step.total}, for {step.model}; evaluators also need"
        f" {step.keys}",
        soft_wrap=True,
    )


def _print_decisions(found: list["SequenceDecision"], json: bool) -> None:
    from workloads.sequence_client import DIGITS

    if json:
        print_json([{"case": one.case, "probability": one.probability, "found": one.found} for one in found])
        return
    rows = [(one.case, f"{one.probability:.{DIGITS}f}", "1" if one.found else "0") for one in found]
    print_table(None, ("case", "probability of 1 (0-1)", "decision"), rows)
