"""How many processor cores this process may use."""

import os


def usable_cores() -> int:
    """Cores that the process is allowed on; all of the machine where the system does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
