"""The documents hold together: links lead somewhere, commands exist, references are the program's."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from node.cli.main import app

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not set(path.relative_to(ROOT).parts[:-1]) & {".venv", "benchmarks", "build", "demo", "out", "run"}
)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = get_command(app)
INLINE = re.compile(r"`(bmif [^`]+)`")


def get_anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def get_anchors(page: Path) -> set[str]:
    return {
        get_anchor(line.lstrip("#")) for line in page.read_text("utf-8").splitlines() if line.startswith("#")
    }


def test_every_link_leads_somewhere() -> None:
    faults = []
    for page in PAGES:
        for link in LINK.findall(page.read_text("utf-8")):
            if link.startswith(("http://", "https://", "mailto:")):
                continue
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.exists():
                faults.append(f"{page.name}: {link} leads nowhere")
            elif anchor and target.suffix == ".md" and anchor not in get_anchors(target):
                faults.append(f"{page.name}: {target.name} has no heading for #{anchor}")
    assert not faults, "\n".join(faults)


def read_commands(page: Path) -> list[str]:
    """What the page says after `bmif`, in blocks and in running text; comments and prompts taken off."""
    text = page.read_text("utf-8")
    found = [line.removeprefix("$ ").strip() for block in FENCED.findall(text) for line in block.splitlines()]
    lines = [line.split(" #")[0] for line in found if re.match(r"bmif [a-z]", line)]
    return lines + [text for text in INLINE.findall(text) if re.match(r"bmif [a-z]", text)]


def find_command(words: list[str]) -> tuple[TyperGroup | TyperCommand, list[str]]:
    """The command that the words begin with, and the words after it; a group where they name no more.

    Raises: KeyError for a command that there is not.
    """
    command = COMMAND
    while isinstance(command, TyperGroup) and words:
        if words[0] in {name for parameter in command.params for name in parameter.opts}:
            words = words[2:]  # an option of the group, as of `bmif light`, with its value
        elif re.fullmatch(r"[a-z][a-z-]*", words[0]):
            command, words = command.commands[words[0]], words[1:]
        else:
            break
    return command, words


def find_fault(line: str) -> str | None:
    """What is wrong with a command of a page, if anything."""
    try:
        words = shlex.split(line.partition(" bmif ")[0])[1:]
    except ValueError:
        return None  # prose with an apostrophe
    try:
        command, rest = find_command(words)
    except KeyError as error:
        return f"there is no {error}"
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    options = [word.partition("=")[0] for word in rest if re.match(r"--[a-z]|-[a-z]$", word)]
    unknown = [option for option in options if option not in known | {"--help"}]
    return f"{unknown[0]} is unknown" if unknown else None


def test_every_command_and_option_exists() -> None:
    faults, count = [], 0
    for page in PAGES:
        for line in read_commands(page):
            if "|" in line:  # init|up|down: alternatives, not a command to be typed
                continue
            count += 1
            if fault := find_fault(line):
                faults.append(f"{page.name}: `{line}`: {fault}")
    assert not faults, "\n".join(faults)
    assert count > 100


def test_a_wrong_command_would_be_found() -> None:
    assert find_fault("bmif ledger chekc") == "there is no 'chekc'"
    assert find_fault("bmif fuse a b --otput c") == "--otput is unknown"
    assert find_fault("bmif fuse a b --output c -z 3") == "-z is unknown"


def test_the_reference_is_the_programs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.reference", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
