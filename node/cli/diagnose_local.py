"""`bmif diagnose train|compile|keys|encrypt|decrypt`: what surrounds a job, on one's own machine."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import JsonValue
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from node.cli.common import CliError, JsonOption, err, out, print_facts, print_json, print_table

if TYPE_CHECKING:
    from workloads.diagnosis_images import ReadOptions
    from workloads.diagnosis_model import Provenance

ResizeOption = Annotated[
    bool, typer.Option("--resize", help="Cut the middle and average images of another size, not refuse them")
]
WindowOption = Annotated[
    str,
    typer.Option(help="Grey values shown: file, file:2, full, percentile, CENTRE/WIDTH, or brain, lung, ..."),
]
EvenOption = Annotated[
    bool,
    typer.Option("--even-contrast", help="Bring every image to one mean and spread before all else"),
]
KeysOption = Annotated[
    Path, typer.Option("--keys", "-k", help="Folder of the keys; its secret.key never leaves this machine")
]
OwnerKeysOption = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        "-k",
        help="With encrypted weights: folder of the keys; of another holder's, public.key and evaluation.keys"
        " are enough",
    ),
]
WantsOption = Annotated[
    Path | None,
    typer.Option(
        "--wants",
        help="With encrypted weights, instead of --keys: only write here which keys their holder is to make",
    ),
]
ModelArgument = Annotated[Path, typer.Argument(help="Model as `bmif diagnose compile` wrote it")]


def train(
    data: Annotated[
        Path,
        typer.Argument(help="Labelled images: .npz, .csv (file, label[, group, split]), or a folder a class"),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the trained network")],
    blocks: Annotated[int, typer.Option(help="Convolution blocks", min=2, max=4)] = 2,
    epochs: Annotated[int, typer.Option(help="Passes over the training images", min=1)] = 25,
    seed: Annotated[int, typer.Option(help="Of weights, order and split", min=0)] = 0,
    size: Annotated[
        int | None, typer.Option(help="Side of the square images [default: as the first is]", min=8, max=256)
    ] = None,
    colour: Annotated[bool, typer.Option("--colour", help="Keep colours: three channels")] = False,
    residual: Annotated[
        bool, typer.Option("--residual", help="Blocks that keep shape and size add their input")
    ] = False,
    range_penalty: Annotated[
        float, typer.Option(help="Weight of leaving polynomials' intervals", min=0)
    ] = 1.0,
    even: EvenOption = False,
    resize: ResizeOption = False,
    window: WindowOption = "file",
    json: JsonOption = False,
) -> None:
    """Train a network for encrypted diagnosis, in clear, on your own labelled images.

    Writes the network and, beside it, a provenance that may be published: digest of the data, seed, figures
    on the test split. Images are split by patient where the data says whose they are.
    """
    from workloads.diagnosis_config import CHANNELS, DiagnosisConfig, TrainingSettings
    from workloads.diagnosis_data import load_data
    from workloads.diagnosis_model import get_provenance_path, save_model, train_diagnosis

    read = _build_options(window, resize, even, 3 if colour else 1, size)
    found = load_data(data, read, seed)
    config = DiagnosisConfig(found.train.shape, CHANNELS[blocks], residual=residual)
    settings = TrainingSettings(epochs=epochs, range_penalty=range_penalty, seed=seed)
    with build_progress() as bar:
        line = bar.add_task("training", total=epochs)

        def report(epoch: int, loss: float) -> None:
            bar.update(line, completed=epoch + 1, description=f"training, loss {loss:.3f}")

        trained = train_diagnosis(found, config, settings, report, even_contrast=even)
    save_model(trained, output)
    provenance = trained.provenance
    if json:
        print_json({"output": str(output), **_describe(provenance)})
        return
    out.print(f"{output}, provenance in {get_provenance_path(output)}; seed {seed}", soft_wrap=True)
    facts: list[tuple[str, object]] = [
        ("classes", f"{provenance.classes[0]} (0), {provenance.classes[1]} (1)"),
        ("images", "train {}, val {}, test {}".format(*provenance.images)),
        ("data", provenance.data_sha256),
    ]
    for name, (value, low, high) in provenance.metrics.items():
        facts.append((name, f"{value:.3f}, 95 % interval {low:.3f} to {high:.3f}"))
    facts += [(f"outside {name}", f"{100 * share:.2g} %") for name, share in provenance.outside.items()]
    print_facts(facts)


def compile_network(
    network: Annotated[Path, typer.Argument(help="Network as `bmif diagnose train` wrote it")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the model that evaluators get")
    ] = None,
    packing: Annotated[
        str, typer.Option(help="single: one image, little to send; batch: thousands at once")
    ] = "single",
    weights: Annotated[str, typer.Option(help="clear, or encrypted under --keys")] = "clear",
    keys: OwnerKeysOption = None,
    wants: WantsOption = None,
    fold: Annotated[bool, typer.Option(help="Batch norms go into convolutions")] = True,
    absorb: Annotated[bool, typer.Option(help="Coefficients and pools go into neighbours")] = True,
    json: JsonOption = False,
) -> None:
    """Compile a network for evaluation on ciphertexts, and print the plan: levels, ring, sizes, seconds.

    With encrypted weights model and images are under one key pair: whoever holds it can read both. Its
    public key is enough to compile: --wants says which keys to make, and their holder makes them by `keys`.
    """
    from workloads.diagnosis_client import CompileOptions, compile_model, write_wanted

    options = CompileOptions.parse(packing, weights, fold, absorb)
    written = check_outputs(output, keys, wants)
    if wants is not None:
        program = write_wanted(network, written, options)
    else:
        with build_progress() as bar:
            program = compile_model(network, written, keys, options, build_report(bar, "encrypting weights"))
    if json:
        print_json({"output": str(written), "plan": list[JsonValue](program.describe())})
        return
    for line in program.describe():
        out.print(line, markup=False, soft_wrap=True)


def make_keys(
    wanted: Annotated[Path, typer.Argument(help="What `compile --wants` wrote, the model's owner's")],
    keys: Annotated[
        Path,
        typer.Option("--keys", "-k", help="Folder for the keys; its secret.key never leaves this machine"),
    ],
    json: JsonOption = False,
) -> None:
    """Make keys for another's model: its owner gets public.key and evaluation.keys, and never secret.key.

    Whoever holds secret.key can read the model's weights and every image sent under it.
    """
    from workloads.diagnosis_keys import EVALUATION_FILE, PUBLIC_FILE, make_wanted

    files = [folder / name for folder in make_wanted(wanted, keys) for name in (PUBLIC_FILE, EVALUATION_FILE)]
    if json:
        print_json({"keys": str(keys), "for_the_owner": list[JsonValue](map(str, files))})
        return
    names = ", ".join(f"{path} ({path.stat().st_size / 1e6:.1f} MB)" for path in files)
    out.print(f"keys are in {keys}; give the model's owner {names}", soft_wrap=True)


def encrypt(
    model: ModelArgument,
    images: Annotated[Path, typer.Argument(help="Image (PNG, TIFF, DICOM, NIfTI), or a folder of them")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the encrypted request")],
    keys: KeysOption = Path("diagnosis-keys"),
    even: EvenOption = False,
    resize: ResizeOption = False,
    window: WindowOption = "file",
    json: JsonOption = False,
) -> None:
    """Encrypt images for a model; keys are made if there are none yet.

    Whether images are evened in contrast is the model's provenance's to say, if it lies beside the model.
    The request and the folder's evaluation.keys go to evaluators, who can decrypt neither image nor result.
    """
    from workloads.diagnosis_client import encrypt_files
    from workloads.diagnosis_keys import EVALUATION_FILE

    with build_progress() as bar:
        report = build_report(bar, "encrypting")
        note = encrypt_files(model, images, keys, output, _build_options(window, resize, even), report)
    evaluation = keys / EVALUATION_FILE
    sizes = output.stat().st_size, evaluation.stat().st_size
    if json:
        print_json(
            {
                "request": str(output),
                "request_bytes": sizes[0],
                "keys": str(evaluation),
                "keys_bytes": sizes[1],
                "images": list[JsonValue](note.images),
            }
        )
        return
    count = len(note.images)
    out.print(
        f"{output}: {count} image{'s' * (count != 1)}, {sizes[0] / 1e6:.1f} MB; evaluators also need"
        f" {evaluation}, {sizes[1] / 1e6:.1f} MB. Keep {output}.json and {keys} to read the result.",
        soft_wrap=True,
    )


def decrypt(
    result: Annotated[Path, typer.Argument(help="Result as `bmif diagnose fetch` wrote it")],
    model: Annotated[Path, typer.Option("--model", "-m", help="The model that the request was made for")],
    request: Annotated[Path, typer.Option("--request", "-r", help="The request that it is the result of")],
    keys: KeysOption = Path("diagnosis-keys"),
    json: JsonOption = False,
) -> None:
    """Decrypt a result into probabilities, rounded to what the encryption's error leaves of them."""
    from workloads.diagnosis_client import decrypt_file, get_classes

    found = decrypt_file(model, request, keys, result)
    classes = get_classes(model)
    if json:
        print_json(
            [
                {
                    "image": one.image,
                    "probability": one.probability,
                    "of": classes[1],
                    "decision": None if one.found is None else classes[one.found],
                }
                for one in found
            ]
        )
        return
    print_table(
        None,
        ("image", f"probability of {classes[1]} (0-1)", "decision"),
        [
            (
                one.image,
                f"{one.probability:.{one.digits}f}",
                None if one.found is None else classes[one.found],
            )
            for one in found
        ],
    )
    if found[0].found is None:
        err.print(
            f"no decisions: the model's provenance, {model.name}.json, is not beside it", soft_wrap=True
        )


