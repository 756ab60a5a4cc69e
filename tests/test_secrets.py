"""No password survives in a text that is shown, whatever it holds and wherever it stands."""

from __future__ import annotations

import string
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer_bo.errors import TransferError
from transfer_bo.secrets import MASK, hide_passwords

LETTERS = string.ascii_uppercase
"""Only passwords hold capital letters in these tests, so one that is left in the text is a leak."""
PASSWORDS = st.text(LETTERS + "/@:%?#+;,.*$!'\"\\", min_size=1, max_size=12).filter(
    lambda text: set(text) & set(LETTERS)
)
IN_USER_PART = st.sampled_from(
    [
        "postgresql://me:{}@host/db",
        "postgresql+psycopg://me:{}@host:5432/db?sslmode=require",
        "grpc://me:{}@host:13000",
        "redis://:{}@host",
        "mysql://me@corp:{}@[::1]:3306/db",
        "nosuchdialect://:{}@host/db",
    ]
)
IN_QUERY = st.sampled_from(
    ["postgresql://host/db?user=me&password={}", "postgresql://me@host:5432/db?sslpassword={}&a=b"]
)
AROUND = st.sampled_from(
    ["{}", "storage = {!r}", "could not connect to {} (timeout)", '{{"url": "{}"}}', "{};", "{}\nat line 3"]
)


@st.composite
def addresses(draw: st.DrawFn) -> str:
    """An address with a password, inside other text."""
    password = draw(PASSWORDS)
    if draw(st.booleans()):
        address = draw(IN_USER_PART).format(password)
    else:
        address = draw(IN_QUERY).format(password.replace("&", "%26"))
    return draw(AROUND).format(address)


@given(st.lists(addresses(), min_size=1, max_size=4), st.sampled_from([" ", "\n", ", ", ","]))
def test_no_password_survives(texts: list[str], between: str) -> None:
    """In the user part or the query of any number of addresses, whatever characters it holds."""
    shown = hide_passwords(between.join(texts))

    assert set() == set(shown) & set(LETTERS)
    assert MASK in shown


@given(st.text(string.ascii_letters + " /@:%", min_size=1).filter(lambda t: set(t) & set(LETTERS)))
def test_encoded_passwords_do_not_survive(password: str) -> None:
    """Spaces and other characters as an address encodes them."""
    encoded = quote(password, safe="")

    assert encoded not in hide_passwords(
        f"postgresql://m:{encoded}@h, then postgresql://h/d?password={encoded}"
    )
    assert encoded not in str(TransferError(f"no study at postgresql://m:{encoded}@h."))


@pytest.mark.parametrize(
    "text",
    [
        "host=h password=SECRET user=me",
        "host=h password='SEC RET \\' X' user=me",
        "{'user': 'me', 'password': 'SEC,RET'}",
        '{"api_key": "SECRET", "aws_secret_access_key": "SECRET"}',
        "PGPASSWORD=SECRET psql",
        *("access_token=SECRET", "https://h/x?token=SECRET&a=b", '{"token": "SECRET"}', "secret_key=SECRET"),
        *(
            "psql --password SECRET -h h",
            "Authorization: Bearer SECRET",
            "'Authorization': 'Basic SECRET'",
            "DB_PASS=SECRET",
            "pw=SECRET",
        ),
        *("https://SECRET@github.com/me/x", "https://s3/x?X-Amz-Signature=SECRET", "credentials: SECRET"),
        *("postgresql%3A%2F%2Fme%3ASECRET%40host%2Fdb", "postgresql:\\/\\/me:SECRET@host\\/db"),
        *("postgresql://me/you:SECRET@host/db", "could not open 'postgresql://me:SECRET"),
        *("hf_SECRETSECRETSECRET", "pushed with ghp_SECRETSECRET0123456789"),
    ],
)
def test_connection_options_are_hidden(text: str) -> None:
    """Passwords also stand in lists of options, dictionaries and environment variables."""
    shown = hide_passwords(text)

    assert "SEC" not in shown
    assert "RET" not in shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "see https://example.org/a:b",
        "12:30@noon",
        "sqlite:////tmp/a@b.db",
        "the word password is fine",
        "Scale(width=64, tokens=2e6)",
        "two lines\nhttp://host:8080/x\nme@host",
        *(
            "grpc://host:13000",
            "tokens=2000, max_token: 5, token = 7",
            "http://[::1]:80/x",
            "first pass: 3.2",
        ),
        *("tokenizer=gpt2", "sig=0.5", "--tokens 5e9", "journal:///shared/study.log", "basic example: none"),
    ],
)
def test_other_text_stays(text: str) -> None:
    """What holds no password is left as it is."""
    assert text == hide_passwords(text)


def test_what_surrounds_a_password_stays() -> None:
    """User, host, database and the other options are needed to understand a message."""
    assert (
        "postgresql://me:***@host:5432/db?sslmode=require and postgresql://host/db?password=***&user=me"
        == hide_passwords(
            "postgresql://me:pa/s@s@host:5432/db?sslmode=require and postgresql://host/db?password=x@y&user=me"
        )
    )


@pytest.mark.parametrize("word", ["a", "a-", "a.", "x://", "password=", "x://u:p@"])
def test_long_texts_take_no_time(word: str) -> None:
    """A megabyte of base64 or a long list of addresses must not stop the program that logs it."""
    started = time.monotonic()
    hide_passwords(word * 50_000)

    assert time.monotonic() - started < 5.0
