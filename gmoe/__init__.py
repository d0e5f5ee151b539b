"""gmoe: run Mixture-of-Experts GGUF models that do not fit where people want to run them."""

TYPE_CHECKING = False  # type checkers know this name; importing typing would take as long as all else here
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

_HOME = {
    "LLM": "gmoe.llm",
    "RuntimeOptions": "gmoe.options",
    "SamplingParams": "gmoe.engine.sampling",
    "Tokenizer": "gmoe.tokenizer.tokenizer",
}
__all__ = ["LLM", "RuntimeOptions", "SamplingParams", "Tokenizer", "__version__"]


def __getattr__(name: str) -> "Any":
    """The public names, imported when first asked for, so that `import gmoe` does not wait for torch."""
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'gmoe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
