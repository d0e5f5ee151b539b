"""Machine: what reading and computing experts costs, as numbers a replay can reckon with."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """Seconds and bytes a second; `replace` it to ask what another disk would do."""

    bandwidth: float = 1e9  # bytes/s at which experts come from the disk, several reads in flight
    latency: float = 0.0  # seconds until an idle disk delivers
    link: float = float("inf")  # bytes/s from host memory into the fast tier, where that is another one
    host: int = 0  # bytes of experts that host memory holds below the fast tier (LRU); 0: none
    expert_seconds: float = 1e-4  # to compute one expert for one row
    row_seconds: float = 0.0  # for each row more
    layer_seconds: float = 2e-4  # everything else of a layer
    step_seconds: float = 0.0  # everything else of a pass
