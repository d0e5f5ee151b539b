"""Warm: while the CPU computes experts, a few that it is asked for are copied to the device beside it."""

from collections.abc import Sequence

from gmoe.experts.device_store import DeviceStore
from gmoe.experts.upload import BUFFERS

SHARE = 0.03  # of the CPU's seconds: what the host may spend on handing experts to copies that nobody waits for
PROBED = 2  # experts a request, where only the link is to be known
SAVED = 0.05  # seconds that are not spent at once


class Warm:
    """Fills slots before an answer pays for it, and shows how fast the link is while the cache is off."""

    def __init__(self, store: DeviceStore):
        self.store = store
        self.filling = False  # it would pay to have experts there
        self._credit = 0.0  # seconds
        self._probes = 0
        self._turn = 0

    def begin(self) -> None:
        """A request comes."""
        self._probes = PROBED

    def layer(self, layer: int, experts: Sequence[int], seconds: float) -> int:
        """The CPU took so long for these experts of a layer; how many of them the device does not have."""
        store = self.store
        before = store.staging_seconds
        absent = store.touch(layer, experts)
        self._credit = min(self._credit + SHARE * seconds, SAVED)
        if absent and self._credit > 0 and (self.filling or self._probes) and store.flying < BUFFERS:
            self._turn += 1
            store.prefetch([absent[self._turn % len(absent)]], ())
            self._probes = max(0, self._probes - 1)
        self._credit -= store.staging_seconds - before
        return len(experts) - int(store.here(layer)[list(experts)].sum())
