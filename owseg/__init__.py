"""Open-world segmentation learned from captions: encoders, methods, losses, training, evaluation. Tensors in, tensors out."""


class InputError(ValueError):
    """The user's mistake: the message is one line that names the file or key and says what to do."""
