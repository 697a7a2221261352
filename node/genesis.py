"""The genesis document as a file: JSON for people, from which every node builds the same `Genesis`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from consensus.params import ChainParams, Genesis, GenesisAccount, Validator
from consensus.types import MAX_AMOUNT, MAX_TIME_MS, Address, Amount, Millis

HEX_32 = r"^[0-9a-f]{64}$"


class GenesisError(ValueError):
    """A genesis document was refused; the text names the field."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Account(_Model):
    address: str = Field(pattern=HEX_32)
    balance: int = Field(ge=0, le=MAX_AMOUNT)
    organisation: str = Field(min_length=1, max_length=64)


class _Validator(_Model):
    address: str = Field(pattern=HEX_32)
    stake: int = Field(ge=1, le=MAX_AMOUNT)


class _Document(_Model):
    name: str = Field(min_length=1, max_length=64)
    time: int = Field(ge=0, le=MAX_TIME_MS)
    params: dict[str, int]
    accounts: list[_Account]
    validators: list[_Validator] = Field(min_length=1)
    mining_organisations: list[str]


def build_params(overrides: Mapping[str, int]) -> ChainParams:
    """Chain parameters with the given fields changed.

    Raises: GenesisError for an unknown field or a value that is not a positive integer.
    """
    known = {field.name for field in fields(ChainParams)}
    for name, value in overrides.items():
        if name not in known:
            raise GenesisError(f"params.{name}: unknown; known are {', '.join(sorted(known))}")
        if value < 1:
            raise GenesisError(f"params.{name}: must be a positive integer")
    return ChainParams(**overrides)


def save_genesis(path: Path, genesis: Genesis) -> None:
    """Write the document; every field is explicit, so later defaults can't change the chain."""
    document = {
        "name": genesis.name,
        "time": genesis.time,
        "params": asdict(genesis.params),
        "accounts": [
            {"address": a.address.hex(), "balance": a.balance, "organisation": a.organisation}
            for a in genesis.accounts
        ],
        "validators": [{"address": v.address.hex(), "stake": v.stake} for v in genesis.validators],
        "mining_organisations": list(genesis.mining_organisations),
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def load_genesis(path: Path) -> Genesis:
    """Read the document.

    Raises: GenesisError naming the file and the field.
    """
    try:
        document = _Document.model_validate_json(path.read_bytes())
    except OSError as error:
        raise GenesisError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise GenesisError(
            f"{path}: {'.'.join(map(str, first['loc'])) or '(file)'}: {first['msg']}"
        ) from error
    missing = {field.name for field in fields(ChainParams)} - document.params.keys()
    if missing:
        raise GenesisError(
            f"{path}: params: {', '.join(sorted(missing))} missing; a genesis leaves no default open"
        )
    for name, values in (
        ("accounts", [a.address for a in document.accounts]),
        ("validators", [v.address for v in document.validators]),
    ):
        if len(set(values)) != len(values):
            raise GenesisError(f"{path}: {name}: an address appears twice")
    return Genesis(
        name=document.name,
        time=Millis(document.time),
        params=build_params(document.params),
        accounts=tuple(
            GenesisAccount(Address(bytes.fromhex(a.address)), Amount(a.balance), a.organisation)
            for a in document.accounts
        ),
        validators=tuple(Validator(Address(bytes.fromhex(v.address)), v.stake) for v in document.validators),
        mining_organisations=tuple(document.mining_organisations),
    )
