"""Whose claims count how much, as a state says."""

from consensus.committee import get_organisation_stakes
from consensus.state import State
from node.committee.confirmation import Stakes


def build_stakes(state: State) -> Stakes:
    accounts = state.get_mining_accounts()
    organisations = {account: state.get_account(account).organisation for account in accounts}
    return Stakes(organisations, get_organisation_stakes(state), state.get_total_stake())
