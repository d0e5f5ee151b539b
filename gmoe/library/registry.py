"""Registry: HTTP with one registry of models, which may ask for a token first."""

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import httpx

from gmoe.library.manifest import LibraryError

TIMEOUT = 30.0  # seconds without a byte
_NUMBER = re.compile(r"\[Errno -?\d+\] ")
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


class RegistryError(LibraryError):
    """The registry did not do what was asked; its text is one sentence."""


class Progress(NamedTuple):
    """One step of a pull or push; `total` and `completed` count bytes of the blob `digest`."""

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0


Report = Callable[[Progress], None]


class Registry:
    """A connection, usable from several threads; `headers` go with every request to `base`, and to no other host."""

    def __init__(self, base: str, headers: Mapping[str, str] | None = None, login: Mapping[str, str] | None = None):
        self.base = base
        try:
            self._client = httpx.Client(follow_redirects=True, timeout=TIMEOUT, headers=dict(headers or {}))
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise RegistryError(f"{base} cannot be asked through the proxy of the environment: {error}") from None
        self._login = dict(login or {})
        self._token = ""
        self._door = threading.Lock()

    def __enter__(self) -> "Registry":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    @contextmanager
    def ask(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, content: bytes | None = None
    ) -> Iterator[httpx.Response]:
        """A response whose body is still to be read; `url` may be relative to `base`. Raises what httpx raises."""
        url = urljoin(self.base, url)
        for first in (True, False):
            token = self._token
            own = urlsplit(url).netloc == urlsplit(self.base).netloc
            given = {**(headers or {}), **({"Authorization": token} if token and own else {})}
            with self._client.stream(method, url, headers=given, content=content) as response:
                challenge = response.headers.get("WWW-Authenticate", "")
                if not (first and own and response.status_code == 401 and challenge):
                    yield response
                    return
            self._authorize(challenge, token)

    def _authorize(self, challenge: str, refused: str) -> None:
        """Get a token as the challenge says, unless another thread has meanwhile."""
        with self._door:
            if self._token != refused:
                return
            kind, _, rest = challenge.partition(" ")
            named = dict(_CHALLENGE.findall(rest))
            if kind.lower() == "basic" and "username" in self._login:
                self._token = self._basic()
            elif "token" in self._login and refused != f"Bearer {self._login['token']}":
                self._token = f"Bearer {self._login['token']}"
            elif kind.lower() == "bearer" and "realm" in named:
                self._token = f"Bearer {self._ask_for_token(named)}"

    def _ask_for_token(self, named: Mapping[str, str]) -> str:
        realm, secure = named["realm"], self.base.startswith("https:")
        if secure and not realm.startswith("https:"):
            raise RegistryError(f"{self.base} wants a token from {realm}, which is not encrypted")
        query = {key: named[key] for key in ("service", "scope") if key in named}
        headers = {"Authorization": self._basic()} if "username" in self._login else {}
        response = self._client.get(realm, params=query, headers=headers)
        if response.status_code != 200:
            raise RegistryError(f"{realm} gave no token: {response.status_code} {response.reason_phrase}")
        try:
            answer = response.json()
            return str(answer.get("token") or answer["access_token"])
        except (ValueError, KeyError, AttributeError):
            raise RegistryError(f"{realm} gave no token") from None

    def _basic(self) -> str:
        pair = f"{self._login['username']}:{self._login.get('password', '')}"
        return "Basic " + base64.b64encode(pair.encode()).decode()


def login_of(file: Path, host: str) -> dict[str, str]:
    """What `file` says of a host: {"host": {"token": ...} or {"username": ..., "password": ...}}; nothing is fine."""
    try:
        known: Any = json.loads(file.read_bytes())
        return {str(key): str(value) for key, value in known.get(host, {}).items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise RegistryError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError):
        raise RegistryError(f"{file} is not a JSON object of hosts and their logins") from None


def reason(error: Exception) -> str:
    """What went wrong on the way, in the system's words without its numbers."""
    return _NUMBER.sub("", str(error).partition("\n")[0]) or type(error).__name__


def require(response: httpx.Response, *statuses: int) -> None:
    """A `RegistryError` unless the status is one of these; it has the registry's own words where there are some."""
    if response.status_code in statuses:
        return
    said = ""
    try:
        body = json.loads(response.read())
        said = str(body["errors"][0]["message"] if "errors" in body else body["error"])
    except (ValueError, KeyError, TypeError, IndexError, httpx.HTTPError):
        pass
    url = str(response.request.url).partition("?")[0]
    text = f"{url} answered {response.status_code} {response.reason_phrase}"
    raise RegistryError(f"{text}: {' '.join(said.split())[:200]}" if said else text)
