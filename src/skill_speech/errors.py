"""What the library raises for a user's mistake."""


class InputError(Exception):
    """Bad input: one line that says what is wrong, where, and what to do about it.

    The command line prints the message alone and exits with status 2; everything else that is raised is a defect
    of ours and keeps its stack trace.
    """
