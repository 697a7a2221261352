"""docs/ARCHITECTURE.md names what there is: classes and modules in backticks, modules in its drawings."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "ARCHITECTURE.md"
PACKAGES = ("consensus", "he", "fusion_model", "workloads", "node")
CODE = re.compile(r"`([^`\n]+)`")
MODULE = re.compile(r"[\w*]+(?:/[\w*]+)*\.py")
FOLDER = re.compile(r"([a-z_]+(?:/[a-z_]+)*)/?")
CLASS = re.compile(r"(?:[a-z_]+\.)*([A-Z]\w*[a-z]\w*)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def read_names(path: Path) -> set[str]:
    """What a module defines at its top."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@cache
def read_all_names() -> frozenset[str]:
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return frozenset().union(*map(read_names, modules))


def find_module(name: str, folders: list[str]) -> Path | None:
    """The module of this name: from the root, in one of the folders that its line speaks of, or in node."""
    for folder in (".", *folders, "node"):
        if found := next(iter(sorted((ROOT / folder).glob(name))), None):
            return found
    return None


def find_faults(text: str) -> list[str]:
    """What the page names and the sources do not have."""
    faults = []
    for line in FENCE.sub("", text).splitlines():
        folders: list[str] = []
        for code in CODE.findall(line):
            module, _, name = code.partition(": ")
            if MODULE.fullmatch(module):
                path = find_module(module, folders)
                if path is None:
                    faults.append(f"{module}: no such module")
                    continue
                folders.append(str(path.parent.relative_to(ROOT)))
                if name and name not in read_names(path):
                    faults.append(f"{code}: no such name there")
            elif FOLDER.fullmatch(code) and (ROOT / code).is_dir():
                folders += [code, str(Path(code).parent)]
            elif (found := CLASS.fullmatch(code)) and found[1] not in read_all_names():
                faults.append(f"{code}: no such class")
    for drawing in FENCE.findall(text):
        for line in drawing.splitlines():
            folders = []
            for module in MODULE.findall(line):
                path = find_module(module, folders)
                if path is None:
                    faults.append(f"{module}: no such module")
                else:
                    folders.append(str(path.parent.relative_to(ROOT)))
    return faults


def test_every_class_and_module_exists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert find_faults(text) == []
    codes = CODE.findall(FENCE.sub("", text))
    assert sum(MODULE.fullmatch(code) is not None for code in codes) > 50
    assert sum(CLASS.fullmatch(code) is not None for code in codes) > 30


def test_every_service_of_the_daemon_is_in_the_table() -> None:
    """What `node/daemon.py` runs as a task, by the class that it makes or the field that holds it."""
    source = (ROOT / "node" / "daemon.py").read_text(encoding="utf-8")
    made = dict(re.findall(r"^\s+(?:self\.)?(?:core\.)?(\w+) = ([A-Z]\w+)\(", source, re.MULTILINE))
    run = re.findall(r"create_task\((?:([A-Z]\w+)\([^\n]*\)|(?:self\.)?(?:core\.)?(\w+))\.run\(\)", source)
    services = {name or made[field] for name, field in run} - {"Node"}
    assert len(services) > 20
    named = set(CODE.findall(PAGE.read_text(encoding="utf-8")))
    assert services <= named, services - named


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("`SkewWatch`", "`ClockSkew`"),
        ("`Voter`", "`Voters`"),
        ("`custodian.Custodian`", "`custodian.Custodians`"),
        ("`consensus/tree.py`", "`consensus/trees.py`"),
        ("`records.py`", "`record.py`"),
        ("`node/work.py: VerdictBook`", "`node/work.py: VerdictBooks`"),
        ("he/fold.py", "he/folds.py"),
        ("he/recurrent*.py", "he/recurrents*.py"),
    ],
)
def test_a_wrong_name_would_be_found(right: str, wrong: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert right in text
    assert find_faults(text.replace(right, wrong, 1))
