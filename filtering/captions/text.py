"""Caption text: the views of it that rules and the tagger look at."""

import re

PERSON_TOKEN = "<PERSON>"
"""CC12M writes this in place of people's names."""

MAX_TAGGED = 10_000
"""Characters of a caption that the tagger reads, whatever the rules let through."""

PASSAGE = 7
"""Words in a row that no person says twice in a caption."""

_STAND_IN = "Alex"  # a name that is no thing: the tagger reads "<PERSON>" as a proper noun
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SMALL_WORDS = frozenset(
    case(word)
    for word in ("a", "an", "and", "as", "at", "by", "for", "from", "in", "into", "is", "of", "on", "or", "the", "to", "with")
    for case in (str.lower, str.capitalize, str.upper)
)
_SHOUTED = re.compile(r"\b[A-Z]{4,}\b")


def words(caption: str) -> list[str]:
    """The words of a caption in lower case, without punctuation; CC12M's person token is none of them."""
    return _WORD.findall(caption.replace(PERSON_TOKEN, " ").lower())


def says_twice(caption: str) -> bool:
    """Whether `PASSAGE` words in a row are there again: titles and templates do so, sentences do not."""
    found = words(caption)
    passages = [tuple(found[at : at + PASSAGE]) for at in range(len(found) - PASSAGE + 1)]
    return len(set(passages)) < len(passages)


def normalised(caption: str) -> str:
    """What two captions have in common when they differ in case, punctuation or spacing alone."""
    return " ".join(_WORD.findall(caption.casefold())) or caption


def for_tagging(caption: str) -> tuple[str, bool]:
    """The caption as a tagger should read it, and whether it was put in lower case because its capitals say nothing.

    In Title Case and ALL CAPS every noun would look like a proper name. A caption counts as such when most of its words
    (small ones and a capitalised first one aside) open with a capital. Single shouted words are lowered wherever they
    stand. CC12M's person token becomes a name.
    """
    text = caption[:MAX_TAGGED].replace("_", " ")
    if text.islower():  # also the person token has capitals
        return text, False
    text = text.replace(PERSON_TOKEN, _STAND_IN)
    opening = [word[0] for word in text.replace("-", " ").split() if word[0].isalpha() and word not in _SMALL_WORDS]
    judged = opening[1:] if len(opening) > 1 and opening[0].isupper() else opening
    if sum(map(str.isupper, judged)) > 0.75 * len(judged):
        return text.lower().replace(_STAND_IN.lower(), _STAND_IN), True
    return _SHOUTED.sub(lambda match: match[0].lower(), text), False
