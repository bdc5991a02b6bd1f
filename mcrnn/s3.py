"""S3 through s3fs, with its errors in words that a user can act on."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

from mcrnn.errors import UserError

ATTEMPTS = 10
"""tries of a request before it counts as failed: some services refuse one in ten when they are busy"""

WRONG_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidClientTokenId", "AuthFailure"}
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
WRONG_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}
DENIED = {"AccessDenied", "Forbidden", "403", "AllAccessDisabled", "UnauthorizedAccess"}
MISSING_BUCKET = {"NoSuchBucket"}
TIMEOUTS = {"connect_timeout": 10, "read_timeout": 60}


def filesystem(asynchronous: bool = False) -> Any:
    """The file system of this process; made where it is used, for it does not survive a fork."""
    import s3fs

    return s3fs.S3FileSystem(
        asynchronous=asynchronous,
        use_listings_cache=False,
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None,
        config_kwargs={"retries": {"max_attempts": ATTEMPTS, "mode": "standard"}, **TIMEOUTS},
    )


@functools.cache
def filesystem_for_zarr() -> Any:
    """One for Zarr's own event loop, which nobody else would close at the end of the process."""
    from zarr.core.sync import sync

    files = filesystem(asynchronous=True)

    def close() -> None:
        with contextlib.suppress(Exception):
            sync(files._s3.close(), timeout=5)

    atexit.register(close)
    return files


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what s3fs raises into a UserError that names the cause; missing keys stay FileNotFoundError.

    A missing bucket is told apart from a missing key by the service's own code.
    """
    try:
        yield
    except (UserError, FileExistsError):
        raise
    except Exception as error:
        cause = _find_cause(error)
        message = _explain(url, cause)
        if message is None and isinstance(error, FileNotFoundError):
            raise FileNotFoundError(str(error)) from None
        if message is None:
            raise
        raise UserError(message) from None


def _find_cause(error: BaseException) -> BaseException:
    """The deepest error that botocore raised."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _explain(url: str, error: BaseException) -> str | None:
    from botocore import exceptions

    bucket = url.removeprefix("s3://").split("/", 1)[0]
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION") or "none set"
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return (
            f"no credentials for '{url}': set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a "
            "profile of ~/.aws/config"
        )
    if isinstance(error, exceptions.ProfileNotFound):
        return f"there is no AWS profile '{os.environ.get('AWS_PROFILE')}' in ~/.aws/config (AWS_PROFILE)"
    if isinstance(error, exceptions.ClientError):
        details = error.response.get("Error", {})
        code = str(details.get("Code", ""))
        operation = error.operation_name
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in WRONG_KEY:
            return f"wrong key for '{url}': {endpoint} does not accept AWS_ACCESS_KEY_ID with this secret ({code})"
        if code in EXPIRED:
            return f"the credentials for '{url}' have expired ({code}): get new ones and run the command again"
        if code in MISSING_BUCKET:
            return f"there is no bucket '{bucket}' at {endpoint}: create it, or correct the URL '{url}'"
        if code in WRONG_REGION or status == 301:
            actual = details.get("Region") or error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get(
                "x-amz-bucket-region", "another region"
            )
            return f"wrong region for '{url}': the bucket is in {actual}; set AWS_DEFAULT_REGION (now {region})"
        if code in DENIED or status == 403:
            return f"no permission for {operation} on '{url}': ask for read, write, list and delete on it ({code})"
        if status >= 500 or code in ("SlowDown", "InternalError", "ServiceUnavailable"):
            return (
                f"{endpoint} failed {ATTEMPTS} times in a row for '{url}' ({code or status}): it is overloaded or "
                "down. The same command continues when it is back"
            )
        return None
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
        return f"cannot reach {endpoint} for '{url}': check AWS_ENDPOINT_URL and the network ({type(error).__name__})"
    if isinstance(error, ValueError) and "endpoint" in str(error).lower():
        return f"AWS_ENDPOINT_URL is not a URL: '{endpoint}'"
    return None
