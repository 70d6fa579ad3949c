"""What is tried again, what is given up, and what is never shown."""

from types import SimpleNamespace

import pytest

from pipelines.tracking.client import TrackingError, brief, may_pass, public


class Refusal(Exception):
    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.error_code = code


class Upload(OSError):
    """As requests raise it: an OSError with the response."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} for url")
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionError("refused"), True),
        (OSError(28, "no space left on device"), True),
        (Refusal("connection reset", "INTERNAL_ERROR"), True),
        (Refusal("locked", "TEMPORARILY_UNAVAILABLE"), True),
        (Refusal("API request failed with error code 503 != 200", "INTERNAL_ERROR"), True),
        (
            Refusal("API request failed with error code 404 != 200", "ENDPOINT_NOT_FOUND"),
            True,
        ),  # a proxy without backend
        (Refusal("token expired", "UNAUTHENTICATED"), True),
        (Upload(502), True),
        (Upload(429), True),
        (Upload(413), False),
        (Refusal("API request failed with error code 413 != 200", "INTERNAL_ERROR"), False),
        (Refusal("invalid name", "INVALID_PARAMETER_VALUE"), False),
        (Refusal("no such run", "RESOURCE_DOES_NOT_EXIST"), False),
        (TrackingError("no model directory any more"), False),
        (KeyError("a bug"), False),
    ],
    ids=repr,
)
def test_only_what_may_pass_is_tried_again(error: Exception, again: bool) -> None:
    assert may_pass(error) is again


def test_passwords_and_long_stories_are_left_out() -> None:
    error = ConnectionError("http://me:secret@host:5000/api is down\n" + "details\n" * 99)
    assert brief(error) == "ConnectionError: http://***@host:5000/api is down"
    assert public("postgresql://u:p@db/mlflow") == "postgresql://***@db/mlflow"
    assert public("sqlite:////runs/mlflow.db") == "sqlite:////runs/mlflow.db"
