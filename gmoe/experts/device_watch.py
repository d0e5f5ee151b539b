"""Watch: with gpu_memory="auto" the expert cache follows the memory that other programs leave on the device."""

import logging
import time
from collections.abc import Callable

from gmoe.experts.device_budget import RESERVE
from gmoe.experts.device_store import DeviceStore
from gmoe.experts.slots import least, share
from gmoe.experts.transfer import TransferError

EVERY = 3.0  # seconds between looks
PATIENCE = 4  # looks in turn that must find room before the cache grows: other programs come and go
WORTH = 1 / 8  # of the slots, which the cache must gain to grow: it begins empty then


class Watch:
    """`look` between passes. Bytes kept free: `work` of a pass, the reserve, and what passes were found to lack.

    The cache shrinks where half of the reserve is gone.
    """

    def __init__(self, store: DeviceStore, work: int, notices: list[str], clock: Callable[[], float] = time.monotonic):
        self.store, self.work, self.notices = store, work, notices
        self._clock, self._next, self._roomy = clock, clock() + EVERY, 0
        self._said = ""

    def look(self) -> None:
        """Measure and, where it is worth it, take fewer or more slots; at most once in `EVERY` seconds."""
        if self._clock() < self._next:
            return
        self._next = self._clock() + EVERY
        store = self.store
        before = store.slots if store.nbytes else 0
        free = store.device.free() - store.given_back
        counts = share(store.groups, max(store.nbytes + free - self.work - RESERVE, least(store.groups)))
        wanted, tight = sum(counts), free < self.work + RESERVE // 2
        self._roomy = self._roomy + 1 if wanted >= before + max(1, WORTH * before) else 0
        if not (tight and wanted < before) and self._roomy < PATIENCE:
            return
        self._roomy = 0
        try:
            store.resettle(counts)
        except TransferError as error:  # not all could be brought back at once; they are fetched when they are wanted
            logging.getLogger("gmoe").warning(str(error))
        self._next = self._clock() + EVERY
        why = "other programs left" if store.slots < before else "there is room again:"
        said = f"{why} {max(free, 0) >> 20} MiB on {store.device.torch}: its expert cache went from"
        self._say(f"{said} {before} to {store.slots} experts")

    def _say(self, said: str) -> None:
        """The last word replaces the one before."""
        if self._said in self.notices:
            self.notices.remove(self._said)
        self._said = said
        self.notices.append(said)
        logging.getLogger("gmoe").warning(said)
