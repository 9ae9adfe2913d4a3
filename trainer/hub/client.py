"""The Hub's client: which commit a revision is, and what goes wrong in a sentence."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from schemas.errors import ResourceError, StateError, UserError, first_line
from schemas.hub import HubName

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_PROBE_SECONDS: Final = 10.0
_AGAIN: Final = "What has been transferred is kept: run the same command again to go on."


class UnreachableError(ResourceError):
    """The Hub cannot be asked."""


@contextmanager
def told(subject: str, write: bool = False) -> Iterator[None]:
    """Whatever the client raises becomes a sentence about `subject`; `write`: of what is sent there."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        yield
    except (
        OSError,
        huggingface_hub.errors.HTTPError,  # type: ignore[attr-defined]  # of whichever HTTP client it uses
        errors.HFValidationError,
        RuntimeError,
    ) as error:
        raise _sentence(error, subject, write) from error


def _sentence(error: BaseException, subject: str, write: bool) -> Exception:
    """The sentence for what the client raised; what is none of its errors stays what it is."""
    from huggingface_hub import errors

    for cause in _causes(error):
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return UnreachableError(
                f"{subject}: HF_HUB_OFFLINE is set, so the Hub is not asked. Unset it, or name a folder on this machine."
            )
        if isinstance(cause, errors.HFValidationError):
            return UserError(f"{subject} is no valid name on the Hub ({first_line(cause)}).")
        if isinstance(cause, errors.RevisionNotFoundError):
            return UserError(f"{subject}: the Hub has no such revision.")
        if isinstance(cause, errors.GatedRepoError):
            return UserError(
                f"{subject} is gated: ask for access on its page on the Hub, and log in (`hf auth login`)."
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            return UserError(
                f"{subject}: the Hub has no such repository, or it is private. Check the name, or log in (`hf auth login`)."
            )
        if isinstance(cause, errors.HfHubHTTPError):
            return _refused(cause, subject, write)
    for cause in _causes(error):
        if isinstance(cause, errors.HTTPError):  # type: ignore[attr-defined]
            return UnreachableError(
                f"{subject}: the Hub cannot be reached, or the connection broke ({first_line(cause)}). {_AGAIN}"
            )
    if isinstance(error, OSError) and error.errno is not None:
        return error  # of this machine's disk
    deepest = [*_causes(error)][-1]
    return ResourceError(f"{subject}: the transfer failed ({first_line(deepest)}). {_AGAIN}")


def _refused(error: Exception, subject: str, write: bool) -> UserError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return ResourceError(
            f"{subject}: the Hub does not accept the token. Log in with `hf auth login`, or set HF_TOKEN to "
            f"{'one that may write' if write else 'a valid one'}."
        )
    if status == 403:
        return ResourceError(
            f"{subject}: the token may not {'write' if write else 'read'} there. Use one that may, of an account that may."
        )
    if status in {409, 412}:
        return StateError(
            f"{subject} was changed by somebody else meanwhile. Look at it, and run the same command again."
        )
    return ResourceError(f"{subject}: the Hub answers {status or 'with an error'} ({first_line(error)}). {_AGAIN}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it was raised for."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def commit_of(name: HubName) -> str:
    """The commit that a repository's revision is now. Raises `UserError` and its kin."""
    import huggingface_hub

    with told(str(name)):
        info = huggingface_hub.HfApi().repo_info(
            name.id, repo_type=name.type, revision=name.revision, timeout=_PROBE_SECONDS
        )
    commit = str(info.sha)
    if _COMMIT.fullmatch(commit) is None:
        raise StateError(f"{name}: what answers there does not answer as the Hub does. Check HF_ENDPOINT.")
    return commit


def existing(name: HubName) -> HubName:
    """The repository of a name that may mean either kind. Raises `UserError` if there is none, or one of each."""
    if name.type is not None:
        return name
    import huggingface_hub

    with told(str(name)):
        kinds = [kind for kind in ("dataset", "model") if huggingface_hub.HfApi().repo_exists(name.id, repo_type=kind)]
    if len(kinds) > 1:
        raise UserError(
            f"{name.id} is both a dataset and a model on the Hub; write {name.at('dataset')} or {name.at('model')}."
        )
    return name.at(kinds[0] if kinds else "dataset")  # type: ignore[arg-type]


@contextmanager
def own_progress() -> Iterator[None]:
    """Without the client's own bars, of which one of ours stands there, and its warning of a full disk: the error says that."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Not enough free disk space", UserWarning)
            yield
    finally:
        if not disabled:
            enable_progress_bars()
