"""How many files this process may hold open, and what part of them one user of files may keep."""

from __future__ import annotations

try:
    import resource
except ModuleNotFoundError:  # Windows has no such limit
    resource = None

UNLIMITED = 1 << 20
PARTS = 8  # users of files that may each keep a full share


def raise_limit(wanted: int) -> int:
    """Let this process open ``wanted`` files, or as many as the system allows; return the limit."""
    if resource is None:
        return UNLIMITED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return UNLIMITED
    if soft >= wanted:
        return soft
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)


def share(most: int) -> int:
    """Return how many files one user of files may keep open: ``most``, or fewer where the system
    allows little.
    """
    limit = raise_limit(PARTS * most)
    return max(1, min(most, limit // PARTS))
