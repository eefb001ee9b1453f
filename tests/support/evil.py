"""A pickle that would run code: it touches a file when it is loaded."""

import os
import pickle


class _Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def evil_pickle(marker):
    """Bytes that create the file ``marker`` if anyone loads them without an allow-list."""
    return pickle.dumps(_Evil(marker))
