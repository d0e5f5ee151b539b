"""Names of models: Ollama's defaults, and nothing that could leave a folder."""

import pytest

from gmoe.library.name import InvalidName, ModelName

NAMES = [
    ("qwen3", ("registry.ollama.ai", "library", "qwen3", "latest"), "qwen3:latest"),
    ("Qwen3:30B-a3b", ("registry.ollama.ai", "library", "Qwen3", "30B-a3b"), "Qwen3:30B-a3b"),
    ("me/x", ("registry.ollama.ai", "me", "x", "latest"), "me/x:latest"),
    ("hf.co/user/repo:Q4_K_M", ("hf.co", "user", "repo", "Q4_K_M"), "hf.co/user/repo:Q4_K_M"),
    ("localhost:5000/a/b", ("localhost:5000", "a", "b", "latest"), "localhost:5000/a/b:latest"),
    ("https://example.com/a/b:c", ("example.com", "a", "b", "c"), "example.com/a/b:c"),
    ("registry.ollama.ai/library/x:y", ("registry.ollama.ai", "library", "x", "y"), "x:y"),
]
REFUSED = ["", ":x", "a:", "../x", "a/../b", "a/b/c/d", "/etc/passwd", "a//b", ".hidden", "a:..", "a b", "a\\b", "a\0b"]
REFUSED += ["x:../../y", "-x", "a:-b", "..", "x" * 81, "a:b\n", "~/x", "host/../x:y", "a..b"]


@pytest.mark.parametrize(("text", "parts", "printed"), NAMES)
def test_defaults_are_filled_in_and_left_out(text: str, parts: tuple[str, ...], printed: str) -> None:
    name = ModelName.parse(text)
    assert tuple(name) == parts
    assert str(name) == printed
    assert ModelName.parse(printed) == name


@pytest.mark.parametrize("text", REFUSED)
def test_what_could_be_a_path_is_refused(text: str) -> None:
    with pytest.raises(InvalidName, match="is not a model name"):
        ModelName.parse(text)


def test_letters_keep_their_case_but_do_not_count() -> None:
    assert ModelName.parse("Qwen3").same(ModelName.parse("qwen3:LATEST"))
    assert not ModelName.parse("qwen3").same(ModelName.parse("qwen2"))
