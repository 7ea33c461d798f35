"""What a process does that another one started."""

import ctypes
import os
import signal
import sys


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent, of that id, ends, however that ends (Linux)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the line above
            os._exit(1)
