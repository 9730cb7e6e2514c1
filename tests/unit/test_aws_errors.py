"""What errors of the SDK are taken for: which may pass, which are interrupts, and what is quoted of them."""

from collections.abc import Callable
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from idempotent_tasks.errors import ConfigurationError, StoreError, StoreMisconfiguredError, StoreUnavailableError
from idempotent_tasks.stores.aws_errors import Request, Service, blames_credentials, error_code, translated
from idempotent_tasks.stores.dynamodb.client import DYNAMODB
from idempotent_tasks.stores.s3 import S3

SECRET = "wJalrXUtnFEMI"


def request(service: Service = DYNAMODB, action: str = "UpdateItem") -> Request:
    """Return a request."""
    return Request(service, action, lambda: "table 'records' at eu-west-1", lambda: None)


def client_error(code: str, status: int = 400, action: str = "UpdateItem", **given: str) -> ClientError:
    """Return an error as botocore makes it of an answer in JSON."""
    headers = {"content-type": "application/x-amz-json-1.0", **given}
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    return ClientError({"Error": {"Code": code, "Message": "words"}, "ResponseMetadata": metadata}, action)


def raise_(error: BaseException) -> None:
    """Raise an error."""
    raise error


def store_error(error: BaseException, asked: Request | None = None) -> StoreError:
    """Return what an error becomes."""
    with pytest.raises(StoreError) as caught, translated(asked or request()):
        raise error
    assert caught.value.__cause__ is error
    return caught.value


#: Raised before anything is sent, by one that stays and by one that may pass.
PERMANENT: dict[str, Exception] = {
    "parameters": exceptions.ParamValidationError(report="TableName"),
    "region": exceptions.InvalidRegionError(region_name="§"),
    "endpoint": ValueError("Invalid endpoint: not-a-url"),
    "rules": exceptions.EndpointProviderError(msg="no rule"),
}
PASSING: dict[str, Exception] = {
    "no-region": exceptions.NoRegionError(),
    "no-profile": exceptions.ProfileNotFound(profile="worker"),
    "half-a-file": exceptions.ConfigParseError(path="config"),
    "half-credentials": exceptions.PartialCredentialsError(provider="env", cred_var="x"),
    "no-answer": exceptions.ReadTimeoutError(endpoint_url="http://x"),
    "tls": exceptions.SSLError(endpoint_url="http://x", error="bad"),
    "value": ValueError("a token with a line's end"),
    "memory": MemoryError(),
    "recursion": RecursionError(),
    "generator": StopIteration(),
    "bare": BotoCoreError(),
    "without-an-answer": ClientError({}, "UpdateItem"),
    "with-an-odd-one": ClientError({"Error": {"Code": None, "Message": None}}, "UpdateItem"),
}


@pytest.mark.parametrize("error", PERMANENT.values(), ids=PERMANENT)
def test_what_stays(error: Exception) -> None:
    """Only another configuration changes it."""
    assert isinstance(store_error(error), StoreMisconfiguredError)


@pytest.mark.parametrize("error", PASSING.values(), ids=PASSING)
def test_what_may_pass(error: Exception) -> None:
    """Files, variables, networks and other people's code change while a process runs."""
    assert isinstance(store_error(error), StoreUnavailableError)


@pytest.mark.parametrize("service", [DYNAMODB, S3], ids=lambda service: service.prefix)
def test_permanent_refusals(service: Service) -> None:
    """Each code of the table says what to do; with a status of a gateway's, or of an outage, it is not believed."""
    for code, remedy in service.permanent.items():
        error = store_error(client_error(code), request(service))
        assert isinstance(error, StoreMisconfiguredError)
        assert str(error).endswith(f"was refused: {code}: words. Remedy: {remedy}")
        for status in (408, 429, 500, 503):
            assert isinstance(store_error(client_error(code, status), request(service)), StoreUnavailableError)


def test_only_json_is_dynamodbs() -> None:
    """A page that names a code is somebody else's; S3 itself speaks XML."""
    page = {"content-type": "text/html"}
    assert isinstance(store_error(client_error("AccessDenied", 403, **page)), StoreUnavailableError)
    assert isinstance(store_error(client_error("AccessDenied", 403, **page), request(S3)), StoreMisconfiguredError)


@pytest.mark.parametrize("code", ["MadeUp", "", "403", "InternalFailure", "Throttling"])
@pytest.mark.parametrize("status", [400, 403, 404, 500])
def test_a_code_that_nobody_knows_may_pass(code: str, status: int) -> None:
    """What is not certain to stay is tried again."""
    error = store_error(client_error(code, status))
    assert isinstance(error, StoreUnavailableError)
    assert not blames_credentials(error)


