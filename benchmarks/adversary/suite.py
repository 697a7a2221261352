"""Every profile, in the order of the document."""

from collections.abc import Sequence

from benchmarks.adversary import custody, miners, network, validators
from benchmarks.adversary.profile import Profile

PROFILES: tuple[Profile, ...] = (*miners.PROFILES, *custody.PROFILES, *validators.PROFILES, *network.PROFILES)


def find_profiles(names: Sequence[str]) -> tuple[Profile, ...]:
    """Those of these names, all without any. Raises: KeyError."""
    known = {profile.name: profile for profile in PROFILES}
    return tuple(known[name] for name in names) if names else PROFILES
