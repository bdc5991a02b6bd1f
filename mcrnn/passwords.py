"""Keep passwords out of everything that is printed or recorded."""

from __future__ import annotations

import re
from typing import Any

USER_AND_PASSWORD = re.compile(r"(://[^\s:/]*):\S+@")
"""`://USER:PASSWORD@` of a URL. A password may hold any character, also @ and /, so that it ends at the last @."""
PARAMETER = re.compile(
    r"""([?&;\#][^\s=&;?\#]*(?:password|passwd|pwd|token|secret|key|odbc_connect)[^\s=&;?\#]*=)
    [^&\s]+?(?=['")\]}>,.;]*(?:[&\s]|$))""",
    re.IGNORECASE | re.VERBOSE,
)
"""A query parameter whose name says that its value is secret. What closes a sentence after it is not of the value.
`odbc_connect` holds a whole connection string, with the password in it."""


def mask_passwords(text: str) -> str:
    """Replace the passwords of the URLs in a text by ***.

    They are masked wherever a URL can have them: between user and host, and in query parameters such as
    `?sslpassword=` or `&access_token=`. Where it is not clear where a password ends, too much is masked.
    """
    return PARAMETER.sub(r"\1***", USER_AND_PASSWORD.sub(r"\1:***@", text))


def without_passwords(content: Any) -> Any:
    """Return the content of a JSON or YAML file with the passwords in all of its texts masked."""
    if isinstance(content, str):
        return mask_passwords(content)
    if isinstance(content, dict):
        return {key: without_passwords(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_passwords(value) for value in content]
    return content