def _build_options(
    window: str, resize: bool, even: bool, channels: int = 1, size: int | None = None
) -> "ReadOptions":
    from workloads.diagnosis_images import ReadOptions, parse_window

    wanted = None if size is None else (size, size)
    return ReadOptions(wanted, resize, channels, parse_window(window), even)


def _describe(provenance: "Provenance") -> dict[str, JsonValue]:
    return {
        "classes": list[JsonValue](provenance.classes),
        "network_sha256": provenance.network_sha256,
        "data_sha256": provenance.data_sha256,
        "images": list[JsonValue](provenance.images),
        "seed": provenance.seed,
        "threshold": provenance.threshold if math.isfinite(provenance.threshold) else None,
        "metrics": {name: list[JsonValue](value) for name, value in provenance.metrics.items()},
        "outside": dict[str, JsonValue](provenance.outside),
    }


def check_outputs(output: Path | None, keys: Path | None, wants: Path | None) -> Path:
    """Where to write: the one of `output` and `wants` that is given. Raises: CliError."""
    if wants is not None and (output is not None or keys is not None):
        raise CliError("--wants writes no model: leave out --output and --keys")
    found = output if wants is None else wants
    if found is None:
        raise CliError("--output says where the model goes")
    return found


def build_progress() -> Progress:
    """Bars on standard error, gone when they are done."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=err, transient=True)


def build_report(bar: Progress, what: str) -> Callable[[int, int], None]:
    """A line of the bar; it is told (done, total)."""
    line = bar.add_task(what, total=None)

    def report(done: int, total: int) -> None:
        bar.update(line, completed=done, total=total)

    return report
