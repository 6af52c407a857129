"""Errors that the user can fix."""


class InputError(ValueError):
    """A file, key, value or combination that the user gave cannot be used.

    The message names the file, key or trial, what was expected and what was found. The command line prints
    it without a traceback and exits with code 2.

    Example:
        try:
            load_data("digit")
        except InputError as error:
            print(error)
    """
