"""Errors of the AWS SDK as errors of the store: for each whether it may pass, who answered, and what to do.

The rule: whatever the SDK raises is a `StoreError`, and `StoreUnavailableError` unless it is certainly permanent.  An
error that is called permanent by mistake is not tried again; one that is called passing by mistake costs some tries.
"""

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from billiard.exceptions import SoftTimeLimitExceeded
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    EndpointProviderError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    MissingDependencyException,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
    UnknownEndpointError,
    UnsupportedSignatureVersionError,
    ValidationError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from idempotent_tasks.errors import IdempotencyError, StoreError, StoreMisconfiguredError, StoreUnavailableError

__all__ = ["INTERRUPTS", "NotedRefresh", "Request", "Service", "blames_credentials", "error_code", "translated"]

#: What Celery raises into a running task, at any line, and what must come out of a request as it is.
INTERRUPTS: Final = (SoftTimeLimitExceeded,)

#: Codes by which AWS refuses a request's signature, not what it asks for.  Every one may pass: keys and tokens are
#: rotated, a new key takes seconds to be known everywhere, and a machine's clock is set.
#: https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/CommonErrors.html
#: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_SIGNATURE_REMEDIES: Final = {
    "ExpiredToken": "renew the credentials",
    "ExpiredTokenException": "renew the credentials",
    "IncompleteSignature": "look for a proxy that changes the headers of requests",
    "IncompleteSignatureException": "look for a proxy that changes the headers of requests",
    "InvalidAccessKeyId": "the credentials are not known there; fix them",
    "InvalidClientTokenId": "the credentials are not known there; fix them",
    "InvalidSignatureException": "fix the secret key, or this machine's clock if the message speaks of expiry",
    "InvalidToken": "renew the credentials",
    "MissingAuthenticationToken": "give the worker credentials",
    "MissingAuthenticationTokenException": "give the worker credentials",
    "NotAuthorized": "the credentials are not known there; fix them",
    "RequestExpired": "this machine's clock is far off; set it",
    "RequestTimeTooSkewed": "this machine's clock is far off; set it",
    "SignatureDoesNotMatch": "fix the secret key, or this machine's clock if the message speaks of expiry",
    "TokenRefreshRequired": "renew the credentials",
    "UnrecognizedClientException": "the credentials are not known there; fix them",
}
#: Codes of STS that no further try changes: a policy, an account's settings or the request itself.  Its other refusals
#: speak of a token or a key that is about to be replaced.
#: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html#API_AssumeRole_Errors
_STS_PERMANENT: Final = {
    "AccessDenied": "allow it in the policy of these credentials and in the role's trust policy",
    "MalformedPolicyDocument": "fix the session policy",
    "PackedPolicyTooLarge": "shorten the session policy and tags",
    "RegionDisabledException": "activate STS in the region, or set AWS_STS_REGIONAL_ENDPOINTS",
    "ValidationError": "fix the role's ARN and the other parameters",
}
_STS_ACTIONS: Final = frozenset(
    {"AssumeRole", "AssumeRoleWithSAML", "AssumeRoleWithWebIdentity", "GetFederationToken", "GetSessionToken"}
)
#: The service by an operation of its own, for the other providers of botocore's chain.
_OTHER_ACTIONS: Final = {
    "CreateOAuth2Token": "AWS Sign-In",
    "CreateToken": "IAM Identity Center",
    "GetCredentialsForIdentity": "Cognito",
    "GetId": "Cognito",
    "GetRoleCredentials": "IAM Identity Center",
}
#: What botocore calls its providers of credentials, and whom they ask.
_PROVIDERS: Final = {
    "assume-role": "STS",
    "assume-role-with-web-identity": "STS",
    "container-role": "the container's credentials service",
    "custom-process": "the credential_process",
    "iam-role": "the instance's metadata service",
    "login": "AWS Sign-In",
    "sso": "IAM Identity Center",
}
#: A gateway that waited too long for the request, and one that limits the rate.
_PASSING_STATUS: Final = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
_CREDENTIALS_MODULE: Final = "botocore.credentials"
#: By these a client and a session ask for credentials, also those of somebody's own class.
_CREDENTIALS_CALLS: Final = frozenset({"get_credentials", "get_deferred_property", "get_frozen_credentials"})
_CREDENTIALS_ERRORS: Final = (
    CredentialRetrievalError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
)
#: No answer, a cut one, or one that was damaged on its way.
_NO_ANSWER: Final = (
    BotoConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    ResponseParserError,
)
#: Raised before anything is sent, for what only another configuration or another version changes.  A region, a profile
#: and a file that are not there may appear.
_PERMANENT_ERRORS: Final = (
    EndpointProviderError,
    MissingDependencyException,
    ParamValidationError,
    UnknownEndpointError,
    UnsupportedSignatureVersionError,
    ValidationError,
)
#: How botocore begins its ``ValueError`` for an ``endpoint_url`` that is none.
_INVALID_ENDPOINT: Final = "Invalid endpoint"
_CREDENTIALS_REMEDY: Final = "give the worker a role, or credentials in its environment or in a file"
#: Characters of a foreign text that are quoted: the second line of a refused signature would hold the session's token.
_LONGEST_QUOTE: Final = 300
#: What interrupted a refresh of credentials within the request under way.
_swallowed: ContextVar[list[BaseException] | None] = ContextVar("idempotency_swallowed", default=None)


