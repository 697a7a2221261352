"""Identifiers and quantities of the consensus core."""

from typing import NewType

Hash32 = NewType("Hash32", bytes)
"""A SHA-256 digest, 32 bytes."""

Address = NewType("Address", bytes)
"""An account: its Ed25519 public key, 32 bytes."""

Signature = NewType("Signature", bytes)
"""An Ed25519 signature, 64 bytes."""

Height = NewType("Height", int)
"""Number of blocks between a block and genesis."""

Amount = NewType("Amount", int)
"""Money in its smallest unit; never negative."""

Millis = NewType("Millis", int)
"""Milliseconds since the Unix epoch, or a span of them."""

ZERO_HASH = Hash32(bytes(32))
MAX_TIME_MS = 2**53 - 1
MAX_AMOUNT = 2**63 - 1
MAX_LADDER = 64
