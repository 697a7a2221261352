"""Finds in the sources what decodes bytes, so that nothing that does so goes without a target."""

import ast
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from inspect import isabstract
from pathlib import Path

from tests.fuzz.target import ROOT

PACKAGES = ("consensus", "he", "fusion_model", "workloads", "node")

CODEC_CALLS = {"decode", "decode_stored", "decode_message", "_decode"}
"""Decoders that are driven by a class, their first argument."""

RAW_CALLS = {
    *("unpackb", "Unpacker", "unpack", "unpack_from", "iter_unpack", "frombuffer", "fromhex"),
    *("b64decode", "b32decode", "urlsafe_b64decode"),
    *("loads", "safe_load", "model_validate_json", "validate_json", "DictReader", "reader", "np.load"),
    *("dcmread", "read_file_meta_info", "nib.load"),
    *(
        "Image.open",
        "decompress",
        "load_pem_private_key",
        "load_pem_x509_certificate",
        "load_der_private_key",
        "load_pem_x509_certificates",
        "load_pem_x509_csr",
        "load_pem_x509_crl",
    ),
    *("load_pem_public_key", "load_der_x509_certificate", "load_cert_chain", "from_public_bytes"),
    *("from_private_bytes", "from_bytes"),
}
"""Calls that make something of raw bytes."""


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _iterate_modules() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), _parse(path)


def _get_call_name(call: ast.Call) -> str:
    """Last part of what is called; with the part before it where the last alone says little."""
    function = call.func
    if isinstance(function, ast.Name):
        return function.id
    if not isinstance(function, ast.Attribute):
        return ""
    if isinstance(function.value, ast.Name) and function.attr in ("open", "load"):
        return f"{function.value.id}.{function.attr}"
    return function.attr


def _find_origin(module: str, tree: ast.Module, name: str) -> str:
    """The module from which `name` comes into another."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and any(a.name == name for a in node.names):
            return node.module
    return module


def find_decoded_classes() -> list[type]:
    """Every dataclass that some line decodes by its name, and every record of the state; by name."""
    found: dict[str, type] = {}
    for module, tree in _iterate_modules():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and _get_call_name(node) in CODEC_CALLS and node.args):
                continue
            argument = node.args[0]
            if isinstance(argument, ast.Name):
                cls = getattr(import_module(_find_origin(module, tree, argument.id)), argument.id, None)
                if is_dataclass(cls) and isinstance(cls, type):
                    found[cls.__name__] = cls
    for module in ("consensus.records", "consensus.jobs"):
        for name, cls in vars(import_module(module)).items():
            if isinstance(cls, type) and is_dataclass(cls) and not isabstract(cls):
                found[name] = cls
    return [found[name] for name in sorted(found)]


def find_raw_decoders() -> list[str]:
    """`module:function` of everything that reads raw bytes by other means than the codec."""
    found: set[str] = set()
    for module, tree in _iterate_modules():
        _visit(tree, module, "", found)
    return sorted(found)


def _visit(node: ast.AST, module: str, scope: str, found: set[str]) -> None:
    for child in ast.iter_child_nodes(node):
        inner = scope
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{scope}.{child.name}" if scope else child.name
        if isinstance(child, ast.Call) and _get_call_name(child) in RAW_CALLS:
            found.add(f"{module}:{scope or '(module)'}")
        _visit(child, module, inner, found)
