"""How a command ends: the exit statuses of the program, and which of them the same command, run again, can mend."""

DONE = 0
MISTAKE = 1  # something to put right first; also a bug of ours, which Python ends with the same status
USAGE = 2  # a command line that cannot be read
TAKEN_OVER = 3  # another process trains the run now
TRY_AGAIN = 75  # what the program needs failed, not the program: EX_TEMPFAIL of sysexits.h
INTERRUPTED = 130  # Ctrl-C or SIGTERM

_FINAL = (DONE, MISTAKE, USAGE, TAKEN_OVER)


def again_may_help(status: int) -> bool:
    """Tell whether the same command may do better as it stands; so it may after a signal, such as 128 + SIGKILL."""
    return status not in _FINAL
