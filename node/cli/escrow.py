"""`bmif custody`: the keys of tasks and federations at rest: passphrase, backup, escrow by shares."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from node.cli.ceremony import create, end, join, reshare, status
from node.cli.common import (
    CliError,
    ConfigOption,
    JsonOption,
    err,
    load_config,
    out,
    print_json,
    print_table,
    shorten,
)
from node.custody_keys import (
    KeyFolder,
    change_folder,
    find_folders,
    make_sealing_key,
    read_secrets,
    unlock_folder,
)
from node.escrow import (
    Entry,
    Share,
    build_archive,
    combine,
    format_share,
    open_archive,
    parse_share,
    read_archive_header,
    read_vouchers,
    share_out,
)
from node.escrow import (
    restore as restore_entries,
)
from node.keystore_files import read_private_file, write_private_file
from node.passphrase import (
    Passphrase,
    Purpose,
    check_new,
    get_new_passphrase,
    get_passphrase,
    read_passphrase_file,
)
from workloads import sealed
from workloads.sealed import SealingKey

app = typer.Typer(
    no_args_is_help=True,
    help="The custody's keys: made by a committee; at rest: passphrase, backup, escrow.",
)
app.command()(create)
app.command()(join)
app.command()(status)
app.command()(reshare)
app.command()(end)

KeyOption = Annotated[
    list[str] | None,
    typer.Option("--key", metavar="ROOT", help="Only keys whose public key's root begins so; repeat [all]"),
]
ArchiveArgument = Annotated[Path, typer.Argument(help="Archive made by `backup` or `escrow`")]
NewFileOption = Annotated[
    Path | None, typer.Option("--new-file", help="Private file of the new passphrase, instead of asking")
]


def _select(directory: Path, keys: Sequence[str] | None) -> list[KeyFolder]:
    found = list(find_folders(directory))
    for key in keys or ():
        matching = [item for item in found if item.root.startswith(key.lower())]
        if len(matching) != 1:
            raise CliError(
                f"--key {key}: {len(matching)} keys below {directory} begin so; see `bmif custody keys`"
            )
    if keys:
        found = [item for item in found if any(item.root.startswith(key.lower()) for key in keys)]
    if not found:
        raise CliError(f"no custody keys below {directory}")
    return found


def _read(folders: Sequence[KeyFolder]) -> list[Entry]:
    return [Entry(item.place, item.root, read_secrets(item, unlock_folder(item))) for item in folders]


def _report(names: Sequence[str], done: str, json: bool) -> None:
    if json:
        print_json({"keys": list(names)})
        return
    for name in names:
        out.print(f"{done}  {name}", soft_wrap=True)


@app.command()
def keys(config: ConfigOption = None, json: JsonOption = False) -> None:
    """List the keys that this custody holds, and how they are kept."""
    settings = load_config(config)
    rows = [
        (item.place, item.root, "sealed" if item.is_sealed else "plain")
        for item in find_folders(settings.custody_dir)
    ]
    if json:
        print_json([{"place": place, "root": root, "protection": how} for place, root, how in rows])
    else:
        print_table(None, ("of", "root of the public key, or ceremony", "kept"), rows)


def _change(config: Path | None, old: Passphrase | None, new: Passphrase | None) -> None:
    directory = load_config(config).custody_dir
    for folder in _select(directory, None):
        done = change_folder(folder, old, new)
        out.print(f"{folder.place} {shorten(folder.root)}  {'changed' if done else 'is so already'}")


@app.command()
def encrypt(config: ConfigOption = None) -> None:
    """Seal all plain keys with the custody's passphrase. Restart the custody's node afterwards."""
    found = get_new_passphrase(Purpose.CUSTODY, "the custody's keys")
    _change(config, found, found)


@app.command()
def decrypt(config: ConfigOption = None) -> None:
    """Write all keys plain: whoever reads the files can then read every contributed image."""
    _change(config, get_passphrase(Purpose.CUSTODY, "the custody's keys"), None)


@app.command()
def passphrase(config: ConfigOption = None, new_file: NewFileOption = None) -> None:
    """Change the passphrase of all keys; goes on where it was interrupted."""
    old = get_passphrase(Purpose.CUSTODY, "the custody's keys")
    if new_file is None:
        new = get_new_passphrase(Purpose.CUSTODY, "the custody's keys", ask=True)
    else:
        new = read_passphrase_file(new_file)
        check_new(new)
    _change(config, old, new)


# --- backup -----------------------------------------------------------------------------------


@app.command()
def backup(
    output: Annotated[Path, typer.Option("--output", "-o", help="New archive (mode 0600)")],
    key: KeyOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Write the keys into one archive under a passphrase (BMIF_BACKUP_PASSPHRASE_FILE, or asked for)."""
    folders = _select(load_config(config).custody_dir, key)
    sealing = sealed.derive_key(get_new_passphrase(Purpose.BACKUP, str(output)).reveal())
    write_private_file(output, build_archive(_read(folders), sealing))
    _report([f"{item.place}/{item.root}" for item in folders], "kept", json)


