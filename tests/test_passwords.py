"""Passwords of URLs are masked wherever a URL may have them, and nothing else is."""

from __future__ import annotations

import json

import pytest

from mcrnn.passwords import mask_passwords, without_passwords


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://lab:geheim@db/mcrnn", "postgresql://lab:***@db/mcrnn"),
        ("postgresql+psycopg://lab:ge@heim@db/mcrnn", "postgresql+psycopg://lab:***@db/mcrnn"),
        ("postgresql://lab:ge%40h%2Feim@db:5432/mcrnn", "postgresql://lab:***@db:5432/mcrnn"),
        ("postgresql://lab:g/e?h:e#im@db/mcrnn", "postgresql://lab:***@db/mcrnn"),
        ("postgresql://me@example.org:geheim@db/mcrnn", "postgresql://me@example.org:***@db/mcrnn"),
        ("redis://:geheim@cache", "redis://:***@cache"),
        ("postgresql://db/mcrnn?user=lab&password=ge@heim", "postgresql://db/mcrnn?user=lab&password=***"),
        ("postgresql://db/mcrnn?sslpassword=geheim&user=lab", "postgresql://db/mcrnn?sslpassword=***&user=lab"),
        ("mysql://db/mcrnn?passwd=geheim", "mysql://db/mcrnn?passwd=***"),
        ("mssql://db/mcrnn?a=b;PWD=geheim", "mssql://db/mcrnn?a=b;PWD=***"),
        ("mssql+pyodbc://?odbc_connect=UID%3Dlab%3BPWD%3Dgeheim", "mssql+pyodbc://?odbc_connect=***"),
        ("https://mlflow/?access_token=geheim", "https://mlflow/?access_token=***"),
        ("https://mlflow/?client_secret=geheim&x=1", "https://mlflow/?client_secret=***&x=1"),
        ("https://s3/a?X-Amz-Signature=1&apiKey=geheim", "https://s3/a?X-Amz-Signature=1&apiKey=***"),
        ("'postgresql://db/a?password=geheim' cannot be used.", "'postgresql://db/a?password=***' cannot be used."),
        ("from https://a:geheim@one to https://b:geheim@two", "from https://a:***@one to https://b:***@two"),
    ],
)
def test_password_is_masked_in_any_part_of_a_url(text: str, masked: str) -> None:
    assert mask_passwords(text) == masked
    assert "heim" not in masked


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000",
        "http://mlflow:5000/#/experiments/1?searchFilter=a",
        "s3://lab/mcrnn",
        "models:/mcrnn-ns@champion",
        "sqlite:////home/me@here/mlflow.db",
        "postgresql://lab@db/mcrnn?sslmode=require",
        "the key is: value, mail me@example.org",
    ],
)
def test_text_without_a_password_stays_as_it_is(text: str) -> None:
    assert mask_passwords(text) == text


def test_passwords_are_masked_in_all_texts_of_a_file_and_its_structure_stays() -> None:
    content = {
        "search": {"storage": 'postgresql://db/a?password=ge"heim', "trials": 3},
        "list": ["https://a:b@c", None],
    }
    masked = {"search": {"storage": "postgresql://db/a?password=***", "trials": 3}, "list": ["https://a:***@c", None]}
    assert json.loads(json.dumps(without_passwords(content))) == masked
