"""What an object store refuses, in one line with the cure; and what of its errors may pass by itself."""

import re

from storage import InputError

# Codes that S3 and those who speak its protocol send in the body of an error.
_CURES = (
    (r"NoSuchBucket", "there is no such bucket; create it, or correct the name"),
    (
        r"ExpiredToken|TokenRefreshRequired|RequestExpired",
        "the credentials have expired; get new ones, then run the same again",
    ),
    (
        r"PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocationConstraint|IncorrectEndpoint"
        r"|[Rr]eceived redirect without LOCATION|status code: 30[17]",
        "the bucket is in another region; set storage.region (or AWS_REGION) to the bucket's",
    ),
    (
        r"InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken",
        "the credentials are not valid there; look at AWS_ACCESS_KEY_ID",
    ),
    (r"RequestTimeTooSkewed", "this machine's clock is wrong; set it"),
    (
        r"169\.254\.169\.254|metadata\.google\.internal|instance metadata|MissingCredentials|[Nn]o credentials",
        "no credentials were found; set them in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
        "GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME and a key), or storage.anonymous=true",
    ),
    (
        r"AccessDenied|AllAccessDisabled|403 Forbidden|status code: 403",
        "access is denied; the credentials need the right to {need}",
    ),
    (r"401 Unauthorized|Unauthenticated", "the credentials are not valid there"),
    (r"invalid dns name|failed to lookup address|dns error", "the endpoint's name is unknown; look at storage.endpoint"),
)
_PASSES = re.compile(
    r"HTTP error|status code: (?:408|425|429|5\d\d)|(?:408|429|5\d\d) [A-Z]|timed? ?out|[Cc]onnection|SlowDown|InternalError"
    r"|error decoding response body|IncompleteBody|RequestTimeout|error sending request"
)
LONGEST = 300


def refused(url: str, error: BaseException, need: str) -> InputError | None:
    """What the user can do about an error; None where it is none of theirs. need: what was tried, such as "write"."""
    told = str(error)
    for pattern, cure in _CURES:
        if re.search(pattern, told) and not (pattern.startswith("invalid dns") and passes(error, dns=False)):
            return InputError(f"{url}: {cure.format(need=need)}")
    return None


def passes(error: BaseException, *, dns: bool = True) -> bool:
    """Whether an error may be gone when the same is asked again: the store is down, too busy, or cannot be reached."""
    told = str(error)
    return bool(_PASSES.search(told)) and (dns or "dns error" not in told)


def short(error: BaseException) -> str:
    """An error in a few words: without the address, the client's own structures and the store's XML."""
    told = str(error).partition("\n\nDebug source:")[0].partition("<?xml")[0]
    told = re.sub(
        r"^Generic \w+ error: |Error performing \w+ \S+ in [\d.]+\S+, after \d+ retries, max_retries: \d+, "
        r"retry_timeout: \S+\s+- ",
        "",
        told,
    )
    return " ".join(told.replace("Server returned non-2xx status code: ", "").split())[:LONGEST].rstrip(":")
