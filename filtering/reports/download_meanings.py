"""What the reasons mean for which a link gave no image, and what one can do about each, in plain words."""

from http import HTTPStatus
from typing import NamedTuple

from filtering.images.reasons import Failure, failure_of


class Meaning(NamedTuple):
    """`says` what happened; `advice` what one can do, "" if nothing is known beyond the advice for its class."""

    says: str
    advice: str = ""


CLASSES: dict[Failure, Meaning] = {
    "permanent": Meaning(
        "gone, or never was an image", "remembered and never asked again, unless the next run has --retry permanent"
    ),
    "transient": Meaning("may work on another day", "asked again by the next run"),
    "policy": Meaning("refused by the rules and limits of this run", "loosen the rule if you want them, then run again"),
}

_SHRINK = "the file is broken at its source"
_REASONS = {
    "dns": Meaning(
        "The name server failed, or did not answer.",
        "asked again by the next run; if there are many, your name server is overloaded: name more of them in "
        "download.fetch.nameservers",
    ),
    "dns_unknown": Meaning("The name of the host no longer exists.", "the site is gone"),
    "connect": Meaning("The server could not be reached, or hung up before it answered."),
    "tls": Meaning(
        "The server's certificate or encryption is not valid.", "often expired certificates; asked again by the next run"
    ),
    "timeout": Meaning(
        "No image within the time limits.",
        "asked again by the next run; download.fetch.timeout says how long an image may take",
    ),
    "incomplete": Meaning("The connection broke before the whole file had come."),
    "unknown_coding": Meaning(
        "The host sent the image packed in a way that is not undone here.",
        "asked again by the next run; br and zstd need the packages of the extra named download",
    ),
    "http_206": Meaning("The host sent a part of the image, though all was asked for."),
    "host_down": Meaning(
        "Not asked: the host had failed many times in a row, or asked to wait longer than download.fetch.max_wait."
    ),
    "http_401": Meaning("The host asks for a password."),
    "http_403": Meaning(
        "The host refuses.", "a contact in download.fetch.contact may help; some hosts refuse whatever is no browser"
    ),
    "http_404": Meaning("The host has no such file.", "link rot: there is nothing to ask again for"),
    "http_410": Meaning("The file was removed for good.", "link rot: there is nothing to ask again for"),
    "http_429": Meaning(
        "The host was asked too often.", "asked again by the next run; a lower download.fetch.per_host_rate may help"
    ),
    "http_451": Meaning("The file is withheld for legal reasons."),
    "bad_url": Meaning("The address is not one.", "mend it in the source"),
    "bad_http": Meaning("What answered does not speak HTTP, or not so that it could be understood."),
    "bad_scheme": Meaning("The address is neither http nor https.", "only these two are ever opened"),
    "forbidden_address": Meaning(
        "The name leads into a private or local network.",
        "never asked, for safety; download.fetch.allow opens networks of your own",
    ),
    "opt_out": Meaning(
        "The host asks not to use its images for training.",
        "this is respected; download.fetch.respect_opt_out is the switch",
    ),
    "too_large": Meaning("The file has more bytes than allowed.", "download.fetch.max_bytes is the limit"),
    "too_many_redirects": Meaning("The address leads to another, and so on.", "download.fetch.max_redirects is the limit"),
    "client_error": Meaning(
        "Our client stumbled over the answer.", "error_message in the tables says at what; please report one"
    ),
    "too_small": Meaning("The image's shorter side is too short.", "download.image.min_side is the limit"),
    "too_elongated": Meaning("The image is too long and thin.", "download.image.max_aspect is the limit"),
    "too_many_pixels": Meaning("The image has too many pixels to be decoded.", "download.image.max_area is the limit"),
    "too_costly": Meaning(
        "The image takes more processor time or memory than any should, or has too many parts.",
        "often made to harm; download.image.max_seconds is the limit of time",
    ),
    "unsupported_format": Meaning(
        "An image of a format that is not decoded here: SVG, HEIC, TIFF, an icon, ...",
        "error_message in the tables says which",
    ),
    "not_an_image": Meaning("What came is no image, most often a page that says that the image is gone."),
    "truncated": Meaning("The image's file ends too early.", _SHRINK),
    "undecodable": Meaning("The image cannot be decoded.", _SHRINK),
    "no_image": Meaning("The sample of the source has no image."),
    "no_such_sample": Meaning("The source has no sample of this name.", "was its tar changed since the filter ran?"),
}


def meaning_of(status: str) -> Meaning:
    """What a status means; the advice is that of its class where there is no better."""
    failure = failure_of(status)
    found = _REASONS.get(status) or Meaning(_of_http(status))
    return found if found.advice or failure is None else Meaning(found.says, CLASSES[failure].advice)


def _of_http(status: str) -> str:
    code = status.removeprefix("http_")
    try:
        phrase = HTTPStatus(int(code)).phrase
    except ValueError:
        return "A reason that this report has no words for." if code == status else f"The host answered with code {code}."
    return f"The host answered {phrase!r}."
