"""BuddyMoE (2511.10054): the resident expert that most often fires with the missing one takes its place."""

from collections.abc import Mapping, Sequence

from gmoe.experts.expert_id import Action, ExpertId, Miss, Residency
from gmoe.experts.policy import MissPolicy, within


class Policy(MissPolicy):
    """`buddies` of each expert come from a trace: who fires with it most often first, up to 0.9 of its company.

    Not where a token is sure of its choice (entropy up to `tau`), nor where `beta` of the experts are missing or more,
    and at most `most` a layer; nobody serves twice. `tau` of 1: exact. Among buddies the paper also weighs the token's
    own scores and where they lie, by a formula that we do not know; here the order is the trace's alone.
    """

    def __init__(self, buddies: Mapping[ExpertId, Sequence[int]], tau: float = 0.95, beta: float = 0.5, most: int = 3):
        self.buddies = buddies
        self.tau, self.beta = within("tau", tau, 0, 1), within("beta", beta, 0, 1)
        self.most = int(within("most", most, 0, 1024))
        self.taken: set[int] = set()

    def meet(self, misses: Sequence[Miss]) -> None:
        self.taken = set()

    def resolve(self, miss: Miss, residency: Residency) -> Action:
        if self.tau >= 1 or miss.entropy <= self.tau or miss.missing >= self.beta or len(self.taken) >= self.most:
            return Action("load")
        for other in self.buddies.get(miss.id, ()):
            if (
                other not in self.taken
                and other not in miss.wanted
                and residency.resident(miss.id._replace(expert=other))
            ):
                self.taken.add(other)
                return Action("substitute", other)
        return Action("load")
