"""The one exception of this package that is the user's to mend."""


class InputError(ValueError):
    """A file, key, value or combination that the user gave cannot be used.

    The message names the file, key or trial, what was expected and what came. The command line prints it
    without a traceback and exits with code 2.
    """
