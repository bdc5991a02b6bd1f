"""The errors of S3 in words that a user can act on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from mcrnn.errors import UserError
from mcrnn.storage.retry import ServiceUnavailableError

ATTEMPTS = 10
"""tries of a request before it counts as failed: some services refuse one in ten when they are busy"""

WRONG_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidClientTokenId", "AuthFailure"}
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
WRONG_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}
DENIED = {"AccessDenied", "Forbidden", "403", "AllAccessDisabled", "UnauthorizedAccess"}
MISSING_BUCKET = {"NoSuchBucket"}


@contextlib.contextmanager
def translate_errors(url: str) -> Iterator[None]:
    """Turn what s3fs raises into a UserError that names the cause; missing keys stay FileNotFoundError.

    A missing bucket is told apart from a missing key by the service's own code.
    """
    try:
        yield
    except (UserError, FileExistsError):
        raise
    except Exception as error:
        cause = _find_cause(error)
        kind, message = _explain(url, cause)
        if message is None and isinstance(error, FileNotFoundError):
            raise FileNotFoundError(str(error)) from None
        if message is None:
            raise
        raise kind(message) from None


def _find_cause(error: BaseException) -> BaseException:
    """The deepest error that botocore raised; boto3 hides it."""
    while (cause := error.__cause__ or (error.__context__ if _is_of("boto3", error) else None)) is not None:
        error = cause
    return error


def _is_of(package: str, error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] == package


def _explain(url: str, error: BaseException) -> tuple[type[UserError], str | None]:
    """What is wrong, and whether it may pass."""
    from botocore import exceptions

    bucket = url.removeprefix("s3://").split("/", 1)[0]
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION") or "none set"
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return UserError, (
            f"no credentials for '{url}': set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a "
            "profile of ~/.aws/config"
        )
    if isinstance(error, exceptions.ProfileNotFound):
        return UserError, f"there is no AWS profile '{os.environ.get('AWS_PROFILE')}' in ~/.aws/config (AWS_PROFILE)"
    if isinstance(error, exceptions.ClientError):
        details = error.response.get("Error", {})
        code = str(details.get("Code", ""))
        operation = error.operation_name
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in WRONG_KEY:
            return (
                UserError,
                f"wrong key for '{url}': {endpoint} does not accept AWS_ACCESS_KEY_ID with this secret ({code})",
            )
        if code in EXPIRED:
            return (
                UserError,
                f"the credentials for '{url}' have expired ({code}): get new ones and run the command again",
            )
        if code in MISSING_BUCKET:
            return UserError, f"there is no bucket '{bucket}' at {endpoint}: create it, or correct the URL '{url}'"
        if code in WRONG_REGION or status == 301:
            actual = details.get("Region") or error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get(
                "x-amz-bucket-region", "another region"
            )
            return (
                UserError,
                f"wrong region for '{url}': the bucket is in {actual}; set AWS_DEFAULT_REGION (now {region})",
            )
        if code in DENIED or status == 403:
            return (
                UserError,
                f"no permission for {operation} on '{url}': ask for read, write, list and delete on it ({code})",
            )
        if status >= 500 or code in ("SlowDown", "InternalError", "ServiceUnavailable"):
            return ServiceUnavailableError, (
                f"{endpoint} failed {ATTEMPTS} times in a row for '{url}' ({code or status}): it is overloaded or "
                "down. The same command continues when it is back"
            )
        return UserError, None
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
    if isinstance(error, connection) or type(error).__module__.startswith("aiohttp"):
        return (
            ServiceUnavailableError,
            f"cannot reach {endpoint} for '{url}': check AWS_ENDPOINT_URL and the network ({type(error).__name__})",
        )
    if isinstance(error, ValueError) and "endpoint" in str(error).lower():
        return UserError, f"AWS_ENDPOINT_URL is not a URL: '{endpoint}'"
    return UserError, None
