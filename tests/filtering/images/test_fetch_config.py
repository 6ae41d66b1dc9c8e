"""Settings of the fetcher that cannot be are named."""

import pytest

from filtering import InputError
from filtering.images.fetch_config import FetchConfig


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"timeout": 0}, "timeout"),
        ({"per_host": 0}, "per_host"),
        ({"backoff": -1}, "backoff"),
        ({"connect_to": {"h": "nowhere"}}, "connect_to"),
        ({"connect_to": {"h": "x:0"}}, "connect_to"),
        ({"connect_to": {"10.0.0.1": "x:80"}}, "connect_to"),
        ({"connect_timeout": 0}, "connect_timeout"),
        ({"first_byte_timeout": float("nan")}, "first_byte_timeout"),
        ({"per_host_rate": -1}, "per_host_rate"),
        ({"host_failures": 0}, "host_failures"),
        ({"contact": "a\r\nX-Evil: 1"}, "contact"),
        ({"user_agent": "a\nb"}, "user_agent"),
        ({"allow": ("10.0.0.1/8",)}, "allow"),
        ({"allow": ("localhost",)}, "allow"),
        ({"nameservers": ("dns.test",)}, "nameservers"),
        ({"nameservers": ("192.0.2.1:0",)}, "nameservers"),
        ({"nameservers": ("[::1]:99999",)}, "nameservers"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}: "):
        FetchConfig(**settings)  # type: ignore[arg-type]
