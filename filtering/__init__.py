"""Image-caption corpora: links in, a filtered corpus and image shards out. Tables in, tables out; no Ray, no torch."""


class InputError(ValueError):
    """The user's mistake: the message is one line that names the file or key and says what to do."""
