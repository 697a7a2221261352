"""What this node holds of a committee's key, ready for openings; workers alone read the share itself."""

from dataclasses import dataclass, field
from pathlib import Path

from consensus.ceremonies import CeremonyRecord, CreateCeremony
from consensus.types import Address, Hash32
from node.ceremonies import PLACE, get_ceremony_folder
from node.committee.view import get_box_keys
from node.custody_keys import SECRET_FILE, CustodyKeys
from workloads.base import WorkloadError
from workloads.ceremony_share import MemberKeys, load_member_keys
from workloads.committee_opener import CommitteeOpener
from workloads.fusion import WORKLOAD, FusionTraining


@dataclass(frozen=True, slots=True)
class HeldShare:
    """Of one committee, as one of its members."""

    ceremony: Hash32
    create: CreateCeremony
    opener: CommitteeOpener = field(repr=False)
    keys: MemberKeys = field(repr=False)
    publics: tuple[bytes, ...]
    """Of all members, by place: X25519 keys for what is sealed to them."""


def load_share(
    keys: CustodyKeys,
    keys_dir: Path,
    ceremony: Hash32,
    record: CeremonyRecord,
    own: Address,
    workload: FusionTraining = WORKLOAD,
) -> HeldShare | None:
    """None if this node has none; for threads. Raises: WorkloadError naming the file, OSError."""
    folder = get_ceremony_folder(keys_dir, ceremony)
    if own not in record.create.members or not (folder / SECRET_FILE).exists():
        return None
    opened = keys.unlock(PLACE, folder.name)
    secrets, publics = load_member_keys(folder, opened), get_box_keys(record)
    if secrets.box_public != publics[record.create.members.index(own)]:
        raise WorkloadError(
            f"{folder}: its keys are not those that this node confirmed on the chain; restore the folder"
        )
    return HeldShare(ceremony, record.create, CommitteeOpener(folder, workload, opened), secrets, publics)
