"""What object stores and the libraries that reach them say, as our errors."""

from __future__ import annotations

import re

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004  botocore's, which Python's is not
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    SSLError,
    SSOTokenLoadError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)
from obstore import exceptions as obs

from mlmigrate.errors import DiskFull, MigrateError, NotFound, Refused, Unavailable
from mlmigrate.storage.objects import BadKey, Changed, Exists

_CODE = re.compile(r"<Code>([A-Za-z0-9]+)</Code>")
_STATUS = re.compile(r"non-2xx status code: (\d{3})|status: (\d{3})")
_WHY = re.compile(r"<Message>([^<]{1,200})</Message>")
REFUSED = {
    "AccessDenied": "these credentials may not do that",
    "AllAccessDisabled": "nobody may do that",
    "AuthorizationHeaderMalformed": "the signature is for another region",
    "InvalidAccessKeyId": "the access key is unknown there",
    "InvalidToken": "the session token is not valid",
    "ExpiredToken": "the credentials have expired",
    "ExpiredTokenException": "the credentials have expired",
    "TokenRefreshRequired": "the credentials have expired",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "AccountProblem": "there is a problem with the account",
    "KMS.AccessDeniedException": "the key that encrypts may not be used",
}
GONE = {
    "NoSuchBucket": "there is no such bucket",
    "NoSuchKey": "it is not there",
    "NoSuchUpload": "that upload is not there",
    "NotFound": "it is not there",
    "404": "it is not there",
}
FULL = ("QuotaExceeded", "XMinioStorageFull", "InsufficientCapacity", "EntityTooLarge")
AWAY = ("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException")
CHANGED = ("PreconditionFailed", "412")
NOBODY = (
    NoCredentialsError,
    SSOTokenLoadError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
    CredentialRetrievalError,
)
SILENT = (ConnectionError, HTTPClientError, IncompleteReadError)
_PROVIDER = re.compile(r"External AWS credential provider: (\w+)")  # our own, which asked botocore
RENEW = "Renew them, then run the same command again: it goes on."


def explain(error: Exception, place: str) -> MigrateError | None:  # noqa: PLR0911  a table of errors
    """Our error for one of boto3's or obstore's; None when it is a bug of ours."""
    if isinstance(error, ClientError):
        answer = error.response
        code = str(answer.get("Error", {}).get("Code", ""))
        status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return of_code(code, status, place, str(answer.get("Error", {}).get("Message", "")))
    if isinstance(error, NOBODY):
        return _no_credentials(place, type(error).__name__)
    if isinstance(error, SSLError):
        return _no_trust(place)
    if isinstance(error, SILENT):
        return Unavailable(f"{place} does not answer ({type(error).__name__}).")
    if isinstance(error, BotoCoreError):
        return MigrateError(f"{place}: {error}"[:400])
    if isinstance(error, obs.BaseError | ValueError | OSError):
        return _of_obstore(error, place)
    return None


def _of_obstore(error: Exception, place: str) -> MigrateError | None:  # noqa: PLR0911  a table of answers
    text = str(error)
    if isinstance(error, obs.AlreadyExistsError):
        return Exists(f"{place} is there already.")
    if strange_key(error):
        return BadKey(f"{place}: no object can be called so.")
    if isinstance(error, ValueError):
        return None
    if "InvalidCertificate" in text:
        return _no_trust(place)
    if asked := _PROVIDER.search(text):
        if any(asked[1] in (kind.__name__ for kind in _below(silent)) for silent in SILENT):
            return Unavailable(f"What gives credentials for {place} does not answer ({asked[1]}).")
        return _no_credentials(place, asked[1])
    code, status = _CODE.search(text), _STATUS.search(text)
    number = int(next(filter(None, status.groups()), 0)) if status else 0
    why = _WHY.search(text)
    found = of_code(code[1] if code else "", number, place, why[1] if why else "")
    if isinstance(error, obs.NotFoundError | FileNotFoundError) and not isinstance(found, NotFound):
        return NotFound(f"{place}: it is not there.")
    if isinstance(error, obs.PreconditionError):
        return Changed(f"{place} was written by somebody else meanwhile.", "Run the same command again.")
    if isinstance(error, obs.PermissionDeniedError | obs.UnauthenticatedError) and not isinstance(found, Refused):
        return Refused(f"{place}: these credentials may not do that.", "Ask for that right, or use others.")
    return found


def _no_credentials(place: str, why: str) -> Refused:
    return Refused(f"No valid credentials for {place} are found ({why}).", "aws sso login, perhaps")


def _no_trust(place: str) -> MigrateError:
    return MigrateError(f"{place}: the certificate of the store is not trusted.", "AWS_CA_BUNDLE names a file of CAs")


def _below(kind: type[Exception]) -> list[type[Exception]]:
    """A kind of error and all that are of it."""
    return [kind, *(one for direct in kind.__subclasses__() for one in _below(direct))]


def of_code(code: str, status: int, place: str, why: str = "") -> MigrateError:  # noqa: PLR0911  as above
    """The error that S3's code, or else the HTTP status, stands for."""
    if code in REFUSED:
        return Refused(f"{place}: {REFUSED[code]} ({code}).", RENEW if "expired" in REFUSED[code] else "")
    if code == "400":  # the answer to a HEAD has no text: Amazon says so when a token has expired
        return Refused(f"{place}: the credentials are not valid, or have expired (400).", RENEW)
    if code in GONE:
        return NotFound(f"{place}: {GONE[code]} ({code}).")
    if code in FULL or status == 507:  # noqa: PLR2004  HTTP's
        return DiskFull(f"{place} takes no more ({code or status}: {why}).", "Make room there, then run it again.")
    if code in CHANGED or status == 412:  # noqa: PLR2004  as above
        return Changed(f"{place} was written by somebody else meanwhile.", "Run the same command again.")
    if status in (401, 403):
        expired = "" if code and not code.isdigit() else ", or have expired"  # the answer to a HEAD does not say which
        hint = f"Ask for that right{', or renew them' if expired else ''}."
        return Refused(f"{place}: these credentials may not do that{expired} ({code or status}).", hint)
    if status == 404:  # noqa: PLR2004  as above
        return NotFound(f"{place}: it is not there.")
    if code in AWAY or not 400 <= status < 500 or status in (408, 425, 429):  # noqa: PLR2004  as above
        return Unavailable(f"{place} is busy or away ({code or status or 'no answer'}).")
    return MigrateError(f"{place}: the store refused ({code or status}{': ' + why if why else ''}).")


def strange_key(error: Exception) -> bool:
    """Whether obstore could not take a name for one of its own."""
    text = str(error)
    return "parsing Path" in text or "Could not parse path" in text or "empty path segment" in text
