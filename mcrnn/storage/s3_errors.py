"""The errors of S3, of the network and of credentials, in words that a user can act on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mcrnn.errors import UserError
from mcrnn.storage.location import NoConditionalWritesError
from mcrnn.storage.retry import ServiceUnavailableError

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

ATTEMPTS = 10
"""Number of tries of a request before it counts as failed. Busy services refuse one in ten requests."""

# error codes of S3 and of services that speak its protocol, by what is wrong
WRONG_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidClientTokenId", "AuthFailure"}
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
WRONG_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}
DENIED = {"AccessDenied", "Forbidden", "403", "AllAccessDisabled", "UnauthorizedAccess"}
MISSING_BUCKET = {"NoSuchBucket"}
OVERLOADED = {"SlowDown", "InternalError", "ServiceUnavailable"}
CONDITION_FAILED = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412"}
NOT_IMPLEMENTED = {"NotImplemented", "501"}
EXPECTED = {"NoSuchKey", "404", "InvalidRange", "416", *CONDITION_FAILED, *NOT_IMPLEMENTED}
"""Answers that the code which asks knows how to take."""


@contextlib.contextmanager
def translate_errors(url: str) -> Iterator[None]:
    """Turn an error of s3fs inside the block into a UserError that names the cause.

    s3fs raises FileNotFoundError for a missing key and for a missing bucket. The error code of the service tells them
    apart: a missing bucket is a UserError.

    Args:
        url: URL of the prefix, for messages.

    Raises:
        UserError: The request failed for a reason that a user can act on.
        ServiceUnavailableError: The service does not answer or is overloaded.
        FileNotFoundError: There is no such key.
    """
    try:
        yield
    except (UserError, FileExistsError, NoConditionalWritesError):
        raise
    except Exception as error:
        explained = _explain(url, _find_cause(error))
        if explained is not None:
            raise explained from None
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(str(error)) from None
        raise


def code_of(error: BaseException) -> str:
    """Return the error code with which the service has answered, empty for another error."""
    from botocore.exceptions import ClientError

    cause = _find_cause(error)
    return str(cause.response.get("Error", {}).get("Code", "")) if isinstance(cause, ClientError) else ""


def _find_cause(error: BaseException) -> BaseException:
    """Return the first error of the chain, which names the cause.

    boto3 raises its own errors without `from`, so that botocore's error is found in their context.
    """
    while (cause := error.__cause__ or (error.__context__ if _is_of("boto3", error) else None)) is not None:
        error = cause
    return error


def _is_of(package: str, error: BaseException) -> bool:
    """Return whether a package defines the class of an error."""
    return type(error).__module__.split(".")[0] == package


def _explain(url: str, error: BaseException) -> UserError | None:
    """Return the error for a user, or None if there is nothing that a user could do."""
    from botocore import exceptions

    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return UserError(
            f"no credentials for '{url}': set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a "
            "profile of ~/.aws/config"
        )
    if isinstance(error, exceptions.ProfileNotFound):
        return UserError(f"there is no AWS profile '{os.environ.get('AWS_PROFILE')}' in ~/.aws/config (AWS_PROFILE)")
    if isinstance(error, exceptions.ClientError):
        return _explain_refusal(url, error)
    connection = (
        exceptions.EndpointConnectionError,
        exceptions.ConnectTimeoutError,
        exceptions.ReadTimeoutError,
        exceptions.ConnectionClosedError,
        exceptions.HTTPClientError,
        exceptions.InvalidEndpointConfigurationError,
        ConnectionError,
        TimeoutError,
    )
    if isinstance(error, connection) or _is_of("aiohttp", error):
        return ServiceUnavailableError(
            f"cannot reach {_endpoint()} for '{url}': check AWS_ENDPOINT_URL and the network ({type(error).__name__})"
        )
    if isinstance(error, ValueError) and "endpoint" in str(error).lower():
        return UserError(f"AWS_ENDPOINT_URL is not a URL: '{_endpoint()}'")
    return None


def _explain_refusal(url: str, error: ClientError) -> UserError | None:
    """Return the error for a user when the service has answered with an error code."""
    details, metadata = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
    code, status = str(details.get("Code", "")), metadata.get("HTTPStatusCode", 0)
    endpoint, bucket = _endpoint(), url.removeprefix("s3://").split("/", 1)[0]
    if code in WRONG_KEY:
        return UserError(
            f"wrong key for '{url}': {endpoint} does not accept AWS_ACCESS_KEY_ID with this secret ({code})"
        )
    if code in EXPIRED:
        return UserError(f"the credentials for '{url}' have expired ({code}): get new ones and run the command again")
    if code in MISSING_BUCKET:
        return UserError(f"there is no bucket '{bucket}' at {endpoint}: create it, or correct the URL '{url}'")
    if code in WRONG_REGION or status == 301:
        region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION") or "none set"
        actual = details.get("Region") or metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region", "another region")
        return UserError(f"wrong region for '{url}': the bucket is in {actual}; set AWS_DEFAULT_REGION (now {region})")
    if code in DENIED or status == 403:
        return UserError(
            f"no permission for {error.operation_name} on '{url}': ask for read, write, list and delete on it ({code})"
        )
    if status >= 500 or code in OVERLOADED:
        return ServiceUnavailableError(
            f"{endpoint} failed {ATTEMPTS} times in a row for '{url}' ({code or status}): it is overloaded or down. "
            "The same command continues when it is back"
        )
    if code not in EXPECTED:
        reason = str(details.get("Message") or "no reason given").strip()
        return UserError(f"{endpoint} refuses {error.operation_name} on '{url}': {reason} ({code or status})")
    return None


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
