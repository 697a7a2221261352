"""What a fusion-training task is made of: draft, contributions, publication, claims, openings."""

from dataclasses import dataclass

from consensus.types import Address, Amount, Hash32, Millis, Signature


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A content-addressed blob; the root commits to its length and to every chunk."""

    root: Hash32
    length: int


@dataclass(frozen=True, slots=True)
class Draft:
    """The custody's offer: keys, model, clipping, noise and the most numbers it will ever open."""

    kind: str
    """Workload kind, `fusion-training`."""
    title: str
    salt: bytes
    """16 random bytes, so that equal drafts differ."""
    preset: str
    """Name of the CKKS preset."""
    model: bytes
    """The workload's canonical model specification; opaque to consensus."""
    parameters: int
    """Number of integer weights."""
    weight_box: int
    """Every weight lies in [-weight_box, weight_box] (W6)."""
    public_key: BlobRef
    relin_keys: BlobRef
    clipping: str
    """`per-patch` (single custodian) or `box` (committee)."""
    gradient_scale_bits: int
    """Opened gradients are integers in units of 2^-gradient_scale_bits."""
    gradient_clip: int
    """L2 bound of one patch's joint gradient, in opened units."""
    gradient_noise: int
    """Standard deviation of the Gaussian noise added to each opened sum, in opened units."""
    loss_scale_bits: int
    """Opened losses and ladder targets are integers in units of 2^-loss_scale_bits."""
    loss_clip: int
    """Upper bound of one patch's loss, in opened units."""
    loss_noise: int
    """Standard deviation of the noise of an opened *sum* of losses, in opened units."""
    max_gradient_openings: int
    max_loss_openings: int
    privacy: str
    """The privacy statement that contributors sign."""
    ceremony: Hash32
    """The ceremony that made the keys, of whose members the sender is one; ZERO_HASH: a single custodian."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One encrypted batch; `patches` of its slots are used, from slot 0."""

    blob: BlobRef
    patches: int


@dataclass(frozen=True, slots=True)
class PatientRange:
    """Patches [start, stop) of one batch belong to one patient (pseudonymous number)."""

    patient: int
    validation: bool
    batch: int
    """Index into the contribution's training (or validation) batches."""
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Milestone:
    """One rung of the ladder: reached at a validation loss <= target (opened units)."""

    target: int
    reward: Amount


@dataclass(frozen=True, slots=True)
class Optimizer:
    """Integer momentum SGD: m <- floor(9m/10) + g; w <- w - floor(lr_t * m / 2^shift)."""

    shift: int
    learning_rates: tuple[int, ...]
    """One entry a step; its length equals the draft's `max_gradient_openings`."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A miner's signed statement that its bundle for (task, step, batch) has this root."""

    task: Hash32
    step: int
    batch: int
    """Index into the task's batches."""
    bundle: BlobRef
    miner: Address
    signature: Signature


@dataclass(frozen=True, slots=True)
class SealedClaim:
    """A claim that does not tell the root: made for a committee's task by a miner that has the bundle."""

    task: Hash32
    step: int
    batch: int
    seal: Hash32
    """`compute_seal` of the bundle's root and the miner, so that a copied one is nobody else's."""
    miner: Address
    signature: Signature


@dataclass(frozen=True, slots=True)
class Cosignature:
    """A committee member's signature of an opening's content."""

    member: Address
    signature: Signature


@dataclass(frozen=True, slots=True)
class Credit:
    miner: Address
    batches: int


# --- transaction payloads ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Transfer:
    to: Address
    amount: Amount


@dataclass(frozen=True, slots=True)
class DraftTask:
    draft: Draft


@dataclass(frozen=True, slots=True)
class Contribute:
    """A contributor's signed batches for one draft; the sender is the contributor."""

    draft: Hash32
    training: tuple[Batch, ...]
    validation: tuple[Batch, ...]
    patients: tuple[PatientRange, ...]


@dataclass(frozen=True, slots=True)
class PublishTask:
    """Fixes everything about a task. Batches are the contributions' batches, in listed order."""

    draft: Hash32
    contributions: tuple[Hash32, ...]
    """Transaction ids of the contributions."""
    order: tuple[int, ...]
    """A permutation of the training batches; step s uses order[(s*k + i) mod len], i < k."""
    batches_per_step: int
    initial_weights: tuple[int, ...]
    optimizer: Optimizer
    loss_schedule: tuple[int, ...]
    """Ascending steps at which the loss is opened, before that step's gradient."""
    ladder: tuple[Milestone, ...]
    """Strictly descending targets."""
    batch_fee: Amount
    bond: Amount
    deadline: Millis


@dataclass(frozen=True, slots=True)
class Available:
    """A validator's promise that it stores and has checked the task's keys and validation blobs."""

    task: Hash32


@dataclass(frozen=True, slots=True)
class OpenGradient:
    """The custody's opening of one step: an integer sum, bound to everything that led to it.

    All but the cosignatures is its content, by which it is named: other signers make no other opening.
    """

    task: Hash32
    step: int
    previous: Hash32
    """Hash of the task's previous opening of either kind; ZERO_HASH for the first."""
    weights: Hash32
    """Digest of the weights the bundles were computed with."""
    claims: tuple[Claim, ...]
    """Exactly the step's batches, ascending by batch index, one claim each."""
    confirmations: tuple[SealedClaim, ...]
    """A committee's: who else had the same bundles, by batch, then miner; empty for a single custodian."""
    gradient: tuple[int, ...]
    attempt: int
    """1; 2 for a committee's counted retry with another subset of members."""
    cosignatures: tuple[Cosignature, ...]
    """Of at least the threshold of the committee, by ascending member; empty for a single custodian."""


@dataclass(frozen=True, slots=True)
class OpenLoss:
    """The custody's opening of the validation loss at a scheduled step."""

    task: Hash32
    step: int
    previous: Hash32
    weights: Hash32
    ciphertext: Hash32
    """Hash over the loss ciphertexts of all validation batches, in order."""
    loss: int
    attempt: int
    """As of a gradient."""
    cosignatures: tuple[Cosignature, ...]


@dataclass(frozen=True, slots=True)
class ExpireTask:
    task: Hash32
