"""The one exception a user is meant to read."""


class EnginewrightError(Exception):
    """A fault that a user, a configuration or a file caused.

    The message is one line that names the offending value, the bound it broke and the remedy.
    Command lines print it and exit with 1; everything else that escapes is a bug and keeps its traceback.
    """
