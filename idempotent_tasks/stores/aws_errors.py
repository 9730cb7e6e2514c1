"""Translates botocore's errors into the store's: is it transient, which service answered, and what is the remedy?

Whatever botocore raises becomes a `StoreError`, and `StoreUnavailableError` unless it is certainly permanent: an error
that is called permanent by mistake is not tried again, one that is called transient by mistake only costs some tries.
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

from idempotent_tasks.core.retry import time_left
from idempotent_tasks.errors import IdempotencyError, StoreError, StoreMisconfiguredError, StoreUnavailableError

__all__ = [
    "INTERRUPTS",
    "NoTimeLeftError",
    "NotedRefresh",
    "Request",
    "Service",
    "blames_credentials",
    "error_code",
    "translated",
]

#: Exceptions that Celery raises into a running task, at any line; a request raises them unchanged.
INTERRUPTS: Final = (SoftTimeLimitExceeded,)

#: Codes with which AWS refuses a request's signature, each with its remedy.  All are transient: keys and tokens are
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
#: Permanent error codes of STS, each with its remedy: a policy, an account's settings or the request itself.  Its other
#: refusals are about a token or a key that is going to be replaced.
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
#: The service that an operation belongs to, for the other credential providers of botocore's chain.
_OTHER_ACTIONS: Final = {
    "CreateOAuth2Token": "AWS Sign-In",
    "CreateToken": "IAM Identity Center",
    "GetCredentialsForIdentity": "Cognito",
    "GetId": "Cognito",
    "GetRoleCredentials": "IAM Identity Center",
}
#: botocore's names of its credential providers, and the service that each asks.
_PROVIDERS: Final = {
    "assume-role": "STS",
    "assume-role-with-web-identity": "STS",
    "container-role": "the container's credentials service",
    "custom-process": "the credential_process",
    "iam-role": "the instance's metadata service",
    "login": "AWS Sign-In",
    "sso": "IAM Identity Center",
}
#: From a gateway that waited too long for the request, or that limits the rate.
_TRANSIENT_STATUS: Final = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
_CREDENTIALS_MODULE: Final = "botocore.credentials"
#: The methods with which a client and a session ask for credentials, also of a class of the user's own.
_CREDENTIALS_CALLS: Final = frozenset({"get_credentials", "get_deferred_property", "get_frozen_credentials"})
_CREDENTIALS_ERRORS: Final = (
    CredentialRetrievalError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
)
#: No answer, a truncated one, or a damaged one.
_NO_ANSWER: Final = (
    BotoConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    ResponseParserError,
)
#: Raised before anything is sent, and permanent: only another configuration or version helps.  Absent regions, profiles
#: and files are transient, because they may appear.
_PERMANENT_ERRORS: Final = (
    EndpointProviderError,
    MissingDependencyException,
    ParamValidationError,
    UnknownEndpointError,
    UnsupportedSignatureVersionError,
    ValidationError,
)
#: How botocore's ``ValueError`` for a malformed ``endpoint_url`` begins.
_INVALID_ENDPOINT: Final = "Invalid endpoint"
_CREDENTIALS_REMEDY: Final = "give the worker a role, or credentials in its environment or in a file"
#: Characters of botocore's text that are quoted, of its first line: the second may hold the session's token.
_LONGEST_QUOTE: Final = 300
#: The interrupts of credential refreshes within the request under way.
_swallowed: ContextVar[list[BaseException] | None] = ContextVar("idempotency_swallowed", default=None)


@dataclass(frozen=True, kw_only=True)
class Service:
    """An AWS service and its permanent error codes."""

    #: As in ``dynamodb:GetItem``.
    prefix: str
    #: Each permanent error code and its remedy.
    permanent: Mapping[str, str]
    #: The settings to check where a request cannot be sent, for a message.
    settings: str
    #: Whether a permanent error counts only in JSON: a gateway's page is none.
    speaks_json: bool = False


@dataclass(slots=True)
class Request:
    """One request to a service, as error messages name it; its callables run only when a message is built."""

    service: Service
    #: The operation in the service's own spelling, such as ``GetItem``.
    action: str
    #: Returns what it is about and the endpoint, such as ``table 'T' at eu-west-1``.
    target: Callable[[], str]
    #: Returns botocore's name of the credentials' provider, such as ``assume-role``; None where it is unknown.
    provider: Callable[[], str | None]

    def __str__(self) -> str:
        return f"{self.service.prefix}:{self.action} on {self.target()}"


class NoTimeLeftError(Exception):
    """No time is left to begin a request, or to go on with it; its text says what of the request is missing.

    It is derived from no error that botocore tries again as one of the network: botocore raises its `HTTPClientError`
    in its place.
    """

    def __init__(self, missing: str = "was not sent: no time is left for it") -> None:
        super().__init__(missing)


@contextmanager
def translated(request: Request) -> Iterator[None]:
    """Translate whatever botocore raises in the block into an error of the store.

    Args:
        request: what the block sends.

    Raises:
        SoftTimeLimitExceeded: the block was interrupted, wherever in botocore that was.
        StoreUnavailableError: the error is transient, or may be; or no time is left, and the block is not begun.
        StoreMisconfiguredError: the error is certain to stay until somebody acts.
    """
    if time_left() <= 0:
        raise StoreUnavailableError(f"{request} {NoTimeLeftError()}")
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
        raise _store_error(error, request, outside) from error
    finally:
        _swallowed.reset(token)
    if swallowed:
        raise swallowed[0]


class NotedRefresh:
    """Wraps a credential refresh, so that `translated` can raise an interrupt that botocore swallows.

    Some minutes before credentials expire botocore tries to refresh them, and goes on with the old ones whatever is
    raised (``botocore.credentials.RefreshableCredentials._protected_refresh``).

    Args:
        refresh: returns new credentials.
    """

    def __init__(self, refresh: Callable[[], Any]) -> None:
        self._refresh = refresh

    def __call__(self) -> Any:
        """Refresh the credentials; keep an interrupt for `translated`, and raise any error."""
        outside = sys.exc_info()[1]
        try:
            return self._refresh()
        except Exception as error:
            interrupt, swallowed = _interrupt_in(error, outside), _swallowed.get()
            if interrupt is not None and swallowed is not None:
                swallowed.append(interrupt)
            raise


def error_code(error: BaseException | None) -> str:
    """Return the error code of a service's answer; an empty text where no service answered.

    Args:
        error: an error of botocore's, or the store's error that it became.
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
    """Return the interrupt that an error is, or that caused it; arguments as for `_causes`."""
    causes = _causes(error, outside)
    return next((each for each in causes if isinstance(each, INTERRUPTS) or not isinstance(each, Exception)), None)


