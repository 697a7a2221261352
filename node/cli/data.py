"""`bmif data encrypt`: a contributor's pairs become encrypted batches, on its own machine.

`bmif data import`, which makes pairs of medical images, is in `node/cli/data_import.py`.
"""

import json as json_module
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import JsonValue
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from consensus.task import BlobRef, Draft
from consensus.types import Hash32
from node.api.payloads import build_core
from node.cli.common import (
    CliError,
    ConfigOption,
    JsonOption,
    connect_operator,
    err,
    load_config,
    out,
    parse_hash,
    print_json,
)
from node.cli.data_import import import_images

if TYPE_CHECKING:
    from workloads.encryption import EncryptedContribution

app = typer.Typer(no_args_is_help=True, help="Image pairs of a contributor.")
CONTRIBUTION_FILE = "contribution.json"


@app.callback()
def group() -> None:
    """Image pairs of a contributor."""


app.command("import")(import_images)

FirstOption = Annotated[
    Path | None, typer.Option("--first", help="Folder of PNG images of the first modality")
]
SecondOption = Annotated[Path | None, typer.Option("--second", help="Folder of their twins of equal names")]
ManifestOption = Annotated[
    Path | None, typer.Option("--manifest", help="CSV with id, modality, file_a, file_b, patient")
]
ModalityOption = Annotated[str | None, typer.Option("--modality", help="Only these rows of the manifest")]
PhantomsOption = Annotated[int, typer.Option("--phantoms", help="Use this many synthetic patients", min=0)]
PhantomSeedOption = Annotated[int, typer.Option("--phantom-seed", help="Seed of synthetic patients", min=0)]
FirstPhantomOption = Annotated[int, typer.Option("--first-phantom", help="Number of the first one", min=0)]
PatientsOption = Annotated[
    list[int] | None, typer.Option("--patient", help="Keep only this patient; repeat [default: all]", min=0)
]


@app.command()
def encrypt(
    draft: Annotated[str, typer.Argument(help="Hash of the task's draft")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New directory for the encrypted batches")],
    first: FirstOption = None,
    second: SecondOption = None,
    manifest: ManifestOption = None,
    modality: ModalityOption = None,
    phantoms: PhantomsOption = 0,
    phantom_seed: PhantomSeedOption = 1,
    first_phantom: FirstPhantomOption = 0,
    patient: PatientsOption = None,
    training_batches: Annotated[int, typer.Option(help="Encrypted training batches", min=0)] = 1,
    validation_batches: Annotated[int, typer.Option(help="Encrypted validation batches", min=0)] = 0,
    validation_patients: Annotated[
        int, typer.Option(help="How many patients (the last by number) are held for validation", min=0)
    ] = 0,
    use_split: Annotated[
        bool,
        typer.Option(
            "--use-split", help="Take whom to train on and to validate with from the manifest's splits"
        ),
    ] = False,
    patches_per_batch: Annotated[
        int | None, typer.Option(help="Patches of a batch [default: all slots of the preset]", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of patches", min=0)] = 1,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Encrypt image pairs under a draft's key. Images never leave this machine in clear."""
    settings = load_config(config)
    if output.exists() and any(output.iterdir()):
        raise CliError(f"{output} is not empty; choose another --output")
    from workloads.base import get_workload
    from workloads.encryption import ContributionPlan, EncryptionProgress
    from workloads.imaging import PairSource, choose_validation_patients, encrypt_pairs, load_pairs
    from workloads.importing import get_split_patients

    wanted = tuple(patient or ())
    held: tuple[int, ...] | None = None
    if use_split:
        if manifest is None or wanted or validation_patients:
            raise CliError("--use-split goes with --manifest, not with --patient or --validation-patients")
        splits = get_split_patients(manifest, modality)
        held = splits.validation if validation_batches else ()
        wanted = splits.training + held
    pairs = load_pairs(
        PairSource(first, second, manifest, modality, phantoms, phantom_seed, first_phantom, wanted)
    )
    if held is None:
        held = choose_validation_patients(pairs, validation_patients)
    with tempfile.TemporaryDirectory() as scratch:
        with connect_operator(settings) as client:
            found = client.call(client.api.get_draft(parse_hash(draft, "draft").hex())).draft
            key = Path(scratch) / "public.key"
            ref = BlobRef(Hash32(bytes.fromhex(found.public_key.root)), found.public_key.length)
            client.call(client.api.get_blob(ref, key))
        plan = ContributionPlan(
            training_batches=training_batches,
            validation_batches=validation_batches,
            validation_patients=held,
            seed=seed,
            patches_per_batch=patches_per_batch or get_workload(found.kind).get_slots(found.preset),
        )
        core = build_core(Draft, found)
        with _build_progress() as bar:
            line = bar.add_task("encrypting", total=training_batches + validation_batches)

            def report(progress: EncryptionProgress) -> None:
                bar.update(line, completed=progress.done)

            made = encrypt_pairs(core.preset, core.model, key, pairs, plan, output, report)
    document = _describe(draft, made)
    (output / CONTRIBUTION_FILE).write_text(json_module.dumps(document, indent=1) + "\n", encoding="utf-8")
    if json:
        print_json(document)
    else:
        out.print(f"{len(made.training)} training and {len(made.validation)} validation batches in {output}")
        out.print(f"Give them to the task with: bmif task contribute {output}")


def _build_progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
    )


def _describe(draft: str, made: "EncryptedContribution") -> dict[str, JsonValue]:
    return {
        "draft": draft,
        "training": [{"file": batch.path.name, "patches": batch.patches} for batch in made.training],
        "validation": [{"file": batch.path.name, "patches": batch.patches} for batch in made.validation],
        "patients": [asdict(entry) for entry in made.patients],
    }
