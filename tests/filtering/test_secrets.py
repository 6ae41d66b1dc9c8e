"""Secrets are masked wherever they may stand in a text; what only looks like one is left alone."""

import pytest

from filtering.secrets import holds_mask, masked, masked_tree


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:secret@host:5000", "http://user:***@host:5000"),
        ("https://user:p%40ss%2Fword@host/x", "https://user:***@host/x"),
        ("http://user:p@ss/word@host:80/x", "http://user:***@host:80/x"),  # not escaped, as people write it
        ("http://user:12345@host", "http://user:***@host"),
        ("https://ghp_abcdef@github.com/x", "https://***@github.com/x"),
        ("postgresql+psycopg2://me:secret@db/mlflow", "postgresql+psycopg2://me:***@db/mlflow"),
        ("s3://AKIA123:secret/key+x=@bucket/folder/*.parquet", "s3://AKIA123:***@bucket/folder/*.parquet"),
        ("simplecache::s3://AKIA:secret@bucket/x", "simplecache::s3://AKIA:***@bucket/x"),
        ("redis://:secret@h:1", "redis://:***@h:1"),
        ("https://b.test/x?X-Amz-Credential=AK%2F1&X-Amz-Signature=0f", "https://b.test/x?X-Amz-Credential=***&X-Amz-Signature=***"),
        ("https://b.test/x?sv=2024&sig=a%2Bb%3D&se=1", "https://b.test/x?sv=2024&sig=***&se=1"),
        ("https://b.test/x?width=3&token=abc#top", "https://b.test/x?width=3&token=***#top"),
        ("postgresql://db/x?user=me&password=secret", "postgresql://db/x?user=me&password=***"),
        ("connection to db failed: password=secret user=me", "connection to db failed: password=*** user=me"),
        ("headers {'Authorization': 'Basic dXNlcjpwdw=='}", "headers {'Authorization': '***'}"),
        ("no answer at 'http://u:pw@h:1' (refused)", "no answer at 'http://u:***@h:1' (refused)"),
    ],
)  # fmt: skip
def test_secrets_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown
    assert holds_mask(shown)
    assert not holds_mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://host:5000/~user@x/img.jpg",
        "http://[::1]:5000/x@y",
        "sftp://git@host/x",
        "s3://bucket/shards",
        "sqlite:////data/run/mlflow.db",
        "group_tokens: must be at least 1",
        "method_settings.ovsegmentor.group_tokens=8",
        "the secret of good captions: short words",
        "photos/**/*.jpg and ***",
        "a basic authentication of users",
        "see http://a.test:80, or mail x@y.test",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text
    assert not holds_mask(text)


def test_trees_are_masked_in_every_place() -> None:
    tree = {"uri": "http://u:p@h", "list": ["s3://k:s@b", 3, None], "inner": {"x": ("https://t@h/",)}}
    assert masked_tree(tree) == {
        "uri": "http://u:***@h",
        "list": ["s3://k:***@b", 3, None],
        "inner": {"x": ["https://***@h/"]},
    }
