"""masked: a loaded model that does without some of its experts, bit for bit as the file without them would."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gmoe.layers.ffn import MoEFFN
from gmoe.layers.router import TopK
from gmoe.models.decoder import Decoder
from gmoe.passes.prune import Kept


def routed(model: Decoder) -> dict[int, Any]:
    """The blocks with experts, by layer."""
    return {block.layer: block for block in model.ffn if isinstance(block, MoEFFN)}


def router(block: Any) -> TopK:
    """The router of a block, which every architecture has from `topk`."""
    assert isinstance(block.route, TopK)
    return block.route


@contextmanager
def masked(model: Decoder, kept: Kept, used: int) -> Iterator[None]:
    """Within, routers know the experts `kept` alone, of which they choose `used`."""
    blocks = routed(model)
    routes = {layer: router(block) for layer, block in blocks.items()}
    with unrecorded(model):
        try:
            for layer, block in blocks.items():
                block.route = routes[layer].among(kept[layer], used)
            yield
        finally:
            for layer, block in blocks.items():
                block.route = routes[layer]


@contextmanager
def unrecorded(model: Decoder) -> Iterator[None]:
    """Within, no pass is one that was recorded before: whoever stands in its way is asked each time."""

    def heard(*event: Any) -> None:
        """A dispatch that somebody listens to is not recorded."""

    model.dispatch.observers.append(heard)
    try:
        yield
    finally:
        model.dispatch.observers.remove(heard)
