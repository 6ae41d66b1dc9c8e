"""Where files are kept: object stores, their local copies, and who may write. Bytes in, bytes out; no captions, no models."""


class InputError(ValueError):
    """The user's mistake: the message is one line that names the file or key and says what to do."""
