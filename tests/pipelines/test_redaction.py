"""Secrets are found by their name, by their form and by being in the environment; ordinary text stays."""

import logging

import pytest

from pipelines.config import BuildConfig, TrackingConfig
from pipelines.plain import flattened, plain
from pipelines.redaction import RedactingFormatter, redacted, redacted_text

TOKEN = "hf_" + "aB3dE5fG7h" * 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"401 for {TOKEN}: check it", "401 for ***: check it"),
        ("http://me:pw@host:5000/x failed", "http://***@host:5000/x failed"),
        ("http://me:p@ss@host/x", "http://***@host/x"),
        ("key AKIAIOSFODNN7EXAMPLE", "key ***"),
        ("aws_secret_access_key = wJalrXUt/K7MDENG+bPx", "aws_secret_access_key = ***"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("{'Authorization': 'Basic bWU6cHc='}", "{'Authorization': '***'}"),
        ("https://h/x?X-Amz-Signature=ab12&part=1&token=zz", "https://h/x?X-Amz-Signature=***&part=1&token=***"),
        ('{"hf_token": "abc", "size": 3}', '{"hf_token": "***", "size": 3}'),
        ("from eyJhbGciOi.eyJzdWIi.SflKxwRJ", "from ***"),
    ],
)
def test_secrets_in_text_are_hidden_and_the_rest_is_kept(text: str, expected: str) -> None:
    assert redacted_text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "num_new_tokens=64 eos_token=5 max_num_tokens: 3",
        "pipelines/convert/hf_tokenizer.py, sha256:" + "0" * 64,
        "the tokenizer has 3 tokens; basic training",
        "sqlite:////home/me/.enginewright/mlflow/mlflow.db",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert redacted_text(text) == text


def test_the_value_of_a_secret_environment_variable_is_hidden_wherever_it_turns_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "plain words as a secret")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pw")  # too short to be told from other text
    assert redacted_text("denied: plain words as a secret, pw") == "denied: ***, pw"


def test_settings_are_hidden_by_name_and_tokens_that_are_counted_are_not() -> None:
    settings = redacted(plain(BuildConfig(tracking=TrackingConfig(uri="https://me:pw@host/x"))))
    assert settings["tracking"]["uri"] == "https://***@host/x"
    assert dict(flattened(settings))["verify.num_new_tokens"] == 64
    hidden = redacted({"hf_token": "t", "password": "p", "api_key": ["k"], "tokenizer": "kept", "eos_token": "kept"})
    assert hidden == {
        "hf_token": "***", "password": "***", "api_key": ["***"], "tokenizer": "kept", "eos_token": "kept"
    }  # fmt: skip


def test_a_log_hides_secrets_in_arguments_and_in_exceptions() -> None:
    try:
        raise ValueError(f"bad {TOKEN}")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "", 1, "token=%s", ("abc",), (ValueError, error, None))
    text = RedactingFormatter("%(message)s").format(record)
    assert text.splitlines() == ["token=***", "ValueError: bad ***"]
