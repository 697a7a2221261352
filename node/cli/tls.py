"""`bmif tls`: certificates of the peer port, on the node's side and on the authority's."""

import datetime
import os
from pathlib import Path
from typing import Annotated

import typer

from node.cli.common import (
    CliError,
    ConfigOption,
    JsonOption,
    load_config,
    out,
    print_facts,
    print_json,
    print_table,
)
from node.config import NodeConfig
from node.keystore import load_account_key, write_private_file
from node.tls import TlsError, TlsFiles, load_certificate, save_certificate
from node.tls_check import State, check_tls, describe_file
from node.tls_issue import make_certificate
from node.tls_requests import Authority, make_request, read_request

DEFAULT_DAYS = 397
LIST_DAYS = 30

app = typer.Typer(no_args_is_help=True, help="Certificates of the peer port, of a node and of the authority.")

AuthorityOption = Annotated[
    Path, typer.Option("--authority", help="The authority's directory: ca.pem, ca.key, issued.json")
]


def _get_files(config: NodeConfig) -> TlsFiles:
    tls = config.tls
    return TlsFiles(tls.certificate, tls.key, tls.authority, tls.revoked)


def _get_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def _get_new_key(config: NodeConfig) -> Path:
    return config.tls.key.with_name(config.tls.key.name + ".new")


@app.command()
def authority(
    directory: Annotated[Path, typer.Argument(help="New directory; keep it off the nodes")],
    name: Annotated[str, typer.Option("--name", help="Name of the consortium")],
) -> None:
    """Make an authority, for a consortium that brings none: ca.pem for every node, ca.key for nobody."""
    made = Authority.make(directory, name)
    out.print(f"{made.certificate_path}: hand it to every node", markup=False, soft_wrap=True)
    out.print(f"{directory / 'ca.key'}: keep it, and a backup, offline", markup=False, soft_wrap=True)


@app.command()
def request(
    organisation: Annotated[str, typer.Option("--organisation", help="As the chain has it for this account")],
    config: ConfigOption = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host", help="DNS name or IP address that others dial; repeat it [default: advertised]"
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Request [default: tls.csr]")] = None,
) -> None:
    """Make a TLS key and a request that the node's account signs; the authority makes a certificate of it.

    The key is written where the settings have it or, if there is one, beside it as `.new` until
    `bmif tls install`.
    """
    settings = load_config(config)
    key_path = _get_new_key(settings) if settings.tls.key.exists() else settings.tls.key
    output = output or settings.tls.certificate.with_name("tls.csr")
    hosts = host or [settings.advertised.rpartition(":")[0].strip("[]")]
    pem, key = make_request(load_account_key(settings.account_key), settings.name, organisation, hosts)
    if key_path.exists():
        raise CliError(f"{key_path} exists: install its certificate first, or remove it to begin anew")
    write_private_file(key_path, key)
    output.write_bytes(pem)
    out.print(f"{key_path}: the key, stays here", markup=False, soft_wrap=True)
    out.print(f"{output}: hand it to the authority (`bmif tls sign`)", markup=False, soft_wrap=True)


