"""A small generated world: pictures with captions, a web server with its share of faults, and eight tiny benchmarks.

It is the default input of the whole chain and the data of its tests. The same configuration gives the same bytes.
It needs numpy and Pillow alone, and imports no other package of this project.
"""


class InputError(ValueError):
    """The user's mistake: the message is one line that names the file or key and says what to do."""
