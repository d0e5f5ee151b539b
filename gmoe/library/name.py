"""ModelName: the name of a model as Ollama writes it, `[host/][namespace/]model[:tag]`."""

import re
from pathlib import PurePosixPath
from typing import NamedTuple

HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
_PARTS = {
    "host": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}"),
    "namespace": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"),
    "model": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
    "tag": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
}


class InvalidName(ValueError):
    """A text that names no model; its text is one sentence."""


class ModelName(NamedTuple):
    """Four parts, each safe as one folder name; letters keep their case, `same` ignores it."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> "ModelName":
        """Fill in Ollama's defaults; a scheme in front is dropped. Anything else is `InvalidName`."""
        rest = re.sub(r"^https?://", "", text)
        path, colon, tag = rest.rpartition(":")
        if not colon or "/" in tag:
            path, tag, colon = rest, TAG, ""
        pieces = path.split("/")
        if len(pieces) > 3:
            raise InvalidName(f"{text!r} is not a model name: it has more than host/namespace/model:tag")
        host, namespace, model = [HOST, NAMESPACE][: 3 - len(pieces)] + pieces
        name = cls(host, namespace, model, tag)
        for part, value in name._asdict().items():
            if not _PARTS[part].fullmatch(value) or ".." in value:
                raise InvalidName(f"{text!r} is not a model name: its {part} is {value!r}")
        return name

    def __str__(self) -> str:
        """The shortest text that parses to this name; the tag is always written."""
        hidden = 0 if self.host != HOST else 1 if self.namespace != NAMESPACE else 2
        return "/".join(self[hidden:3]) + f":{self.tag}"

    @property
    def path(self) -> PurePosixPath:
        """Where its manifest lies under `manifests/`."""
        return PurePosixPath(*self)

    def same(self, other: "ModelName") -> bool:
        """Equal but for the case of letters."""
        return [part.casefold() for part in self] == [part.casefold() for part in other]
