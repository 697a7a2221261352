"""The state of the chain after a block: an immutable view over the tree; every `with_` returns a new one."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar, cast

from consensus.ceremonies import CeremonyRecord
from consensus.codec import decode_stored, encode
from consensus.federations import EndedRound, FederationRecord
from consensus.jobs import Count, Entry, EvaluatorRecord, JobRecord, ModelRecord, Receipt
from consensus.params import Validator
from consensus.records import (
    Account,
    AccusationRecord,
    AddressList,
    Charter,
    CheckpointRecord,
    ContributionRecord,
    DraftRecord,
    Finality,
    KeyUse,
    Lock,
    LockList,
    OrganisationSet,
    PendingSet,
    Qualified,
    TaskList,
    TaskState,
    TaskStatus,
    Upgrade,
    UpgradeList,
    ValidatorSet,
)
from consensus.task import PublishTask
from consensus.tree import Tree
from consensus.types import ZERO_HASH, Address, Amount, Hash32

__all__ = [
    "NO_ACCOUNT",
    "Account",
    "ContributionRecord",
    "DraftRecord",
    "Qualified",
    "State",
    "TaskState",
    "TaskStatus",
    "get_account_key",
    "get_ceremony_key",
    "get_federation_key",
    "get_job_key",
    "get_receipt_key",
    "get_round_key",
    "get_task_key",
]

T = TypeVar("T")

NO_ACCOUNT = Account(Amount(0), 0, "")
"""What an address that was never used holds."""

VALIDATORS_KEY = b"validators"
"""The active set, proved to light clients."""
PENDING_SET_KEY = b"validators/pending"
"""The next set while its change is not final, proved to light clients."""
FINALITY_KEY = b"finality"
_PREVIOUS_SET = b"validators/previous"
_JAILED = b"jailed"
_LOCKS = b"locks"
_CHARTER = b"charter"
_UPGRADES = b"upgrades"
_ORGANISATIONS = b"organisations"
_SUSPENDED = b"suspended"
_MEMBERS = b"members"
_TASKS = b"tasks"
_MODELS = b"models"
_JOBS = b"jobs"
_FEDERATIONS = b"federations"
_CEREMONIES = b"ceremonies"


def get_account_key(address: Address) -> bytes:
    """The tree key under which an account is proved."""
    return b"account/" + address


def get_task_key(task: Hash32) -> bytes:
    """The tree key under which a task's state is proved."""
    return b"task/" + task


def get_job_key(job: Hash32) -> bytes:
    """The tree key under which a job is proved."""
    return b"job/" + job


def get_receipt_key(job: Hash32) -> bytes:
    """The tree key under which a settled job's receipt is proved."""
    return b"receipt/" + job


def get_ceremony_key(ceremony: Hash32) -> bytes:
    """The tree key under which a ceremony is proved."""
    return b"ceremony/" + ceremony


def get_federation_key(federation: Hash32) -> bytes:
    """The tree key under which a federation with its current round is proved."""
    return b"federation/" + federation


def get_round_key(federation: Hash32, number: int) -> bytes:
    """The tree key under which a round that has ended is proved."""
    return b"round/" + federation + b"/" + number.to_bytes(8, "big")


def _get_entry_key(name: bytes, number: int) -> bytes:
    return name + b"/" + number.to_bytes(8, "big")


def _get_checkpoint_key(height: int) -> bytes:
    return b"checkpoint/" + height.to_bytes(8, "big")


@lru_cache(maxsize=256)
def _decode_rarely_changing(cls: Hashable, data: bytes) -> object:
    return decode_stored(cast(type[object], cls), data)