@dataclass(frozen=True, kw_only=True)
class Service:
    """What the error codes of one service of AWS mean."""

    #: As in ``dynamodb:GetItem``.
    prefix: str
    #: The remedy by each code that no further try changes.
    permanent: Mapping[str, str]
    #: What to look at where a request cannot be sent.
    settings: str
    #: Whether a permanent refusal is believed only in JSON, which no gateway's page is.
    speaks_json: bool = False


@dataclass(slots=True)
class Request:
    """One request to a service, for messages; what only a message needs is worked out for one."""

    service: Service
    #: The operation in the service's own spelling, such as ``GetItem``.
    action: str
    #: Returns on what, and where.
    target: Callable[[], str]
    #: Returns how botocore calls the provider of the credentials, such as ``assume-role``; None where nobody knows.
    provider: Callable[[], str | None]

    def __str__(self) -> str:
        return f"{self.service.prefix}:{self.action} on {self.target()}"


@contextmanager
def translated(request: Request) -> Iterator[None]:
    """Raise what the SDK raises in the block as an error of the store.

    Args:
        request: what the block sends.

    Raises:
        SoftTimeLimitExceeded: somebody interrupted the block, wherever in the SDK that was.
        StoreUnavailableError: whatever may pass.
        StoreMisconfiguredError: what is certain to stay until somebody acts.
    """
    outside = sys.exc_info()[1]
    swallowed: list[BaseException] = []
    token = _swallowed.set(swallowed)
    try:
        yield
    except IdempotencyError:
        raise
    except Exception as error:
        interrupt = _interrupt_in(error, outside)
        if interrupt is not None:
            raise interrupt from None
        raise _store_error(error, request) from error
    finally:
        _swallowed.reset(token)
    if swallowed:
        raise swallowed[0]


class NotedRefresh:
    """A refresh of credentials whose interrupt is raised when the request is through, should botocore swallow it.

    Some minutes before credentials expire botocore tries to refresh them, and goes on with them whatever happens
    (``botocore.credentials.RefreshableCredentials._protected_refresh``).

    Args:
        refresh: returns new credentials.
    """

    def __init__(self, refresh: Callable[[], Any]) -> None:
        self._refresh = refresh

    def __call__(self) -> Any:
        """Refresh, and note what interrupts it."""
        outside = sys.exc_info()[1]
        try:
            return self._refresh()
        except Exception as error:
            interrupt, swallowed = _interrupt_in(error, outside), _swallowed.get()
            if interrupt is not None and swallowed is not None:
                swallowed.append(interrupt)
            raise


def error_code(error: BaseException | None) -> str:
    """Return the code that a service answered with; an empty text where none did.

    Args:
        error: an error of the SDK's, or the store's error that came of it.
    """
    found = error.__cause__ if isinstance(error, IdempotencyError) else error
    if not isinstance(found, ClientError):
        return ""
    return str(found.response.get("Error", {}).get("Code") or "").rpartition("#")[2].partition(":")[0]


def blames_credentials(error: StoreError) -> bool:
    """Return whether a request failed because of the credentials: they are missing, refused, or cannot be fetched."""
    cause = error.__cause__
    return isinstance(cause, Exception) and (error_code(cause) in _SIGNATURE_REMEDIES or _concerns_credentials(cause))


def _interrupt_in(error: BaseException, outside: BaseException | None) -> BaseException | None:
    """Return the interrupt that an error is, or that it came of.

    botocore takes an interrupt for an error of its HTTP client's (``botocore.httpsession.URLLib3Session.send``), and a
    provider of credentials may raise another error in its place.

    Args:
        error: what was raised.
        outside: what was being handled before: Python makes it the context of everything that is raised meanwhile.
    """
    seen: set[int] = {id(outside)}
    waiting: list[object] = [error]
    while waiting:
        found = waiting.pop()
        if not isinstance(found, BaseException) or id(found) in seen or isinstance(found, GeneratorExit):
            continue
        seen.add(id(found))
        if isinstance(found, INTERRUPTS) or not isinstance(found, Exception):
            return found
        kwargs = getattr(found, "kwargs", None)
        waiting += [found.__context__, found.__cause__, kwargs.get("error") if isinstance(kwargs, dict) else None]
    return None


