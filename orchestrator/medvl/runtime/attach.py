"""Run a command that is asked to end when its parent ends, however the parent ends.

``python attach.py <parent's pid> <command> ...`` replaces itself by the command. A fork hook would do the same, but may
not run Python in a process that has threads; this file imports nothing of the project, so that it starts in a moment.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""``prctl(2)``: the signal that this process gets when its parent dies; it outlives ``execve``."""


def main() -> None:
    """Bind this process to its parent and become the command."""
    parent_pid, *command = sys.argv[1:]
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent_pid):
        sys.exit(0)
    os.execvp(command[0], command)  # noqa: S606  (no shell is wanted)


if __name__ == "__main__":
    main()