def test_an_error_of_the_librarys_own_is_left_alone() -> None:
    """It says already what it means."""
    for raised in (StoreMisconfiguredError("forked"), ConfigurationError("wrong")):
        with pytest.raises(type(raised)) as caught, translated(request()):
            raise raised
        assert caught.value is raised


class TestMessages:
    """Who answered, and nothing secret."""

    @pytest.mark.parametrize(
        ("action", "service"),
        [
            ("AssumeRole", "STS"),
            ("AssumeRoleWithWebIdentity", "STS"),
            ("GetRoleCredentials", "IAM Identity Center"),
            ("GetSecretValue", "another service"),
        ],
    )
    def test_another_services_refusal(self, action: str, service: str) -> None:
        """It is named with its own operation."""
        error = store_error(client_error("AccessDenied", 403, action))
        assert str(error).startswith(f"{service} answered {action} with AccessDenied: words; dynamodb:UpdateItem on ")
        assert "was not sent" in str(error)

    @pytest.mark.parametrize("error", [KeyError(SECRET), RuntimeError(SECRET), OSError(SECRET), ValueError(SECRET)])
    def test_foreign_words_are_not_quoted(self, error: Exception) -> None:
        """A provider of credentials may have put into them what it was about."""
        assert SECRET not in str(store_error(error))
        assert type(error).__name__ in str(store_error(error))

    def test_a_long_text(self) -> None:
        """Of many lines only the first is quoted, and of that no more than a message bears."""
        error = client_error("InvalidSignatureException")
        error.response["Error"]["Message"] = f"{'x' * 1000}\n{SECRET}"
        assert SECRET not in str(store_error(error))
        assert len(str(store_error(error))) < 600

    def test_a_secret_in_an_address(self) -> None:
        """The path of the container's service is one."""
        address = f"http://169.254.170.2/v2/credentials/{SECRET}"
        error = exceptions.CredentialRetrievalError(provider="container-role", error_msg="x")
        error.__context__ = exceptions.ConnectTimeoutError(endpoint_url=address)
        assert SECRET not in str(store_error(error))


class TestInterrupts:
    """A soft time limit comes out of a request as it is, and only its own."""

    def wrapped(self, error: Exception) -> Exception:
        """Return an error as botocore's HTTP client wraps it."""
        return HTTPClientError(error=error)

    def chained(self, error: Exception) -> Exception:
        """Return an error that was raised because of it."""
        after = ValueError("the vault does not answer")
        after.__cause__ = error
        return after

    def met(self, error: Exception) -> Exception:
        """Return an error that was raised while it was handled."""
        after = KeyError()
        after.__context__ = self.wrapped(error)
        return after

    @pytest.mark.parametrize("wrap", [lambda _, error: error, wrapped, chained, met], ids=["bare", "w", "c", "m"])
    @pytest.mark.parametrize("interrupt", [SoftTimeLimitExceeded(3), SystemExit(1)], ids=["soft", "exit"])
    def test_wherever_it_is(self, wrap: Callable[[Any, Any], Exception], interrupt: BaseException) -> None:
        """However botocore, or a provider of credentials, has wrapped it."""
        with pytest.raises(type(interrupt)) as caught, translated(request()):
            raise wrap(self, interrupt)
        assert caught.value is interrupt

    def test_one_from_before(self) -> None:
        """What is sent while an interrupt is handled fails by itself: Python names the interrupt as its context."""
        with pytest.raises(StoreUnavailableError):
            self.handle_one()

    def handle_one(self) -> None:
        """Send something while a soft time limit is handled, which fails."""
        try:
            raise_(SoftTimeLimitExceeded())
        except SoftTimeLimitExceeded:
            with translated(request()):
                try:
                    raise_(OSError())
                except OSError as error:
                    raise HTTPClientError(error=error) from error

    def test_a_loop_of_causes(self) -> None:
        """It ends."""
        one, two = KeyError(), ValueError()
        one.__context__, two.__context__ = two, one
        assert isinstance(store_error(one), StoreUnavailableError)


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("com.amazonaws.dynamodb.v20120810#Made.Up", "Made.Up"),
        ("MadeUp:http://internal.amazon.com/coral/", "MadeUp"),
        ("", ""),
    ],
)
def test_codes(code: str, named: str) -> None:
    """With and without what AWS's protocols put around the name; an error that no service answered has none."""
    assert error_code(client_error(code)) == named
    assert error_code(store_error(client_error(code))) == named
    assert error_code(store_error(KeyError())) == error_code(None) == ""
