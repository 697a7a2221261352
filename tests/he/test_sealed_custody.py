"""A task's keys made sealed: the custodian decrypts with them as with plain ones, and only with the key."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from he.plan import Form
from workloads.base import WorkloadError
from workloads.custodian import SingleCustodian, generate_keys
from workloads.fusion import FusionTraining
from workloads.sealed import Cost, FolderKeys, derive_key, open_sealed

PRESET = "test-4096-60x5"
WORKLOAD = FusionTraining(allow_insecure=True)


def test_sealed_keys_decrypt_in_the_process_that_holds_the_key(tmp_path: Path) -> None:
    key = derive_key(b"correct horse battery staple", cost=Cost(2**4, 8, 1))
    generate_keys(PRESET, tmp_path / "keys", WORKLOAD, key)
    with pytest.raises(WorkloadError, match="needs its passphrase"):
        SingleCustodian(tmp_path / "keys").open_gradient((1, 2), 100, b"binding")
    custodian = SingleCustodian(tmp_path / "keys", WORKLOAD, FolderKeys(key, key))
    params = WORKLOAD.get_params(PRESET)
    context = custodian._get_context(params)
    values = np.linspace(-1, 1, params.slots)
    found = context.decrypt(context.encrypt(values, Form(1, Fraction(2**params.data_scale_bits))))
    assert np.abs(found - values).max() < 1e-3
    opened = custodian.open_gradient((1, 2), 100, b"binding")
    assert opened == custodian.open_gradient((1, 2), 100, b"binding")
    clear = open_sealed((tmp_path / "keys" / "secret.key").read_bytes(), key, "custody-secret")
    for path in (tmp_path / "keys").iterdir():
        assert clear[64:128] not in path.read_bytes(), path.name  # past the header, which all keys share
