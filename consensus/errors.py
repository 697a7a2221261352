"""Why something is refused: one `Reason` for each rule and sub-case."""

from enum import StrEnum

from consensus.types import Millis
from consensus.work import LossCheck


class Reason(StrEnum):
    """Rule that was broken; B and W as numbered in the design, the rest for single transactions."""

    B1_MALFORMED = "B1_MALFORMED"
    B1_NON_CANONICAL = "B1_NON_CANONICAL"
    B1_OVERSIZE = "B1_OVERSIZE"
    B2_VERSION = "B2_VERSION"
    B2_UNKNOWN_VERSION = "B2_UNKNOWN_VERSION"
    """A version above what this software knows: it has to be replaced."""
    B2_CHAIN = "B2_CHAIN"
    B2_HEIGHT = "B2_HEIGHT"
    B2_PARENT = "B2_PARENT"
    B3_EARLY = "B3_EARLY"
    B3_RANGE = "B3_RANGE"
    B4_SIGNATURE = "B4_SIGNATURE"
    B5_TRANSACTIONS_ROOT = "B5_TRANSACTIONS_ROOT"
    B5_WORK_ROOT = "B5_WORK_ROOT"
    B5_VOTES_ROOT = "B5_VOTES_ROOT"
    B6_TRANSACTION = "B6_TRANSACTION"
    B7_IDLE = "B7_IDLE"
    B7_TURN = "B7_TURN"
    B7_RANK = "B7_RANK"
    B8_VOTES = "B8_VOTES"
    B9_STATE_ROOT = "B9_STATE_ROOT"

    W1_TASK = "W1_TASK"
    W1_STATUS = "W1_STATUS"
    W1_FINAL = "W1_FINAL"
    W1_DEADLINE = "W1_DEADLINE"
    W1_MILESTONE = "W1_MILESTONE"
    W2_CUSTODY = "W2_CUSTODY"
    W3_OPENINGS = "W3_OPENINGS"
    W4_CIPHERTEXT = "W4_CIPHERTEXT"
    W5_LOSS = "W5_LOSS"
    W5_FIRST = "W5_FIRST"
    W5_RUNGS = "W5_RUNGS"
    W6_WEIGHTS = "W6_WEIGHTS"
    W6_BOX = "W6_BOX"
    W7_CREDITS = "W7_CREDITS"

    VOTE_TARGET = "VOTE_TARGET"
    VOTE_SOURCE = "VOTE_SOURCE"
    VOTE_FINAL = "VOTE_FINAL"
    VOTE_JUSTIFIED = "VOTE_JUSTIFIED"
    VOTE_KNOWN = "VOTE_KNOWN"
    VOTE_VALIDATOR = "VOTE_VALIDATOR"
    VOTE_JAILED = "VOTE_JAILED"
    VOTE_SIGNATURE = "VOTE_SIGNATURE"

    FORK_FINAL = "FORK_FINAL"
    """Not a descendant of the last finalised block."""

    TX_MALFORMED = "TX_MALFORMED"
    TX_OVERSIZE = "TX_OVERSIZE"
    TX_CHAIN = "TX_CHAIN"
    TX_SIGNATURE = "TX_SIGNATURE"
    TX_NONCE = "TX_NONCE"
    TX_NONCE_FUTURE = "TX_NONCE_FUTURE"
    TX_BALANCE = "TX_BALANCE"
    TX_AMOUNT = "TX_AMOUNT"

    DRAFT_FIELD = "DRAFT_FIELD"
    DRAFT_KNOWN = "DRAFT_KNOWN"
    DRAFT_UNKNOWN = "DRAFT_UNKNOWN"
    DRAFT_USED = "DRAFT_USED"
    DRAFT_CEREMONY = "DRAFT_CEREMONY"
    """Preset or keys are not those of its ceremony."""

    CONTRIBUTION_BATCHES = "CONTRIBUTION_BATCHES"
    CONTRIBUTION_PATIENTS = "CONTRIBUTION_PATIENTS"
    CONTRIBUTION_UNKNOWN = "CONTRIBUTION_UNKNOWN"
    CONTRIBUTION_DRAFT = "CONTRIBUTION_DRAFT"

    PUBLISH_CUSTODY = "PUBLISH_CUSTODY"
    PUBLISH_KEY_USED = "PUBLISH_KEY_USED"
    PUBLISH_CONTRIBUTIONS = "PUBLISH_CONTRIBUTIONS"
    PUBLISH_BATCHES = "PUBLISH_BATCHES"
    PUBLISH_ORDER = "PUBLISH_ORDER"
    PUBLISH_STEP = "PUBLISH_STEP"
    PUBLISH_WEIGHTS = "PUBLISH_WEIGHTS"
    PUBLISH_OPTIMIZER = "PUBLISH_OPTIMIZER"
    PUBLISH_SCHEDULE = "PUBLISH_SCHEDULE"
    PUBLISH_LADDER = "PUBLISH_LADDER"
    PUBLISH_DEADLINE = "PUBLISH_DEADLINE"

    TASK_UNKNOWN = "TASK_UNKNOWN"
    TASK_PENDING = "TASK_PENDING"
    TASK_ENDED = "TASK_ENDED"
    TASK_DEADLINE = "TASK_DEADLINE"

    AVAILABLE_VALIDATOR = "AVAILABLE_VALIDATOR"
    AVAILABLE_DOUBLED = "AVAILABLE_DOUBLED"

    OPENING_CUSTODY = "OPENING_CUSTODY"
    OPENING_FINISHED = "OPENING_FINISHED"
    OPENING_DOUBLED = "OPENING_DOUBLED"
    OPENING_STEP = "OPENING_STEP"
    OPENING_LIMIT = "OPENING_LIMIT"
    OPENING_LOSS_DUE = "OPENING_LOSS_DUE"
    OPENING_UNSCHEDULED = "OPENING_UNSCHEDULED"
    OPENING_CHAIN = "OPENING_CHAIN"
    OPENING_WEIGHTS = "OPENING_WEIGHTS"
    OPENING_CLAIMS = "OPENING_CLAIMS"
    OPENING_CLAIM_SIGNATURE = "OPENING_CLAIM_SIGNATURE"
    OPENING_MINER = "OPENING_MINER"
    OPENING_LENGTH = "OPENING_LENGTH"
    OPENING_BOUND = "OPENING_BOUND"
    OPENING_ATTEMPT = "OPENING_ATTEMPT"
    OPENING_SIGNERS = "OPENING_SIGNERS"
    """Not the committee's members by ascending address, or fewer than its threshold."""
    OPENING_SIGNATURE = "OPENING_SIGNATURE"
    OPENING_CONFIRMATIONS = "OPENING_CONFIRMATIONS"
    OPENING_SEAL = "OPENING_SEAL"
    OPENING_STAKE = "OPENING_STAKE"
    """Organisations with no more than a third of all stake have one of the bundles."""

    EXPIRE_EARLY = "EXPIRE_EARLY"

    VERDICT_VALIDATOR = "VERDICT_VALIDATOR"
    VERDICT_MILESTONE = "VERDICT_MILESTONE"
    VERDICT_DOUBLED = "VERDICT_DOUBLED"
    VERDICT_SETTLED = "VERDICT_SETTLED"
    VERDICT_BOUND = "VERDICT_BOUND"
    SETTLE_EARLY = "SETTLE_EARLY"

    EVIDENCE_HARMLESS = "EVIDENCE_HARMLESS"
    EVIDENCE_SIGNATURE = "EVIDENCE_SIGNATURE"
    EVIDENCE_KNOWN = "EVIDENCE_KNOWN"
    EVIDENCE_LATE = "EVIDENCE_LATE"
    ACCUSE_VALIDATOR = "ACCUSE_VALIDATOR"
    ACCUSE_DOUBLED = "ACCUSE_DOUBLED"

    GOVERN_REPEATED = "GOVERN_REPEATED"
    GOVERN_FUTURE = "GOVERN_FUTURE"
    GOVERN_APPROVALS = "GOVERN_APPROVALS"
    GOVERN_QUORUM = "GOVERN_QUORUM"
    GOVERN_SIGNATURE = "GOVERN_SIGNATURE"
    GOVERN_FIELD = "GOVERN_FIELD"
    GOVERN_PENDING = "GOVERN_PENDING"
    GOVERN_JAILED = "GOVERN_JAILED"
    GOVERN_CONSENT = "GOVERN_CONSENT"
    UPGRADE_VERSION = "UPGRADE_VERSION"
    UPGRADE_HEIGHT = "UPGRADE_HEIGHT"
    UPGRADE_PENDING = "UPGRADE_PENDING"
    UPGRADE_UNKNOWN = "UPGRADE_UNKNOWN"
    UPGRADE_NOTICE = "UPGRADE_NOTICE"

    MODEL_FIELD = "MODEL_FIELD"
    MODEL_UNKNOWN = "MODEL_UNKNOWN"
    MODEL_OWNER = "MODEL_OWNER"
    MODEL_RETIRED = "MODEL_RETIRED"
    MODEL_EXPIRED = "MODEL_EXPIRED"
    JOB_SIZE = "JOB_SIZE"
    JOB_KEYS = "JOB_KEYS"
    JOB_FEE = "JOB_FEE"
    JOB_TIMES = "JOB_TIMES"
    JOB_UNKNOWN = "JOB_UNKNOWN"
    JOB_ENDED = "JOB_ENDED"
    JOB_DEADLINE = "JOB_DEADLINE"
    JOB_EARLY = "JOB_EARLY"
    EVALUATOR_ORGANISATION = "EVALUATOR_ORGANISATION"
    COMMIT_DOUBLED = "COMMIT_DOUBLED"
    COMMIT_CLOSED = "COMMIT_CLOSED"
    CLOSE_EARLY = "CLOSE_EARLY"
    REVEAL_UNCOMMITTED = "REVEAL_UNCOMMITTED"
    REVEAL_DOUBLED = "REVEAL_DOUBLED"
    REVEAL_EARLY = "REVEAL_EARLY"
    REVEAL_COMMITMENT = "REVEAL_COMMITMENT"

    CEREMONY_FIELD = "CEREMONY_FIELD"
    CEREMONY_UNKNOWN = "CEREMONY_UNKNOWN"
    CEREMONY_ENDED = "CEREMONY_ENDED"
    CEREMONY_MEMBER = "CEREMONY_MEMBER"
    CEREMONY_LATE = "CEREMONY_LATE"
    CEREMONY_EARLY = "CEREMONY_EARLY"
    CEREMONY_UNFINISHED = "CEREMONY_UNFINISHED"
    CEREMONY_CONFIRMED = "CEREMONY_CONFIRMED"
    CEREMONY_UNREADY = "CEREMONY_UNREADY"
    CEREMONY_KEY_USED = "CEREMONY_KEY_USED"
    CEREMONY_RENEWED = "CEREMONY_RENEWED"

    FEDERATION_FIELD = "FEDERATION_FIELD"
    FEDERATION_KEY_USED = "FEDERATION_KEY_USED"
    FEDERATION_UNKNOWN = "FEDERATION_UNKNOWN"
    FEDERATION_ENDED = "FEDERATION_ENDED"
    FEDERATION_DEADLINE = "FEDERATION_DEADLINE"
    FEDERATION_EARLY = "FEDERATION_EARLY"
    ROUND_PAST = "ROUND_PAST"
    ROUND_FUTURE = "ROUND_FUTURE"
    ROUND_OPEN = "ROUND_OPEN"
    """Its list is not fixed yet."""
    ROUND_CLOSED = "ROUND_CLOSED"
    ROUND_NOT_FINAL = "ROUND_NOT_FINAL"
    ROUND_UNOPENED = "ROUND_UNOPENED"
    ROUND_OPENED = "ROUND_OPENED"
    UPDATE_PARTICIPANT = "UPDATE_PARTICIPANT"
    UPDATE_SIZE = "UPDATE_SIZE"
    UPDATE_DOUBLED = "UPDATE_DOUBLED"
    UPDATE_COPIED = "UPDATE_COPIED"
    UPDATE_LATE = "UPDATE_LATE"
    ATTEST_VALIDATOR = "ATTEST_VALIDATOR"
    ATTEST_UNKNOWN = "ATTEST_UNKNOWN"
    ATTEST_DOUBLED = "ATTEST_DOUBLED"
    ATTEST_ORDER = "ATTEST_ORDER"
    SUM_VALIDATOR = "SUM_VALIDATOR"
    SUM_DOUBLED = "SUM_DOUBLED"
    SUM_CONFIRMED = "SUM_CONFIRMED"
    SUM_UNCONFIRMED = "SUM_UNCONFIRMED"
    SUM_CUSTODY = "SUM_CUSTODY"
    SUM_TOTAL = "SUM_TOTAL"
    SUM_SIZE = "SUM_SIZE"
    SUM_LATE = "SUM_LATE"
    JUDGE_VALIDATOR = "JUDGE_VALIDATOR"
    JUDGE_DOUBLED = "JUDGE_DOUBLED"
    JUDGE_BOUND = "JUDGE_BOUND"
    JUDGE_MODEL = "JUDGE_MODEL"
    JUDGE_LATE = "JUDGE_LATE"