def _store_error(error: Exception, request: Request) -> StoreError:
    if isinstance(error, ClientError):
        own = error.operation_name == request.action and not _concerns_credentials(error)
        return _of_refusal(error, request) if own else _of_other_service(error, request)
    if _concerns_credentials(error):
        return _of_missing_credentials(error, request)
    if isinstance(error, _NO_ANSWER):
        return StoreUnavailableError(f"{request} got no answer ({type(error).__name__})")
    permanent = isinstance(error, _PERMANENT_ERRORS) or str(error).startswith(_INVALID_ENDPOINT)
    what = f"{request} cannot be sent: {_quoted(error)}; fix {request.service.settings}"
    return StoreMisconfiguredError(what) if permanent else StoreUnavailableError(what)


def _of_refusal(error: ClientError, request: Request) -> StoreError:
    """Return what an answer of the service's own means, or of whoever answered in its place."""
    code, status, words = error_code(error), _status(error), _words(error)
    said = ": ".join(filter(None, (code or str(status), words)))
    passes = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _PASSING_STATUS or not _is_own(error, request)
    if not passes and code in request.service.permanent:
        remedy = request.service.permanent[code]
        return StoreMisconfiguredError(f"{request} was refused: {said}. Remedy: {remedy}")
    if not passes and code in _SIGNATURE_REMEDIES:
        remedy = _SIGNATURE_REMEDIES[code]
        return StoreUnavailableError(f"{request} was refused for its credentials: {said}. Remedy: {remedy}")
    return StoreUnavailableError(f"{request} failed for now: {said}")


def _is_own(error: ClientError, request: Request) -> bool:
    """Return whether an answer may be the service's own, and is no gateway's page."""
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return not request.service.speaks_json or "json" in headers.get("content-type", "")


def _of_other_service(error: ClientError, request: Request) -> StoreError:
    """Return what the refusal of another service means, of which something on the way asked something."""
    code, status, action = error_code(error), _status(error), str(error.operation_name)
    if action in _STS_ACTIONS:
        service, permanent = "STS", _STS_PERMANENT
    else:
        service, permanent = _OTHER_ACTIONS.get(action, "another service"), {}
    words = _words(error)
    what = f"{service} answered {action} with {code or status}" + (f": {words}" if words else "")
    what = f"{what}; {request} was not sent. Remedy: "
    passes = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _PASSING_STATUS
    if code in permanent and not passes:
        return StoreMisconfiguredError(what + permanent[code])
    return StoreUnavailableError(f"{what}see whether {service} gives this worker credentials")


def _of_missing_credentials(error: Exception, request: Request) -> StoreError:
    """Return what it means that there are no credentials to sign a request with."""
    told: Mapping[str, object] = error.kwargs if isinstance(error, BotoCoreError) else {}
    given = str(told.get("provider") or request.provider() or "")
    service = _PROVIDERS.get(given, given)
    remedy = f"see why {service or 'what gives this worker its credentials'} fails"
    if isinstance(error, NoCredentialsError):
        what, remedy = "no credentials were found", _CREDENTIALS_REMEDY
    elif isinstance(error, _NO_ANSWER):
        place = urlsplit(str(told.get("endpoint_url") or "")).netloc
        at = f" at {place}" if place else ""
        what = f"{service or 'the service that gives credentials'}{at} did not answer ({type(error).__name__})"
    else:
        by = f" from {service}" if service else ""
        what = f"the credentials{by} cannot be had: {_quoted(error)}"
    message = f"{what}; {request} was not sent. Remedy: {remedy}"
    permanent = isinstance(error, MissingDependencyException)
    return StoreMisconfiguredError(message) if permanent else StoreUnavailableError(message)


def _concerns_credentials(error: Exception) -> bool:
    """Return whether an error was raised while credentials were fetched, which botocore itself does not say."""
    if isinstance(error, _CREDENTIALS_ERRORS):
        return True
    return any(
        frame.f_globals.get("__name__") == _CREDENTIALS_MODULE or frame.f_code.co_name in _CREDENTIALS_CALLS
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def _status(error: ClientError) -> int:
    status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0
    return status


def _words(error: ClientError) -> str:
    return _first_line(str(error.response.get("Error", {}).get("Message") or "")).rstrip(".")


def _quoted(error: Exception) -> str:
    """Return an error for a message; of one whose texts nobody knows, its type only."""
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__}: {error.strerror}" + (f": {error.filename!r}" if error.filename else "")
    if isinstance(error, BotoCoreError) or str(error).startswith(_INVALID_ENDPOINT):
        return _first_line(str(error))
    raised_in = [frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)][-1:]
    if raised_in == [_CREDENTIALS_MODULE]:
        return f"{type(error).__name__}: {_first_line(str(error))}"
    return type(error).__name__


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0].strip()
    return line if len(line) <= _LONGEST_QUOTE else f"{line[:_LONGEST_QUOTE]}…"
