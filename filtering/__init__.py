"""Image-caption corpora: links in, a filtered corpus and image shards out. Tables in, tables out; no Ray, no torch."""

from storage import InputError as InputError
