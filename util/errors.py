"""The one exception that a user causes and can mend."""


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and what to do.

    The command line prints it as one line and exits with status 2.
    """


class UnsupportedError(UserError):
    """A method that by its nature cannot do a task; in a table that is a dash, not a failure."""


class OutputError(UserError):
    """Nothing can be written any more: it ends a run, whatever image is being worked on."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def described(error: BaseException) -> str:
    """An error in one line, with its type unless the message is our own."""
    text, kind = first_line(error), type(error).__name__
    return text if isinstance(error, UserError) or text == kind else f"{kind}: {text}"