def _causes(error: BaseException, outside: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and those that caused it.

    botocore takes an interrupt for an error of its HTTP client (``botocore.httpsession.URLLib3Session.send``), and a
    credential provider may raise another error in its place.

    Args:
        error: what was raised.
        outside: the exception being handled when the request began: part of each ``__context__``, but no cause.
    """
    seen: set[int] = {id(outside)}
    waiting: list[object] = [error]
    while waiting:
        found = waiting.pop()
        if not isinstance(found, BaseException) or id(found) in seen or isinstance(found, GeneratorExit):
            continue
        seen.add(id(found))
        yield found
        kwargs = getattr(found, "kwargs", None)
        waiting += [found.__context__, found.__cause__, kwargs.get("error") if isinstance(kwargs, dict) else None]


def _store_error(error: Exception, request: Request, outside: BaseException | None) -> StoreError:
    late = next((each for each in _causes(error, outside) if isinstance(each, NoTimeLeftError)), None)
    if late is not None:
        return StoreUnavailableError(f"{request} {late}")
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
    """Translate an error response to the request: of the service, or of a gateway in between."""
    code, status, words = error_code(error), _status(error), _words(error)
    said = ": ".join(filter(None, (code or str(status), words)))
    transient = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _TRANSIENT_STATUS or not _is_own(error, request)
    if not transient and code in request.service.permanent:
        remedy = request.service.permanent[code]
        return StoreMisconfiguredError(f"{request} was refused: {said}. Remedy: {remedy}")
    if not transient and code in _SIGNATURE_REMEDIES:
        remedy = _SIGNATURE_REMEDIES[code]
        return StoreUnavailableError(f"{request} was refused for its credentials: {said}. Remedy: {remedy}")
    return StoreUnavailableError(f"{request} failed for now: {said}")


def _is_own(error: ClientError, request: Request) -> bool:
    """Return whether an error response may be the service's own, and not a gateway's page."""
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return not request.service.speaks_json or "json" in headers.get("content-type", "")


def _of_other_service(error: ClientError, request: Request) -> StoreError:
    """Translate an error of another service, such as STS, that botocore or an event handler sent a request to."""
    code, status, action = error_code(error), _status(error), str(error.operation_name)
    if action in _STS_ACTIONS:
        service, permanent = "STS", _STS_PERMANENT
    else:
        service, permanent = _OTHER_ACTIONS.get(action, "another service"), {}
    words = _words(error)
    what = f"{service} answered {action} with {code or status}" + (f": {words}" if words else "")
    what = f"{what}; {request} was not sent. Remedy: "
    transient = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _TRANSIENT_STATUS
    if code in permanent and not transient:
        return StoreMisconfiguredError(what + permanent[code])
    return StoreUnavailableError(f"{what}see whether {service} gives this worker credentials")


def _of_missing_credentials(error: Exception, request: Request) -> StoreError:
    """Translate an error while credentials were fetched, which left none to sign the request with."""
    details: Mapping[str, object] = error.kwargs if isinstance(error, BotoCoreError) else {}
    given = str(details.get("provider") or request.provider() or "")
    service = _PROVIDERS.get(given, given)
    remedy = f"see why {service or 'what gives this worker its credentials'} fails"
    if isinstance(error, NoCredentialsError):
        what, remedy = "no credentials were found", _CREDENTIALS_REMEDY
    elif isinstance(error, _NO_ANSWER):
        place = urlsplit(str(details.get("endpoint_url") or "")).netloc
        at = f" at {place}" if place else ""
        what = f"{service or 'the service that gives credentials'}{at} did not answer ({type(error).__name__})"
    else:
        by = f" from {service}" if service else ""
        what = f"the credentials{by} cannot be had: {_quoted(error)}"
    message = f"{what}; {request} was not sent. Remedy: {remedy}"
    permanent = isinstance(error, MissingDependencyException)
    return StoreMisconfiguredError(message) if permanent else StoreUnavailableError(message)


def _concerns_credentials(error: Exception) -> bool:
    """Return whether an error was raised while credentials were fetched, by its class or its traceback."""
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
    """Return an error's text for a message, or only its type if its text may hold a secret of foreign code."""
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
