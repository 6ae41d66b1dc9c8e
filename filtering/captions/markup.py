"""Traces of web pages in captions: tags, addresses, file names, sites."""

import re

_TAGS = (
    "a|abbr|b|big|blockquote|body|br|button|center|cite|code|dd|del|div|dl|dt|em|embed|figcaption|figure|font|footer|form|h[1-6]"
    "|head|header|hr|html|i|iframe|img|input|ins|label|li|link|main|meta|nav|object|ol|option|p|param|picture|pre|q|s|script"
    "|section|select|small|source|span|strike|strong|style|sub|sup|svg|table|tbody|td|textarea|tfoot|th|thead|title|tr|tt|u|ul"
    "|var|video|wbr|xml|[a-z]+:[a-z]+"
)
_TRACES = re.compile(
    rf"(?i)</?({_TAGS})(/?>|[\s/][^<>]*>)|<!--|<!doctype|\{{\{{|\}}\}}|&#?\w+;"  # tags, templates, left entities
    r"|\[/?(caption|url|img|b|i)(\]|=| \w+=)"  # forum code
    r"|https?:|\bwww\."  # addresses
    r"|\w\.(jpe?g|png|gif|webp|bmp|tiff?|svg|pdf|mp4|html?|php|aspx?)\b"  # file names
    r"|\b(img|dsc|dscn|dscf|screenshot)[_-]?\d{3,}"  # what cameras call their files
)
_SITE = re.compile(r"(?i)\w\.(com|org|net)\b")
_ARTICLE = re.compile(
    r"\b(a|an|the|his|her|their|its|two|three|several|some|this|that)\b(?!\.)|\A(A|An|The|Two|Three|Several) [a-z]"
)
_SELLS = re.compile(
    r"(?i)\b(buy|shop|visit|order|online|download|check out|see more|more at|read|click|find|get|watch|courtesy of|via)\b"
    r"|[|•»]|\b(at|on|from|by|for) \S+\.(com|org|net)\W*\Z"
)


def is_markup(caption: str) -> bool:
    """Traces of a page, or a site's name unless it stands in a person's sentence ("a man in a cap of example.com")."""
    if _TRACES.search(caption):
        return True
    return bool(_SITE.search(caption)) and (not _ARTICLE.search(caption) or bool(_SELLS.search(caption)))


MAYBE = f"{_TRACES.pattern}|{_SITE.pattern}".replace("(?i)", "")
"""Matches, in any case, whatever `is_markup` may find in ASCII; also in RE2's syntax."""