@app.command()
def show(archive: ArchiveArgument, json: JsonOption = False) -> None:
    """Say what an archive holds, by its own word: nothing is opened."""
    header = read_archive_header(archive)
    opens = "its passphrase"
    if not header.salt:
        threshold, digests = read_vouchers(header)
        opens = f"{threshold} of {len(digests)} shares"
    if json:
        print_json({"keys": list(header.holds), "opens": opens})
        return
    out.print(f"opened by {opens}")
    _report(header.holds, "holds", json=False)


def _restore(archive: Path, key: SealingKey, config: Path | None, json: bool) -> None:
    settings = load_config(config)
    entries = open_archive(archive, key)
    sealing = make_sealing_key(settings.custody_dir, encrypted=settings.custody.encrypted)
    folders = restore_entries(entries, settings.custody_dir, sealing)
    _report([f"{item.place}/{item.root}" for item in folders], "restored", json)
    if sealing is None:
        err.print("They are kept plain; `bmif custody encrypt` seals them", markup=False, soft_wrap=True)
    if not json:
        err.print(
            "Before this custody opens anything: docs/OPERATIONS.md, *Backup of a custody*", markup=False
        )


@app.command()
def restore(archive: ArchiveArgument, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Put an archive's keys where the custody looks for them; nothing is overwritten."""
    header = read_archive_header(archive)
    if not header.salt:
        raise CliError(f"{archive} is opened by shares: bmif custody recover SHARE... --archive {archive}")
    found = get_passphrase(Purpose.BACKUP, str(archive))
    _restore(archive, sealed.unlock(header, found.reveal()), config, json)


# --- escrow -----------------------------------------------------------------------------------


@app.command()
def escrow(
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the archive and the shares")],
    shares: Annotated[int, typer.Option(help="So many shares open the archive", min=2, max=16)] = 3,
    of: Annotated[int, typer.Option(help="So many shares are made", min=2, max=16)] = 5,
    key: KeyOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Write the keys into an archive that any few of several shares open, and no passphrase.

    Give each share-*.txt to another person, print it if they like, and delete them here. The archive says
    nothing without the shares and may be copied anywhere.
    """
    folders = _select(load_config(config).custody_dir, key)
    if output.exists():
        raise CliError(f"{output} exists already; choose another name or move it away")
    drawn = sealed.draw_key()
    made, name = share_out(drawn, shares, of)
    data = build_archive(_read(folders), drawn, name)
    output.mkdir(parents=True, mode=0o700)
    write_private_file(output / "archive.sealed", data)
    for share in made:
        write_private_file(output / f"share-{share.index}-of-{of}.txt", format_share(share).encode())
    # Read back: shares that open nothing would be found too late.
    _check(output, shares)
    _report([f"{item.place}/{item.root}" for item in folders], "kept", json)
    if not json:
        out.print(f"{of} shares in {output}, any {shares} open archive.sealed", soft_wrap=True)


def _check(folder: Path, threshold: int) -> None:
    paths = sorted(folder.glob("share-*.txt"))[-threshold:]
    archive = folder / "archive.sealed"
    key = combine([_load_share(str(path)) for path in paths], read_archive_header(archive))
    open_archive(archive, key)


def _load_share(text: str) -> tuple[str, Share]:
    path = Path(text)
    if path.is_file():
        words = read_private_file(path).decode("utf-8", "replace")
        return text, parse_share(words, text)
    if re.fullmatch(r"\S*[./]\S*", text):  # signs that the letters of a share do not have
        raise CliError(f"{text}: there is no such file; give a share's file, or its letters in quotes")
    name = f"{text[:11]}..." if len(text) > 20 else text
    return name, parse_share(text, name)


@app.command()
def recover(
    share: Annotated[list[str], typer.Argument(help="Files of shares, or a share's letters in quotes")],
    archive: Annotated[Path, typer.Option("--archive", "-a", help="The archive that they open")],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Open an archive by shares and put its keys where the custody looks for them; nothing is overwritten."""
    key = combine([_load_share(text) for text in share], read_archive_header(archive))
    _restore(archive, key, config, json)