PREMATURE = frozenset(
    {
        Reason.TX_NONCE_FUTURE,
        Reason.TX_BALANCE,
        Reason.DRAFT_UNKNOWN,
        Reason.CONTRIBUTION_UNKNOWN,
        Reason.TASK_UNKNOWN,
        Reason.TASK_PENDING,
        Reason.OPENING_STEP,
        Reason.OPENING_LOSS_DUE,
        Reason.EXPIRE_EARLY,
        Reason.VERDICT_MILESTONE,
        Reason.SETTLE_EARLY,
        Reason.GOVERN_FUTURE,
        Reason.GOVERN_PENDING,
        Reason.UPGRADE_PENDING,
        Reason.MODEL_UNKNOWN,
        Reason.JOB_UNKNOWN,
        Reason.JOB_EARLY,
        Reason.CLOSE_EARLY,
        Reason.REVEAL_UNCOMMITTED,
        Reason.REVEAL_EARLY,
        Reason.CEREMONY_UNKNOWN,
        Reason.CEREMONY_EARLY,
        Reason.CEREMONY_UNFINISHED,
        Reason.CEREMONY_UNREADY,
        Reason.FEDERATION_UNKNOWN,
        Reason.FEDERATION_EARLY,
        Reason.ROUND_FUTURE,
        Reason.ROUND_OPEN,
        Reason.ROUND_NOT_FINAL,
        Reason.ROUND_UNOPENED,
        Reason.ATTEST_UNKNOWN,
        Reason.SUM_UNCONFIRMED,
    }
)
"""Reasons that later blocks can cure: such a transaction may wait instead of being dropped."""


