"""The part-of-speech tagger: a spaCy model of the user's choice, or the small one that ships in `model/`."""

from functools import cache
from pathlib import Path

import spacy
from spacy.language import Language

from filtering import InputError
from filtering.files import digest_of, digest_of_file

SHIPPED = Path(__file__).parent / "model"
COMMON_NOUNS = frozenset({"NN", "NNS"})
NOUNS = COMMON_NOUNS | {"NNP", "NNPS"}


def load_tagger(name: str = "") -> Language:
    """A pipeline that sets `token.tag_` to Penn Treebank tags; "" is the shipped tagger (see `model/README.md`).

    Only what the tagger needs is kept of a larger pipeline: no parser, no named entities, no lemmatizer.

    Raises:
        InputError: spaCy finds no such model, or the model does not tag with Penn Treebank tags.
    """
    return _load(name) if name else _shipped()


@cache
def _shipped() -> Language:
    """Loaded once: each pass of a corpus asks for it, and its files do not change."""
    return _load(str(SHIPPED))


def _load(name: str) -> Language:
    try:
        nlp = spacy.load(name)
    except (OSError, ValueError) as error:
        raise InputError(
            f"filter.tagger: spaCy cannot load {name!r}; install it (python -m spacy download {name}) "
            "or leave the key empty for the shipped tagger"
        ) from error
    if "tagger" not in nlp.pipe_names or not set(nlp.pipe_labels["tagger"]) >= COMMON_NOUNS:
        raise InputError(f"filter.tagger: {name!r} has no tagger with the Penn Treebank's NN and NNS; choose an English model")
    needed = {"tagger", "tok2vec", "transformer", "curated_transformer"}
    nlp.select_pipes(enable=[pipe for pipe in nlp.pipe_names if pipe in needed])
    return nlp


def tagger_digest(nlp: Language) -> str:
    """Changes with the files of a tagger: a model that is trained again under its old name and version is another one."""
    folder = nlp.path
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest_of([[path.relative_to(folder).as_posix(), digest_of_file(path)] for path in files])
