"""Admission: the contract of every policy, tasks that stay together, targets that are kept; on a clock of our own."""

import random

import pytest
from scripted_model import ScriptedModel, counting

from gmoe.engine import waiting
from gmoe.engine.admission import deadline, task
from gmoe.engine.engine import Engine
from gmoe.engine.sampling import SamplingParams
from gmoe.engine.sequence import Sequence

A_STEP, A_TOKEN = 0.010, 0.001  # seconds


class Clock:
    """Time passes only in the model."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class TimedModel(ScriptedModel):
    def __init__(self, clock):
        super().__init__(counting)
        self.clock = clock

    def __call__(self, batch):
        self.clock.now += A_STEP + A_TOKEN * len(batch.token_ids)
        return super().__call__(batch)


class Lab:
    """An engine on that clock; `order` are the sequences as they were admitted, `ended` when each was through."""

    def __init__(self, admission, max_sequences=2, chunk=64, context=1024):
        self.clock = Clock()
        self.engine = Engine(
            TimedModel(self.clock), context, max_sequences, "f32", chunk, admission=admission, clock=self.clock
        )
        self.order, self.ended, self.together = [], {}, []

    def add(self, n_prompt, n_new, first=0, **given):
        ids = [(first + i) % 50 for i in range(n_prompt)]
        seq = Sequence(ids, SamplingParams(temperature=0, max_tokens=n_new), reuse_prefix=False, **given)
        self.engine.add(seq)
        return seq

    def step(self):
        outputs = self.engine.step()
        running = self.engine.scheduler.running
        self.order = list(dict.fromkeys([*self.order, *(output.seq for output in outputs), *running]))
        self.together.append([seq.task for seq in running])
        self.ended |= {output.seq: self.clock.now for output in outputs if output.finish_reason}

    def finish(self):
        while self.engine.scheduler.waiting or self.engine.scheduler.running:
            self.step()
        return self


@pytest.mark.parametrize("admission", waiting.names())
def test_everybody_is_served_and_nothing_changes_a_token(admission):
    lab, rng = Lab(admission, max_sequences=3, context=64), random.Random(1)
    seqs = []
    for n in range(40):
        target = rng.choice([None, 0.001, 0.1, 5.0])
        named = rng.choice([None, "a", "b"])
        seqs.append(lab.add(rng.randint(1, 50), rng.randint(1, 8), n, task=named, target_seconds=target))
        for _ in range(rng.randint(0, 4)):
            lab.step()
        if n % 9 == 8:
            lab.engine.abort(rng.choice(seqs))
    lab.finish()
    for seq in seqs:
        assert seq.finish_reason in ("length", "abort")
        if seq.finish_reason == "length":
            assert list(seq.generated) == [(seq.ids[seq.n_prompt - 1] + 1 + i) % 50 for i in range(len(seq.generated))]
    assert len(lab.engine.scheduler.blocks._free) == len(lab.engine.scheduler.blocks.users)


def test_first_come_is_first_served():
    lab = Lab("first_come")
    seqs = [lab.add(4, 3, n, task="ab"[n % 2], target_seconds=0.1 * (9 - n)) for n in range(8)]
    assert lab.finish().order == seqs


def mixed_steps(lab):
    return sum(len(set(tasks)) > 1 for tasks in lab.together)


def test_requests_of_one_task_run_together():
    labs = {}
    for admission in ("first_come", "task"):
        labs[admission] = lab = Lab(admission)
        for n in range(12):
            lab.add(4, 6 + n % 3, n, task="translate" if n % 2 else "code")
        lab.finish()
    assert mixed_steps(labs["task"]) <= 3 < 20 < mixed_steps(labs["first_come"])
    assert len(labs["task"].ended) == 12


def test_prompts_that_are_alike_are_one_task():
    lab = Lab("task", max_sequences=1)
    words = random.Random(0)
    instructions = [[words.randrange(50) for _ in range(30)] for _ in range(2)]
    seqs = []
    for n in range(8):
        ids = instructions[n % 2] + [words.randrange(50) for _ in range(10)]
        seqs.append(Sequence(ids, SamplingParams(temperature=0, max_tokens=1 + (n == 0) * 5)))
        lab.engine.add(seqs[-1])
    policy = lab.engine.scheduler.admission
    assert [policy._task(seq) for seq in seqs] == ["group 1", "group 2"] * 4
    assert lab.finish().order == seqs[0::2] + seqs[1::2]


def test_nobody_is_overtaken_for_ever():
    lab = Lab("task", max_sequences=2)
    for _ in range(2):
        lab.add(4, 4, task="a")
    lab.step()
    other = lab.add(4, 4, task="b")
    for _ in range(200):
        if other in lab.order:
            break
        if len(lab.engine.scheduler.waiting) < 3:
            lab.add(4, 2, task="a")
        lab.step()
    assert other in lab.order
    assert lab.engine.scheduler.admission._overtaken[other] == task.PATIENCE


def test_a_long_prompt_waits_where_it_would_break_a_target():
    late = {}
    for admission in ("first_come", "deadline"):
        lab = Lab(admission)
        for _ in range(3):  # so that the costs are known
            lab.add(20, 20)
            lab.finish()
        began = lab.clock.now
        urgent = lab.add(10, 40, target_seconds=0.6)
        lab.step()
        lab.add(900, 4)
        lab.finish()
        late[admission] = lab.ended[urgent] - began > 0.6
        assert len(lab.ended) == 5
    assert late == {"first_come": True, "deadline": False}


def test_a_short_prompt_is_let_in_where_there_is_time():
    lab = Lab("deadline")
    lab.add(20, 20)
    lab.finish()
    began = lab.clock.now
    urgent = lab.add(10, 40, target_seconds=0.6)
    lab.step()
    long, short = lab.add(900, 4), lab.add(5, 4)
    lab.finish()
    assert lab.order[-3:] == [urgent, short, long]
    assert lab.ended[short] < lab.ended[urgent] <= began + 0.6


def test_who_misses_the_target_anyway_holds_nobody_up():
    lab = Lab("deadline")
    lab.add(20, 20)
    lab.finish()
    hopeless = lab.add(10, 40, target_seconds=0.01)
    lab.step()
    other = lab.add(100, 4)
    lab.step()
    assert lab.engine.scheduler.running == [hopeless, other]
    lab.finish()


def test_the_tightest_target_comes_first():
    lab = Lab("deadline", max_sequences=1)
    lab.add(2, 5)
    lab.step()
    loose, none, tight = (lab.add(4, 4, target_seconds=target) for target in (9.0, None, 1.0))
    lab.finish()
    assert lab.order[1:] == [tight, loose, none]


def test_costs_are_fitted_to_the_steps():
    policy = deadline.Policy()
    assert policy.cost() == (0.0, 0.0)
    policy.stepped(10, A_STEP + 10 * A_TOKEN)
    assert policy.cost() == pytest.approx((A_STEP + 10 * A_TOKEN, 0.0))
    for tokens in (1, 64, 3, 20):
        policy.stepped(tokens, A_STEP + tokens * A_TOKEN)
    assert policy.cost() == pytest.approx((A_STEP, A_TOKEN))


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="admission is 'luck'; it must be one of deadline, first_come, task"):
        Engine(ScriptedModel(), 64, 1, "f32", admission="luck")
