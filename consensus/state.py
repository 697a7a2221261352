"""The state of the chain after a block: an immutable view over the tree; every `with_` returns a new one."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar, cast

from consensus.codec import decode_stored, encode
from consensus.params import Validator
from consensus.records import (
    Account,
    AddressList,
    ContributionRecord,
    DraftRecord,
    KeyUse,
    OrganisationSet,
    Qualified,
    TaskList,
    TaskState,
    TaskStatus,
    ValidatorSet,
)
from consensus.task import PublishTask
from consensus.tree import Tree
from consensus.types import Address, Amount, Hash32

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
    "get_task_key",
]

T = TypeVar("T")

NO_ACCOUNT = Account(Amount(0), 0, "")
"""What an address that was never used holds."""

_VALIDATORS = b"validators"
_ORGANISATIONS = b"organisations"
_MEMBERS = b"members"
_TASKS = b"tasks"


def get_account_key(address: Address) -> bytes:
    """The tree key under which an account is proved."""
    return b"account/" + address


def get_task_key(task: Hash32) -> bytes:
    """The tree key under which a task's state is proved."""
    return b"task/" + task


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

    # --- validators and organisations ---------------------------------------------------------

    def get_validators(self) -> tuple[Validator, ...]:
        """The validator set in its order of turns."""
        validators = self._get_cached(ValidatorSet, _VALIDATORS)
        return validators.validators if validators else ()

    def with_validators(self, validators: tuple[Validator, ...]) -> "State":
        return self._with(_VALIDATORS, ValidatorSet(validators))

    def get_stake(self, address: Address) -> int:
        """Stake of a validator; 0 for anyone else."""
        return sum(validator.stake for validator in self.get_validators() if validator.address == address)

    def get_total_stake(self) -> int:
        return sum(validator.stake for validator in self.get_validators())

    def get_mining_organisations(self) -> tuple[str, ...]:
        organisations = self._get_cached(OrganisationSet, _ORGANISATIONS)
        return organisations.organisations if organisations else ()

    def with_mining_organisations(self, organisations: tuple[str, ...]) -> "State":
        return self._with(_ORGANISATIONS, OrganisationSet(organisations))

    def may_mine(self, organisation: str) -> bool:
        """True if the organisation's accounts may claim batches."""
        return bool(organisation) and organisation in self.get_mining_organisations()

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
        """The task in which a key root appears, if any."""
        use = self._get(KeyUse, b"key/" + key_root)
        return use.task if use else None

    def with_key_task(self, key_root: Hash32, task: Hash32) -> "State":
        return self._with(b"key/" + key_root, KeyUse(task))
