"""The one error that a user can mend."""


class UserError(ValueError):
    """A mistake in what the user gave: `main` prints its message as one line and exits with 2."""
