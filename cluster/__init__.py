"""The only home of Ray, DeepSpeed and MLflow: runs the libraries' work on many processes and keeps track of it."""


class InputError(ValueError):
    """The user's mistake: the message is one line that names the file or key and says what to do."""