class ConsensusError(Exception):
    """Base of all refusals by the rules."""


class InvalidTransaction(ConsensusError):
    """A transaction that the state does not admit; the state is unchanged."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail

    @property
    def is_premature(self) -> bool:
        """True if later blocks may make it valid."""
        return self.reason in PREMATURE


class InvalidVote(ConsensusError):
    """A vote that does not count in a block on this state; the state is unchanged."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail


class InvalidBlock(ConsensusError):
    """A block that breaks a rule; nothing is changed."""

    def __init__(
        self, reason: Reason, detail: str = "", peer_at_fault: bool = True, cause: Reason | None = None
    ) -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail
        self.peer_at_fault = peer_at_fault
        self.cause = cause
        """The transaction's own reason where `reason` is B6, the vote's where it is B8."""


class NeedsWork(ConsensusError):
    """Every other rule holds; the block waits for the recomputation of a loss (W4)."""

    def __init__(self, check: LossCheck) -> None:
        super().__init__(f"loss of task {check.task.hex()} at step {check.step} not yet recomputed")
        self.check = check


class Held(ConsensusError):
    """A block of the future: offer it again at `until` (B3)."""

    def __init__(self, until: Millis) -> None:
        super().__init__(f"block time {until} is ahead of the clock")
        self.until = until


class UnknownParent(ConsensusError):
    """The parent is not in the store: fetch it first."""
