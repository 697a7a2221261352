"""What of a block is indexed: computed once when it is stored, read again when the head moves."""

from consensus.block import Block
from consensus.ceremonies import (
    CommitRound,
    ConfirmCeremony,
    CreateCeremony,
    EndCeremony,
    RevealRound,
)
from consensus.federations import (
    AttestUpdates,
    CloseRound,
    ConfirmSum,
    CreateFederation,
    EndFederation,
    JudgeRound,
    OpenSum,
    SettleRound,
    SubmitUpdate,
)
from consensus.identifiers import compute_draft_hash, compute_task_id
from consensus.jobs import (
    CloseCommits,
    CommitResult,
    ExpireJob,
    RegisterModel,
    RequestInference,
    RetireModel,
    RevealResult,
)
from consensus.payload import Accuse, Govern, ReportOpenings, ReportVotes, WrongBundle
from consensus.task import Contribute, DraftTask, PublishTask, Transfer
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.types import Hash32
from node.ledger.schema import WORK_POSITION, BlockIndex


def compute_subjects(transaction: SignedTransaction) -> tuple[Hash32, ...]:
    """Ids of tasks, models, jobs, federations, ceremonies, hashes of drafts that a transaction is about."""
    payload = transaction.payload
    match payload:
        case Transfer() | ReportVotes() | Govern():
            return ()
        case DraftTask():
            return (compute_draft_hash(transaction.chain_id, payload.draft),)
        case Contribute():
            return (payload.draft,)
        case PublishTask():
            return (compute_task_id(payload), payload.draft)
        case ReportOpenings():
            return (payload.first.opening.task,)
        case Accuse():
            wrong = payload.accusation
            return (wrong.claim.task if isinstance(wrong, WrongBundle) else wrong.opening.task,)
        case RegisterModel() | CreateFederation() | CreateCeremony():
            return (compute_transaction_id(transaction),)
        case RequestInference():
            return (compute_transaction_id(transaction), payload.model)
        case RetireModel():
            return (payload.model,)
        case CommitResult() | CloseCommits() | RevealResult() | ExpireJob():
            return (payload.job,)
        case SubmitUpdate() | AttestUpdates() | CloseRound() | ConfirmSum() | OpenSum():
            return (payload.federation,)
        case JudgeRound() | SettleRound() | EndFederation():
            return (payload.federation,)
        case CommitRound() | RevealRound() | ConfirmCeremony() | EndCeremony():
            return (payload.ceremony,)
        case _:
            return (payload.task,)


def compute_index(block: Block) -> BlockIndex:
    subjects: list[tuple[int, Hash32]] = []
    for at, transaction in enumerate(block.body.transactions):
        subjects += [(at, subject) for subject in compute_subjects(transaction)]
    if block.body.work is not None:
        subjects.append((WORK_POSITION, block.body.work.task))
    return BlockIndex(
        height=block.header.height,
        parent=block.header.parent,
        transactions=tuple(map(compute_transaction_id, block.body.transactions)),
        subjects=tuple(subjects),
    )