@app.command()
def sign(
    path: Annotated[Path, typer.Argument(metavar="REQUEST", help="What a node handed in")],
    directory: AuthorityOption,
    organisation: Annotated[str, typer.Option("--organisation", help="Who handed it in, as you know them")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The certificate")],
    days: Annotated[int, typer.Option("--days", min=1, max=3_650, help="Validity")] = DEFAULT_DAYS,
) -> None:
    """The authority's side: make a certificate of a request, if it is of whom you say."""
    asked = read_request(path.read_bytes())
    pem = Authority(directory).sign(asked, organisation, days, _get_now())
    output.write_bytes(pem)
    print_facts([*describe_file(output), ("file", output)])


@app.command()
def issue(
    name: Annotated[str, typer.Argument(help="Of the machine; its files are NAME.pem and NAME.key")],
    directory: AuthorityOption,
    host: Annotated[list[str], typer.Option("--host", help="DNS name or IP address; may be repeated")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the files")] = Path("."),
) -> None:
    """The authority's side: key and certificate at once, for a machine without an account.

    For scheduler, workers and node of a cluster, by an authority of the cluster's own; never for the peer
    port, where a key must not leave its node.
    """
    if Path(name).name != name:
        raise CliError(f"{name} is no name of a file: give letters, digits and dashes")
    issuer = Authority(directory).issued
    files = TlsFiles(output / f"{name}.pem", output / f"{name}.key", output / "ca.pem")
    made = make_certificate(issuer, name, "cluster", host)
    output.mkdir(parents=True, exist_ok=True)
    save_certificate(files, made, issuer.certificate_pem)
    for path in (files.certificate, files.key, files.authority):
        out.print(str(path), markup=False, soft_wrap=True)


@app.command()
def install(
    path: Annotated[Path, typer.Argument(metavar="CERTIFICATE", help="What the authority handed back")],
    config: ConfigOption = None,
) -> None:
    """Put a new certificate, and its request's key, in the place of the old; a running node takes them."""
    settings = load_config(config)
    fresh, files = _get_new_key(settings), _get_files(settings)
    key = fresh if fresh.exists() else files.key
    tried = TlsFiles(path, key, files.authority, files.revoked)
    account = load_account_key(settings.account_key).address
    found = check_tls(tried, settings.name, account, settings.advertised, _get_now())
    failed = [finding for finding in found if finding.state is State.FAILED]
    if failed:
        raise CliError("; ".join(f"{f.check}: {f.detail}. {f.remedy}" for f in failed))
    part = files.certificate.with_name(files.certificate.name + ".part")
    part.write_bytes(path.read_bytes())
    # In between, the two do not belong together: a node that looks then keeps what it has, and looks again.
    if key != files.key:
        os.replace(key, files.key)
    os.replace(part, files.certificate)
    expires = load_certificate(files.certificate).expires.date()
    out.print(f"{files.certificate}: until {expires}; a running node takes it within "
              f"{settings.tls.poll_s:.0f} s, or at once on SIGHUP", markup=False, soft_wrap=True)  # fmt: skip


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="A certificate, a request or a list of revoked ones (PEM)")],
    json: JsonOption = False,
) -> None:
    """Print what a file says: names, account, hosts, dates."""
    facts = describe_file(path)
    if json:
        print_json({name: None if value is None else str(value) for name, value in facts})
    else:
        print_facts(facts)


@app.command()
def check(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Check a node's certificates: names, account, dates, chain, key, mode, list. Exit status 1 if wrong."""
    settings = load_config(config)
    account = load_account_key(settings.account_key).address
    found = check_tls(_get_files(settings), settings.name, account, settings.advertised, _get_now())
    if json:
        print_json(
            [
                {"check": f.check, "state": f.state, "detail": f.detail, "remedy": f.remedy or None}
                for f in found
            ]
        )
    else:
        rows = ((f.check, f.state, f.detail, f.remedy or None) for f in found)
        print_table(None, ("check", "state", "detail", "remedy"), rows)
    if any(f.state is State.FAILED for f in found):
        raise typer.Exit(1)


@app.command()
def revoke(
    directory: AuthorityOption,
    which: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WHICH", help="Node id, serial number or certificate file; none renews the list"
        ),
    ] = None,
    days: Annotated[
        int, typer.Option("--days", min=1, max=3_650, help="Until a newer list is due")
    ] = LIST_DAYS,
) -> None:
    """The authority's side: make the list of all revoked certificates, for every node's `tls.revoked`."""
    issuer = Authority(directory)
    serials = [serial for text in which or () for serial in _find(issuer, text)]
    issuer.revoke(serials, days, _get_now())
    print_facts([*describe_file(issuer.list_path), ("file", issuer.list_path)])


def _find(issuer: Authority, text: str) -> list[int]:
    if Path(text).is_file():
        return [load_certificate(Path(text)).serial]
    found = issuer.find(text)
    if found:
        return found
    try:
        return [int(text, 16)]
    except ValueError:
        raise TlsError(f"no certificate of {text} is in force; give a node id, serial or file") from None
