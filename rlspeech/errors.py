"""What a user can mend is a UserError: one line that says where, what, and what instead."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in what was given to us. The command prints it as one line and exits with status 2."""


class RunFailed(RuntimeError):
    """The run cannot go on, by no mistake of the user: what it has written stands, and --resume goes on from there."""


class CheckFailed(Exception):
    """A check that was asked for did not pass. The command prints it as one line and exits with status 1."""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """The tail of a message about an unknown name.

    >>> did_you_mean("lrr", ["lr", "steps"])
    "; did you mean 'lr'?"
    >>> did_you_mean("zebra", ["lr", "steps"])
    '; known: lr, steps'
    """
    known = sorted(options)
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
