"""Whether a certificate may speak for whom it names: the chain's word against the authority's.

The authority says which organisation a certificate is of. Where the chain gives the certificate's account an
organisation, the two must agree, so that no certificate of one hospital speaks for another.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable

from consensus.types import Address
from node.clock import Clock
from node.tls import PeerIdentity, UntrustedPeer

logger = logging.getLogger(__name__)

HELD_S = 600.0
"""So long a node id stays with the account that was last seen under it."""
MAX_HOLDERS = 4_096


class Vouching:
    """Checks identities against the chain, and that one node id is one account's."""

    def __init__(self, own: PeerIdentity, get_organisation: Callable[[Address], str], clock: Clock) -> None:
        """`get_organisation`: of an account, as the chain has it; empty where it has none."""
        self._own = own
        self._get_organisation = get_organisation
        self._clock = clock
        self._holders: OrderedDict[str, tuple[Address, float]] = OrderedDict()

    def check(self, identity: PeerIdentity) -> None:
        """Raises: UntrustedPeer."""
        node_id, account = identity.node_id, identity.account
        if account is None:
            raise UntrustedPeer(f"the certificate of {node_id} names no account; see `bmif tls request`")
        found = self._get_organisation(account)
        if found and found != identity.organisation:
            raise UntrustedPeer(
                f"the certificate of {node_id} says {identity.organisation}, the chain says that account "
                f"{account.hex()[:12]} is of {found}"
            )
        if node_id == self._own.node_id:
            if self._own.account is not None and account != self._own.account:
                raise UntrustedPeer(f"another account has a certificate of this node's id, {node_id}")
            return
        self._hold(node_id, account)

    def _hold(self, node_id: str, account: Address) -> None:
        now = self._clock.monotonic()
        holder = self._holders.get(node_id)
        if holder is not None and holder[0] != account and now - holder[1] < HELD_S:
            logger.warning(
                "two accounts have certificates of node id %s: %s is known, %s refused; one must be revoked",
                node_id,
                holder[0].hex()[:12],
                account.hex()[:12],
            )
            raise UntrustedPeer(f"the node id {node_id} is another account's")
        self._holders[node_id] = (account, now)
        self._holders.move_to_end(node_id)
        if len(self._holders) > MAX_HOLDERS:
            self._holders.popitem(last=False)
