"""What went wrong without being the user's mistake."""

from __future__ import annotations


class FailedError(Exception):
    """Work that was begun could not be finished.

    The message says what failed, why, and what remains. The command line prints it without a traceback and
    exits with code 1.

    Example:
        try:
            print(retrain_picks("runs/digits", seeds=1, epochs=1).folder)
        except FailedError as error:
            print(error)
    """
