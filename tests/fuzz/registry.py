"""All targets. Those of classes, messages, rows of the ledger and bodies of the API are found by looking."""

from functools import cache

from tests.fuzz import (
    aggregate_targets,
    api_targets,
    ceremony_targets,
    committee_targets,
    diagnosis_targets,
    federation_targets,
    file_targets,
    forward_targets,
    gate_targets,
    import_targets,
    ledger_targets,
    multiparty_targets,
    peer_targets,
    rule_targets,
    sequence_targets,
    single_targets,
    sync_targets,
    tls_targets,
)
from tests.fuzz.target import Target


@cache
def get_targets() -> dict[str, Target]:
    """By name, in alphabetical order."""
    targets = [
        *rule_targets.build_targets(),
        *peer_targets.build_targets(),
        *sync_targets.build_targets(),
        *tls_targets.build_targets(),
        *gate_targets.build_targets(),
        *forward_targets.build_targets(),
        *aggregate_targets.build_targets(),
        *diagnosis_targets.build_targets(),
        *federation_targets.build_targets(),
        *sequence_targets.build_targets(),
        *single_targets.build_targets(),
        *multiparty_targets.build_targets(),
        *ceremony_targets.build_targets(),
        *committee_targets.build_targets(),
        *api_targets.build_targets(),
        *file_targets.build_targets(),
        *import_targets.build_targets(),
        *ledger_targets.build_targets(),
    ]
    named = {target.name: target for target in sorted(targets, key=lambda target: target.name)}
    if len(named) != len(targets):
        raise ValueError("two targets of one name")
    return named
