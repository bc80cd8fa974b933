"""What goes wrong with the hub, each in one line that names the repository and the mend."""

import contextlib
from collections.abc import Iterator

from huggingface_hub import constants, errors

from diffussm_jax.errors import CommandEnd, UserError

_LOG_IN = "set HF_TOKEN or run `hf auth login`"
_NOT_FOUND = f"there is no such repository, or it is private: check the name, or {_LOG_IN}"
_STATUSES = {
    403: "the token may not do this: use one that may, with write access to push",
    412: "somebody else pushed meanwhile: give the command again",
    429: "the hub asks for fewer requests: give the command again later",
}


@contextlib.contextmanager
def in_one_line(named: str) -> Iterator[None]:
    """Turn what `huggingface_hub` raises into UserErrors.

    Args:
        named: what an error calls the repository, as `hf://USER/NAME`.
    """
    try:
        yield
    except CommandEnd:
        raise
    # The library raises those of its transport too, whose module depends on its version.
    except Exception as error:
        raise UserError(f"{named}: {_reason(_source(error))}") from error


def _source(error: BaseException) -> BaseException:
    """The answer of the hub that an error is about; the error itself where there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, errors.HfHubHTTPError):
            return seen
        seen = seen.__cause__
    return error


def _reason(error: BaseException) -> str:
    page = f"its page on {constants.ENDPOINT}"
    if isinstance(error, errors.GatedRepoError):
        return f"it is gated: ask for access on {page}, then {_LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return _NOT_FOUND
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no such revision: {page} lists its branches, tags and commits"
    if isinstance(error, errors.HFValidationError):
        return _first_line(error)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"there is no token: {_LOG_IN}"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return _reason_of_401(error)
        if status in _STATUSES:
            return _STATUSES[status]
        what = error.server_message or _first_line(error)
        return f"the hub answers {status} ({what}): give the command again later"
    if isinstance(error, errors.LocalEntryNotFoundError):
        why = type(error.__cause__ or error).__name__
        return (
            f"{constants.ENDPOINT} cannot be reached ({why}), and no complete copy is in "
            f"{constants.HF_HUB_CACHE}: check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        )
    if isinstance(error, OSError) and error.strerror is not None:
        return f"{error.filename or constants.HF_HUB_CACHE}: {error.strerror}"
    what = f"{type(error).__name__}, {_first_line(error)}"
    return f"{what}: check the network, and give the command again"


def _reason_of_401(error: errors.HfHubHTTPError) -> str:
    """The hub says 401 of a token that it does not know, and of what needs one."""
    message = error.response.headers.get("X-Error-Message", "")
    if message.startswith("Invalid credentials"):
        return f"the hub refuses the token: {_LOG_IN} with one from its settings"
    return _NOT_FOUND


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")
