"""Errors that the user can fix."""


class InputError(ValueError):
    """Raised for a file, key, value or combination that cannot be used.

    The message names the file, key or trial, the expected and the actual value. The command line prints it
    without a traceback and exits with code 2.

    Example:
        try:
            load("runs/digitz")
        except InputError as error:
            print(error)
    """
