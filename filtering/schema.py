"""The Arrow schemas that cross a stage boundary, and the key that follows a row through all of them."""

import hashlib

import pyarrow as pa

LINKS = pa.schema([("key", pa.string()), ("url", pa.string()), ("caption", pa.string())])
"""What a source is read into: one row per link. Rows of WebDataset tars carry `SAMPLE` as a fourth column, all the way."""

SAMPLE = pa.field("sample", pa.string())
"""Where the image of a row lies already: "<path of the tar>::<name of the sample>"."""

HAS_IMAGE = pa.field("has_image", pa.bool_())
"""Whether a sample of a tar has an image, until the rules have judged."""

SHARD = pa.field("_shard", pa.int32())
"""The shard that a row is on its way to, where there are too many shards for one shuffle (`filtering.partition`)."""

CORPUS = pa.schema([*LINKS, pa.field("entities", pa.list_(pa.string()))])
"""A kept row: `entities` are the canonical names that the caption mentions, in order of first mention."""

DROPPED = pa.schema([*CORPUS, pa.field("drop_reason", pa.string())])
"""A dropped row: the same columns and the name of the first rule that refused it."""

ENTITIES = pa.schema([("entity", pa.string()), ("count", pa.int64()), ("rank", pa.int32()), ("kept", pa.bool_())])
"""The entity vocabulary by falling frequency (number of captions that mention the entity)."""

FORMS = pa.schema(
    [
        ("form", pa.string()),
        ("entity", pa.string()),
        ("captions", pa.int64()),
        ("sampled", pa.int64()),
        ("accepted", pa.int64()),
    ]
)
"""A tally of the forms in which entities are written. It counts captions by the first form of each entity: in how many it
stands, how many of them the tagger read, and in how many of those it agreed. Tallies merge by addition."""

INDEX = pa.schema([("entity", pa.string()), ("key", pa.string())])
"""Which kept rows mention an entity, sorted by both columns."""

RESULT = pa.schema(
    [
        pa.field("status", pa.string()),
        pa.field("failure", pa.string()),
        pa.field("retryable", pa.bool_()),
        pa.field("error_message", pa.string()),
        pa.field("http_status", pa.int32()),
        pa.field("attempts", pa.int32()),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("phash", pa.string()),
        pa.field("original_width", pa.int32()),
        pa.field("original_height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
    ]
)
"""What became of a link: `status` is "success" or the reason, `failure` its class (`filtering.images.reasons`), and `retryable`
says whether asking again may help. `bytes` and `sha256` are those of the original file, `phash` is the kept image's."""

CAPTIONS = pa.schema(
    [
        pa.field("captions", pa.list_(pa.string())),
        pa.field("caption_entities", pa.list_(pa.list_(pa.string()))),
        pa.field("caption_keys", pa.list_(pa.string())),
    ]
)
"""Of an image with several captions all of them, in the order of their keys, with the entities and the key of each. The first
is that of the columns of CORPUS. Null where there is but one."""

STATUS = pa.schema([*CORPUS, *RESULT, *CAPTIONS])
"""A row of the download for each image. Columns that `filter.source.keep_columns` carries along come behind these."""

OWN_NAMES = frozenset({*STATUS.names, *DROPPED.names, SAMPLE.name, HAS_IMAGE.name, SHARD.name, "counts", "tar"})
"""Names of columns and fields of ours, which no column carried along from a source may have."""

KEY_LENGTH = 24


def key_of(url: str, caption: str) -> str:
    """The stable name of a link: 24 hex digits of the SHA-256 of url and caption (96 bits: no collision at 10^9 rows)."""
    return hashlib.sha256(f"{url}\0{caption}".encode("utf-8", "surrogatepass")).hexdigest()[:KEY_LENGTH]