@dataclass(frozen=True, slots=True)
class State:
    tree: Tree

    @property
    def root(self) -> Hash32:
        return self.tree.root

    def _get(self, cls: type[T], key: bytes) -> T | None:
        data = self.tree.get(key)
        return None if data is None else decode_stored(cls, data)

    def _get_cached(self, cls: type[T], key: bytes) -> T | None:
        data = self.tree.get(key)
        return None if data is None else cast(T, _decode_rarely_changing(cast(Hashable, cls), data))

    def _with(self, key: bytes, record: object) -> "State":
        return State(self.tree.set(key, encode(record)))

    # --- accounts -----------------------------------------------------------------------------

    def get_account(self, address: Address) -> Account:
        """The account; an empty one for an address never used."""
        return self._get(Account, get_account_key(address)) or NO_ACCOUNT

    def with_account(self, address: Address, account: Account) -> "State":
        return self._with(get_account_key(address), account)

    def with_credit(self, address: Address, amount: int) -> "State":
        """With `amount` more on the account."""
        if not amount:
            return self
        account = self.get_account(address)
        return self.with_account(address, replace(account, balance=Amount(account.balance + amount)))

    def get_members(self) -> tuple[Address, ...]:
        """Accounts that belong to an organisation, ascending."""
        members = self._get_cached(AddressList, _MEMBERS)
        return members.addresses if members else ()

    def with_members(self, addresses: tuple[Address, ...]) -> "State":
        return self._with(_MEMBERS, AddressList(addresses))

    # --- validators ---------------------------------------------------------------------------

    def get_validator_set(self) -> ValidatorSet:
        """The active set."""
        return self._get_cached(ValidatorSet, VALIDATORS_KEY) or ValidatorSet(0, ())

    def get_validators(self) -> tuple[Validator, ...]:
        """The active validator set in its order of turns, jailed members included."""
        return self.get_validator_set().validators

    def find_validator_set(self, number: int) -> ValidatorSet | None:
        """The active set or the one before it, by its number."""
        active = self.get_validator_set()
        if active.number == number:
            return active
        previous = self._get_cached(ValidatorSet, _PREVIOUS_SET)
        return previous if previous and previous.number == number else None

    def with_validator_set(self, following: ValidatorSet, previous: ValidatorSet | None = None) -> "State":
        state = self._with(VALIDATORS_KEY, following)
        return state if previous is None else state._with(_PREVIOUS_SET, previous)

    def get_pending_set(self) -> PendingSet | None:
        return self._get_cached(PendingSet, PENDING_SET_KEY)

    def with_pending_set(self, pending: PendingSet | None) -> "State":
        if pending is None:
            return State(self.tree.delete(PENDING_SET_KEY))
        return self._with(PENDING_SET_KEY, pending)

    def get_jailed(self) -> tuple[Address, ...]:
        """Validators whose stake is forfeited: no votes, no turns, for ever."""
        jailed = self._get_cached(AddressList, _JAILED)
        return jailed.addresses if jailed else ()

    def with_jailed(self, addresses: tuple[Address, ...]) -> "State":
        return self._with(_JAILED, AddressList(addresses))

    def get_acting_validators(self) -> tuple[Validator, ...]:
        """The active set without its jailed members."""
        jailed = self.get_jailed()
        return tuple(v for v in self.get_validators() if v.address not in jailed)

    def get_stake(self, address: Address) -> int:
        """Stake with which a validator of the active set speaks; 0 for the jailed and for anyone else."""
        if address in self.get_jailed():
            return 0
        return sum(validator.stake for validator in self.get_validators() if validator.address == address)

    def get_total_stake(self) -> int:
        """Stake of the whole active set, of which quorums are parts; jailed members count in it."""
        return sum(validator.stake for validator in self.get_validators())

    def get_locks(self) -> tuple[Lock, ...]:
        locks = self._get_cached(LockList, _LOCKS)
        return locks.locks if locks else ()

    def with_locks(self, locks: tuple[Lock, ...]) -> "State":
        return self._with(_LOCKS, LockList(locks))

    # --- finality -----------------------------------------------------------------------------

    def get_finality(self) -> Finality:
        finality = self._get_cached(Finality, FINALITY_KEY)
        if finality is None:
            raise KeyError("a state without finality was not made from a genesis document")
        return finality

    def with_finality(self, finality: Finality) -> "State":
        return self._with(FINALITY_KEY, finality)

    def get_checkpoint(self, height: int) -> CheckpointRecord | None:
        """What is known of the branch's block at this height, from the finalised one on."""
        return self._get(CheckpointRecord, _get_checkpoint_key(height))

    def with_checkpoint(self, height: int, record: CheckpointRecord | None) -> "State":
        if record is None:
            return State(self.tree.delete(_get_checkpoint_key(height)))
        return self._with(_get_checkpoint_key(height), record)

    # --- governance and evidence --------------------------------------------------------------

    def get_charter(self) -> Charter:
        return self._get_cached(Charter, _CHARTER) or Charter(0, Amount(0))

    def with_charter(self, charter: Charter) -> "State":
        return self._with(_CHARTER, charter)

    def with_forfeit(self, amount: int) -> "State":
        """With `amount` more in the treasury."""
        charter = self.get_charter()
        return self.with_charter(replace(charter, treasury=Amount(charter.treasury + amount)))

    def get_upgrades(self) -> tuple[Upgrade, ...]:
        """Every protocol upgrade that was or will be, by ascending height."""
        found = self._get_cached(UpgradeList, _UPGRADES)
        return found.upgrades if found else ()

    def with_upgrades(self, upgrades: tuple[Upgrade, ...]) -> "State":
        if not upgrades:
            return State(self.tree.delete(_UPGRADES))
        return self._with(_UPGRADES, UpgradeList(upgrades))

    def get_accusation(self, accusation: Hash32) -> AccusationRecord | None:
        return self._get(AccusationRecord, b"accusation/" + accusation)

    def with_accusation(self, accusation: Hash32, record: AccusationRecord) -> "State":
        return self._with(b"accusation/" + accusation, record)

    # --- organisations ------------------------------------------------------------------------

    def get_mining_organisations(self) -> tuple[str, ...]:
        organisations = self._get_cached(OrganisationSet, _ORGANISATIONS)
        return organisations.organisations if organisations else ()

    def with_mining_organisations(self, organisations: tuple[str, ...]) -> "State":
        return self._with(_ORGANISATIONS, OrganisationSet(organisations))

    def get_suspended(self) -> tuple[str, ...]:
        """Organisations that may not mine because of evidence against them."""
        suspended = self._get_cached(OrganisationSet, _SUSPENDED)
        return suspended.organisations if suspended else ()

    def with_suspended(self, organisations: tuple[str, ...]) -> "State":
        return self._with(_SUSPENDED, OrganisationSet(organisations))

    def may_mine(self, organisation: str) -> bool:
        """True if the organisation's accounts may claim batches."""
        if not organisation or organisation in self.get_suspended():
            return False
        return organisation in self.get_mining_organisations()

    def may_account_mine(self, address: Address) -> bool:
        return self.may_mine(self.get_account(address).organisation)

    def get_mining_accounts(self) -> tuple[Address, ...]:
        """Every account that may claim batches, ascending."""
        return tuple(address for address in self.get_members() if self.may_account_mine(address))

    # --- drafts, contributions, tasks ---------------------------------------------------------

    def get_draft(self, draft: Hash32) -> DraftRecord | None:
        return self._get_cached(DraftRecord, b"draft/" + draft)

    def with_draft(self, draft: Hash32, record: DraftRecord) -> "State":
        return self._with(b"draft/" + draft, record)

    def get_contribution(self, transaction: Hash32) -> ContributionRecord | None:
        return self._get_cached(ContributionRecord, b"contribution/" + transaction)

    def with_contribution(self, transaction: Hash32, record: ContributionRecord) -> "State":
        return self._with(b"contribution/" + transaction, record)

    def get_task(self, task: Hash32) -> TaskState | None:
        return self._get(TaskState, get_task_key(task))

    def with_task(self, task: Hash32, task_state: TaskState) -> "State":
        return self._with(get_task_key(task), task_state)

    def get_publication(self, task: Hash32) -> PublishTask | None:
        return self._get_cached(PublishTask, b"publication/" + task)

    def with_publication(self, task: Hash32, publication: PublishTask) -> "State":
        """With a new task in the list of tasks."""
        state = self._with(b"publication/" + task, publication)
        return state._with(_TASKS, TaskList((*self.get_tasks(), task)))

    def get_tasks(self) -> tuple[Hash32, ...]:
        """Every task ever published, in order."""
        tasks = self._get_cached(TaskList, _TASKS)
        return tasks.tasks if tasks else ()

    def get_key_task(self, key_root: Hash32) -> Hash32 | None:
        """The task or federation in which a key root appears, or the ready ceremony that made it, if any."""
        use = self._get(KeyUse, b"key/" + key_root)
        return use.task if use else None

    def with_key_task(self, key_root: Hash32, task: Hash32) -> "State":
        return self._with(b"key/" + key_root, KeyUse(task))

    # --- models and jobs of inference ---------------------------------------------------------

    def _count(self, name: bytes) -> int:
        found = self._get(Count, name)
        return found.count if found else 0

    def _append(self, name: bytes, identifier: Hash32) -> "State":
        """With one more entry in a list of any length, at the cost of one entry."""
        count = self._count(name)
        state = self._with(_get_entry_key(name, count), Entry(identifier))
        return state._with(name, Count(count + 1))

    def _get_entry(self, name: bytes, number: int) -> Hash32 | None:
        found = self._get(Entry, _get_entry_key(name, number))
        return found.id if found else None

    def get_model(self, model: Hash32) -> ModelRecord | None:
        return self._get_cached(ModelRecord, b"model/" + model)

    def with_model(self, model: Hash32, record: ModelRecord) -> "State":
        return self._with(b"model/" + model, record)

    def with_new_model(self, model: Hash32, record: ModelRecord) -> "State":
        """At the end of the list of models."""
        return self.with_model(model, record)._append(_MODELS, model)

    def get_model_count(self) -> int:
        """How many models were ever registered; they are numbered from 0."""
        return self._count(_MODELS)

    def get_model_id(self, number: int) -> Hash32 | None:
        return self._get_entry(_MODELS, number)

    def get_job(self, job: Hash32) -> JobRecord | None:
        return self._get(JobRecord, get_job_key(job))

    def with_job(self, job: Hash32, record: JobRecord) -> "State":
        return self._with(get_job_key(job), record)

    def with_new_job(self, job: Hash32, record: JobRecord) -> "State":
        """At the end of the list of jobs."""
        return self.with_job(job, record)._append(_JOBS, job)

    def get_job_count(self) -> int:
        """How many jobs were ever requested; they are numbered from 0."""
        return self._count(_JOBS)

    def get_job_id(self, number: int) -> Hash32 | None:
        return self._get_entry(_JOBS, number)

    def get_receipt(self, job: Hash32) -> Receipt | None:
        return self._get(Receipt, get_receipt_key(job))

    def with_receipt(self, job: Hash32, receipt: Receipt) -> "State":
        return self._with(get_receipt_key(job), receipt)

    def get_evaluator(self, organisation: str) -> EvaluatorRecord:
        """How the organisation's results were, over all jobs that have ended."""
        found = self._get(EvaluatorRecord, b"evaluator/" + organisation.encode())
        return found or EvaluatorRecord(0, 0, 0)

    def with_evaluator(self, organisation: str, record: EvaluatorRecord) -> "State":
        return self._with(b"evaluator/" + organisation.encode(), record)

    # --- federations --------------------------------------------------------------------------

    def get_federation(self, federation: Hash32) -> FederationRecord | None:
        return self._get(FederationRecord, get_federation_key(federation))

    def with_federation(self, federation: Hash32, record: FederationRecord) -> "State":
        return self._with(get_federation_key(federation), record)

    def with_new_federation(self, federation: Hash32, record: FederationRecord) -> "State":
        """At the end of the list of federations."""
        return self.with_federation(federation, record)._append(_FEDERATIONS, federation)

    def get_federation_count(self) -> int:
        """How many federations were ever created; they are numbered from 0."""
        return self._count(_FEDERATIONS)

    def get_federation_id(self, number: int) -> Hash32 | None:
        return self._get_entry(_FEDERATIONS, number)

    def get_ended_round(self, federation: Hash32, number: int) -> EndedRound | None:
        return self._get_cached(EndedRound, get_round_key(federation, number))

    def with_ended_round(self, federation: Hash32, ended: EndedRound) -> "State":
        return self._with(get_round_key(federation, ended.round.number), ended)

    def is_update_used(self, federation: Hash32, root: Hash32) -> bool:
        """True if anybody ever submitted this blob to the federation."""
        return self._get(Entry, b"update/" + federation + root) is not None

    def with_used_update(self, federation: Hash32, root: Hash32, participant: Address) -> "State":
        return self._with(b"update/" + federation + root, Entry(Hash32(participant)))

    # --- ceremonies ---------------------------------------------------------------------------

    def get_ceremonies(self, ceremony: Hash32) -> tuple[tuple[Hash32, CeremonyRecord], ...]:
        """A ceremony and its renewals, each by the next, as far as the state has them; oldest first."""
        found: list[tuple[Hash32, CeremonyRecord]] = []
        while ceremony != ZERO_HASH:
            record = self.get_ceremony(ceremony)
            if record is None:
                break
            found.append((ceremony, record))
            ceremony = record.renewed_by
        return tuple(found)

    def get_ceremony(self, ceremony: Hash32) -> CeremonyRecord | None:
        return self._get(CeremonyRecord, get_ceremony_key(ceremony))

    def with_ceremony(self, ceremony: Hash32, record: CeremonyRecord) -> "State":
        return self._with(get_ceremony_key(ceremony), record)

    def with_new_ceremony(self, ceremony: Hash32, record: CeremonyRecord) -> "State":
        """At the end of the list of ceremonies."""
        return self.with_ceremony(ceremony, record)._append(_CEREMONIES, ceremony)

    def get_ceremony_count(self) -> int:
        """How many ceremonies were ever created; they are numbered from 0."""
        return self._count(_CEREMONIES)

    def get_ceremony_id(self, number: int) -> Hash32 | None:
        return self._get_entry(_CEREMONIES, number)
