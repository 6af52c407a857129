"""Errors that are not the user's mistake."""

from __future__ import annotations


class FailedError(Exception):
    """Raised when work was started and could not be finished.

    The message says what failed, why, and what is kept. The command line prints it without a traceback and
    exits with code 1.

    Example:
        try:
            print(retrain_picks("runs/digits", seeds=1, epochs=1).folder)
        except FailedError as error:
            print(error)
    """
