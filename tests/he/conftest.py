"""Keys, batches and results that several tests look at, made once a session."""

from dataclasses import dataclass
from functools import cached_property

import pytest

from he.context import PrivateContext, PublicContext
from he.gradient import compute_gradient_bundle, compute_loss_ciphertext
from he.keys import RelinKeys
from he.packing import encrypt_batch
from he.params import CkksParams, get_params
from he.spec import PolynomialSpec
from tests.he.reference import Problem, compute_target, make_problem, make_weights


@dataclass
class World:
    """One task: keys, spec, weights, patches in clear, and an encrypted validation batch."""

    params: CkksParams
    spec: PolynomialSpec
    count: int

    @cached_property
    def private(self) -> PrivateContext:
        return PrivateContext.generate(self.params)

    @cached_property
    def evaluator(self) -> PublicContext:
        """What a miner has: relinearisation keys, by way of their bytes."""
        keys = self.private.public.relin_keys
        assert keys is not None
        return PublicContext(self.params, relin_keys=RelinKeys.decode(self.params, keys.encode()))

    @cached_property
    def problem(self) -> Problem:
        return make_problem(self.spec, self.count)

    @cached_property
    def weights(self) -> tuple[int, ...]:
        return make_weights(self.params, self.spec)

    @cached_property
    def batch(self) -> bytes:
        target, constant = compute_target(self.spec, self.problem)
        return encrypt_batch(self.private, self.spec, self.problem.inputs, target, constant)

    @cached_property
    def bundle(self) -> bytes:
        return compute_gradient_bundle(self.evaluator, self.spec, self.weights, self.batch)

    @cached_property
    def loss(self) -> bytes:
        return compute_loss_ciphertext(self.evaluator, self.spec, self.weights, self.batch)


@pytest.fixture(scope="session")
def small() -> World:
    """Insecure small ring, with fewer patches than slots."""
    return World(get_params("test-4096-60x5", allow_insecure=True), PolynomialSpec(), 1500)


@pytest.fixture(scope="session")
def real() -> World:
    """The 128-bit training preset, full."""
    params = get_params("ckks-16384-60x5")
    return World(params, PolynomialSpec(), params.slots)
