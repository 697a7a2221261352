"""The main job, whole: a testnet of five nodes mines an encrypted fusion task to its last milestone.

`python -m benchmarks.demo` makes a testnet of real processes. Three of them make a task's keys together, of
which any two open sums, and nobody can decrypt alone; two hospitals contribute encrypted phantoms. It
publishes a task, watches it being mined, compares all nodes, and fuses a pair that nobody
trained on with the model on the chain. Validators try each milestone's model on pairs of their own before it
is paid, and one block is audited: recomputed bit for bit. Exit status 0 means that all of that held.

Two organisations compute each batch. A committee can't clip what it can't see, and adds more noise, so the
network is small. With `--single` one custodian has the key of a larger network, and can read every patch.
"""

import argparse
import sys
import time
from pathlib import Path

from PIL import Image
from rich.table import Table

from benchmarks.testbed import Contributor, Recipe, Run, Testbed, TestbedError, console, get_cores
from fusion_model.fuse import convert_to_bytes
from fusion_model.phantom import build_phantoms
from workloads.imaging import PairSource

PHANTOM_SEED = 1
HELD_OUT_PATIENT = 900
NODES, MINERS = 4, 2
KEYS_S = 600.0
"""Longest wait for the committee's keys."""
MIN_FALL = 5.0
"""A demo whose loss falls less than this has failed."""

COMMITTEE = ("node1", "node4", "node5")
"""Members do not mine; node1 leads."""
COMMITTEE_DRAFT = (
    "--patch", "2", "--kernels", "1,1,1,1", "--second", "1", "--gradient-weight", "1", "--steps", "36",
    "--loss-openings", "10", "--batches", "2", "--epsilon", "8",
)  # fmt: skip
COMMITTEE_PUBLICATION = ("--batches-per-step", "2", "--learning-rate", "0.25", "--loss-every", "4")
COMMITTEE_RUNGS = ("0.024:1000", "0.014:1000", "0.0095:1000", "0.007:2000")
RUNGS = ("0.024:1000", "0.012:1000", "0.0075:1000", "0.0056:2000", "0.005:3000")


def build_recipe() -> Recipe:
    """Two hospitals, eight synthetic patients each, of whom two are held for validation."""
    contributors = tuple(
        Contributor(node, PairSource(phantoms=8, phantom_seed=PHANTOM_SEED, first_phantom=first), 2)
        for node, first in (("node2", 100), ("node3", 200))
    )
    return Recipe("Demo: phantoms", contributors, RUNGS)


def build_committee_recipe(ceremony: str) -> Recipe:
    """The same patients, keys of the committee."""
    recipe = build_recipe()
    return Recipe(
        "Demo: phantoms, a committee",
        recipe.contributors,
        COMMITTEE_RUNGS,
        ("--ceremony", ceremony, *COMMITTEE_DRAFT),
        COMMITTEE_PUBLICATION,
    )


def start(bed: Testbed, base_port: int, *, single: bool) -> Recipe:
    """A running testnet, and what it is to mine."""
    if single:
        bed.start(NODES, MINERS, base_port)
        return build_recipe()
    bed.init(NODES + 1, MINERS, base_port)
    for name in COMMITTEE:
        bed.configure(name, {"roles": ["validator", "custody"]})
    bed.bmif("testnet", "up", "--dir", str(bed.directory))
    return build_committee_recipe(bed.make_keys(COMMITTEE, 2, KEYS_S))


def fuse_phantom(bed: Testbed, task: str) -> Path:
    """Fuse a synthetic patient that nobody contributed; the figure's path."""
    pair = build_phantoms(PHANTOM_SEED, 1, first_patient=HELD_OUT_PATIENT)[0]
    folder = bed.directory / "fused"
    folder.mkdir(exist_ok=True)
    first, second = folder / "first.png", folder / "second.png"
    Image.fromarray(convert_to_bytes(pair.first)).save(first)
    Image.fromarray(convert_to_bytes(pair.second)).save(second)
    figure = folder / "figure.png"
    bed.bmif(
        "fuse", str(first), str(second), "-o", str(folder / "fused.png"), "--figure", str(figure),
        "--task", task, "--config", bed.config("node4"),
    )  # fmt: skip
    return figure


def print_run(run: Run) -> None:
    """The losses as they were opened, and what they cost."""
    table = Table("step", "validation loss (opened)")
    for opening in run.losses:
        table.add_row(str(opening.step), f"{opening.loss_value:.6f}")
    console.print(table)
    console.print(
        f"loss fell {run.fall:.2f}-fold in {run.task.gradient_openings.spent} steps and {run.seconds:.0f} s, "
        f"{run.task.rungs_settled} of {run.task.rungs} rungs settled"
    )
    print_verdicts(run)
    if run.task.privacy is not None:
        console.print(run.task.privacy.statement, style="dim")


def print_verdicts(run: Run) -> None:
    """What each validator found on pairs that nobody else saw."""
    table = Table("step", "rungs", "validator", "its loss before", "after", "verdict", title="Verdicts")
    for milestone in run.milestones.items:
        for verdict in milestone.verdicts:
            table.add_row(
                str(milestone.step),
                f"{milestone.first_rung}-{milestone.last_rung}",
                verdict.organisation,
                f"{verdict.before_value:.6f}",
                f"{verdict.after_value:.6f}",
                "accepts" if verdict.accept else "rejects",
            )
    console.print(table)


def check_run(run: Run, min_fall: float) -> None:
    """Raises TestbedError if the task is not what was promised."""
    if run.task.rungs_settled != run.task.rungs or run.task.rungs < 4:
        raise TestbedError(f"{run.task.rungs_settled} of {run.task.rungs} rungs were settled")
    if not any(milestone.verdicts for milestone in run.milestones.items):
        raise TestbedError("no validator gave a verdict")
    if run.fall < min_fall:
        raise TestbedError(f"the loss fell {run.fall:.2f}-fold, at least {min_fall} was expected")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("demo"), help="directory of the testnet (replaced)")
    parser.add_argument("--base-port", type=int, default=8100, help="first of fifteen ports")
    parser.add_argument("--timeout", type=float, default=1500, help="longest mining, seconds")
    parser.add_argument("--single", action="store_true", help="four nodes; one custodian has the key")
    parser.add_argument("--keep", action="store_true", help="leave the nodes running")
    options = parser.parse_args()
    bed = Testbed(options.dir.resolve())
    bed.clear()
    begun = time.monotonic()
    failed = True
    try:
        recipe = start(bed, options.base_port, single=options.single)
        task = bed.publish(recipe).task
        run = bed.mine(task, "node2", options.timeout)
        print_run(run)
        bed.check_agreement(task)
        audited = str(run.milestones.items[-1].height)
        bed.bmif("audit", audited, "--batches", "1", "--config", bed.config("node4"))
        figure = fuse_phantom(bed, task)
        bed.bmif("status", "--config", bed.config("node4"))
        console.print(f"[bold]fused image beside its sources:[/] {figure}", soft_wrap=True)
        for node in bed.testnet.nodes:
            console.print(f"API of {node.name}: {bed.testnet.get_api_url(node)}/v1/status")
        check_run(run, MIN_FALL)
        console.print(f"demo done in {time.monotonic() - begun:.0f} s on {get_cores()} cores")
        failed = False
        if not options.keep and sys.stdin.isatty():
            console.input("The nodes are still running; press Enter to stop them. ")
    except TestbedError as error:
        console.print(f"[bold red]the demo failed:[/] {error}", soft_wrap=True)
    finally:
        if not options.keep:
            bed.stop()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
