"""Real images: what is mined beside its clear twin, the full network and the methods to beat."""
