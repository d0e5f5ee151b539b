"""LLM: the one place that assembles the parts; text in, events out."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch

from gmoe.engine import timing
from gmoe.engine.choices import on_device, require_available
from gmoe.engine.constraint import Grammars
from gmoe.engine.engine import BLOCK_SIZE, Engine
from gmoe.engine.loop import EngineLoop
from gmoe.engine.replay import Replay
from gmoe.engine.sampler import Logprobs
from gmoe.engine.sampling import SamplingParams
from gmoe.engine.selfcheck import prepare
from gmoe.engine.sequence import Sequence as TokenSequence
from gmoe.engine.speculation import Speculation
from gmoe.engine.state_slots import n_slots
from gmoe.engine.steps import Steps
from gmoe.engine.suggested import suggested
from gmoe.experts import calibration
from gmoe.experts.budget import CHUNKS, USUAL, Budget, budget_of, fixed_tensors
from gmoe.experts.cache import ExpertCache
from gmoe.experts.device import open_device, out_of_memory, speaks
from gmoe.experts.device_auto import on_best
from gmoe.experts.device_budget import KV_SHARE
from gmoe.experts.device_cache import DeviceCache
from gmoe.experts.device_dispatch import tiers
from gmoe.experts.device_store import DeviceStore
from gmoe.experts.expert import Routing
from gmoe.experts.fingerprint import header
from gmoe.experts.memory import available, return_freed
from gmoe.experts.recorder import Recorder
from gmoe.experts.store import kept
from gmoe.experts.transfer import TransferError
from gmoe.gguf.file import GGUFFile
from gmoe.gguf.layout import ExpertLayout
from gmoe.kernels import cpu_ops
from gmoe.kernels.cpu_ops import Guard
from gmoe.kernels.triton import tuned
from gmoe.layers.weights import Weights
from gmoe.library.find import Package, find
from gmoe.library.home import home
from gmoe.library.modelfile import Modelfile
from gmoe.loadable import hparams_of, options_to_load
from gmoe.machine import usable_cores
from gmoe.models import decoder
from gmoe.options import RuntimeOptions
from gmoe.text import TextStream, text_events
from gmoe.tokenizer.breakers import Breakers
from gmoe.tokenizer.gochat import template_of
from gmoe.tokenizer.parsers.choose import dialect_of, known, marks_of, parser_for
from gmoe.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")

Message = Mapping[str, Any]


class LLM:
    """A loaded model; use it as a context manager. `notices` holds what was decided for the user and should be said."""

    def __init__(
        self,
        file: GGUFFile,
        options: RuntimeOptions,
        package: Package | None = None,
        progress: Callable[[str], None] = lambda said: None,
    ):
        require_available(options)
        threads = options.threads or usable_cores()
        torch.set_num_threads(threads)  # the kernels ask torch how many
        activations = cast(Literal["q8", "float"], options.activations)
        kv_type = cast(Literal["f16", "bf16", "f32", "q8_0"], options.kv_type)
        options, setting = calibration.chosen(options, file)
        self.file, self.options = file, options
        name = str(file.path)
        self.hparams = hparams_of(file)
        self.tokenizer = Tokenizer.from_gguf(file.metadata, name)
        self._grammars = Grammars(self.tokenizer)
        self.modelfile = package.modelfile if package else Modelfile(())
        self.suggested, said_of = suggested(file.metadata, name)  # by the file, for where nobody else says anything
        self.defaults = SamplingParams(**(self.suggested | (package.sampling if package else {})))  # of a request
        given, parser = self.modelfile.template, self.modelfile.last("parser")
        self.template, self.notices = template_of(file.metadata, self.tokenizer, name, given)
        self.notices += [*self.tokenizer.notices, *said_of]
        self.dialect = dialect_of(self.template.source, parser)  # of thinking; with tools `chat` looks again
        if parser and not known(parser):
            self.notices.append(f"PARSER {parser} is not known: answers are read as the chat template shows")
        self.device = device = open_device(options.device)  # None: the CPU
        choices, said = (tuned.SHIPPED, []) if device is None else tuned.read(home() / tuned.FILE, device.name)
        self.notices += said
        on = None if device is None else device.kernels(choices)
        at_work = nullcontext if device is None else device.turns.at_work
        self.layout = layout = ExpertLayout(file, self.hparams.n_layer, self.hparams.n_expert)
        budget = budget_of(file, layout, self.hparams, options.host_memory)
        if not budget.whole:
            self.tokenizer.prepare()
            budget = budget_of(file, layout, self.hparams, options.host_memory)  # of what is left now
            budget.counts(0 if options.context or device else None)  # refused before memory is taken that is not there
            return_freed()
            file.hold(fixed_tensors(file, layout))
        self.budget = budget
        self._guards = [(Guard(data), path) for data, path in zip(file.maps, file.parts, strict=True)]
        self.steps = Steps()
        n_ctx = options.context or self.hparams.n_ctx_train
        with at_work(True), speaks(device, "loading the weights that are no experts"):
            self.store, self.dispatch = tiers(layout, device, activations, on)
            place = torch.device("cpu") if device is None else device.torch
            weights = Weights(file, self.hparams, n_ctx, activations, device=place, on=on)
            self.model = decoder.load(weights, self.dispatch)
        weights.finish(layout.names)
        multiplied = (info.format.name for info in file.tensors.values() if info.format.name != "I32")  # not tables
        slow = {kind for kind in multiplied if not cpu_ops.supported(kind)}
        if slow and activations == "q8":
            self.notices.append(
                f"{', '.join(sorted(slow))} has no compiled kernel: torch unpacks it for each pass, which is slow"
            )
        if self.model.n_vocab != self.tokenizer.n_vocab:
            many = f"{self.tokenizer.n_vocab} tokens for {self.model.n_vocab} embeddings"
            weights.refuse("tokenizer.ggml.tokens", many)
        self.context = options.context or self._context_that_fits(budget)
        if self.context > self.hparams.n_ctx_reach:
            trained = f"the {self.hparams.n_ctx_reach} tokens that the model was trained for"
            self.notices.append(f"the context is {self.context} tokens, more than {trained}: answers may get worse")
        n_blocks = options.max_sequences * -(-self.context // BLOCK_SIZE)
        cache_bytes = self.model.kv_bytes_per_block(BLOCK_SIZE, kv_type)
        if not budget.whole and not options.context and device is None:
            n_blocks = -(-self.context // BLOCK_SIZE)  # shared by all sequences
        self.cache = (ExpertCache if device is None else DeviceCache)(
            file, layout, self.hparams.n_layer, options, self.dispatch, budget, self.notices, setting
        )
        cache_bytes = n_blocks * cache_bytes + self._state_bytes()
        kv_bytes, longest = (cache_bytes, CHUNKS[0]) if device is None else (0, USUAL)
        self.chunk = budget.chunk(kv_bytes, longest)  # the most prompt tokens that run together
        with kept(self.store), at_work(True):
            self.cache.furnish(cache_bytes, self.model.routed, self._record, self.steps, home())
            with speaks(device, "taking the KV cache"):
                engine = Engine(
                    Replay(self.model)
                    if device is None
                    else Replay(self.model, device.record, self.notices, device.turns.alone),
                    self.context,
                    options.max_sequences,
                    kv_type,
                    chunk=self.chunk,
                    n_blocks=n_blocks,
                    admission=options.admission,
                    way=lambda: self.dispatch.way,
                    name=name,
                    speculation=self._speculation(),
                )
            engine.runner.rescue, engine.runner.turn = self._make_room, at_work
            engine.runner.checks += [self._check_file, self.store.check]
            engine.runner.observers.append(self.steps)
            if device is not None:  # whose passes may run again
                engine.runner.observers.append(lambda turns: self.dispatch.mark())
            if device is not None and device.compiles:
                prepare(engine, Weights(file, self.hparams, n_ctx, "float"), layout, kv_type, self.notices, progress)
        self._loop = EngineLoop(engine)
        self._loop.call(lambda: _own_threads(threads))
        self._counts = {"prompt_tokens": 0, "prompt_seconds": 0.0, "generated_tokens": 0, "decode_seconds": 0.0}

    @classmethod
    def load(
        cls,
        path: Path | str,
        options: RuntimeOptions | None = None,
        progress: Callable[[str], None] = lambda said: None,
    ) -> "LLM":
        """Open a GGUF file, or a model of the library by its name; raises `ValueError`, one sentence each.

        The Modelfile of a model of the library counts: its settings where `options` have the default, its parameters
        where a request has none, and its system text, conversation and template in `chat`. `progress` hears what a
        long load is doing.
        """
        package = find(path)
        options = options_to_load(package, options)

        def on(device: str, why: str) -> LLM:
            chosen, said = on_device(options, device, why)
            llm = cls(GGUFFile.open(package.path), chosen, package, progress)
            llm.notices[:0] = [said] * bool(said)
            return llm

        return on_best(on) if options.device == "auto" else on(options.device, "")

    def logits(self, ids: Sequence[int], step: int = 0) -> np.ndarray:
        """float32 [len(ids), n_vocab] of one fresh sequence; `step` 1 computes it as if it had been generated."""
        self._check(ids)
        return self._aside(lambda: self._engine.logits(ids, step))

    def seconds(self, ids: Sequence[int], depth: int, one_by_one: bool) -> float:
        """How long the forward passes of `ids` after the first `depth` take, one by one or in chunks, unsampled."""
        self._check(ids)
        return self._aside(lambda: timing.seconds(self._engine, ids, depth, one_by_one))

    def embed(self, ids: Sequence[int], pooling: Literal["mean", "last"] = "mean") -> np.ndarray:
        """The final hidden states of one fresh sequence, pooled: float32 [n_embd], of no particular length."""
        self._check(ids)
        states = self._aside(lambda: self._engine.hidden(ids))
        return np.asarray(states.mean(axis=0) if pooling == "mean" else states[-1])

    def prompt_logprobs(self, ids: Sequence[int], top: int = 0) -> list[Logprobs]:
        """Of each of `ids` but the first: how probable it was behind those before it, and the `top` likeliest there."""
        self._check(ids)
        return self._aside(lambda: self._engine.prompt_logprobs(ids, top))

    def generate(self, prompt: str, params: SamplingParams | None = None) -> TextStream:
        """Continue a text; the events of its answer as they come."""
        return self.run(self.tokenizer.encode(prompt, add_special=True, parse_special=True), params)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **template: Any,
    ) -> TextStream:
        """Answer a conversation by the model's chat template; `template` goes to it (`enable_thinking=False`)."""
        if astray := template.keys() & SamplingParams.__dataclass_fields__.keys():
            raise TypeError(f"{min(astray)} is no argument of chat, but a field of SamplingParams")
        messages = self.modelfile.conversation(messages)
        prompt = self.template.render(messages, tools, **template)
        dialect = dialect_of(self.template.source_for(tools), self.modelfile.last("parser"))
        stream = self.run(self.encode_chat(prompt), params, spelled=marks_of(dialect))
        stream.parser = parser_for(dialect, tools, prompt)
        return stream

    def encode_chat(self, text: str) -> list[int]:
        """Ids of a rendered conversation, whose template may have written the first token itself."""
        bos = self.tokenizer.bos_id
        begun = bos is not None and text.startswith(self.tokenizer.text(bos))
        return self.tokenizer.encode(text, add_special=not begun, parse_special=True)

    def run(
        self,
        ids: Sequence[int],
        params: SamplingParams | None = None,
        ignore_end: bool = False,
        spelled: Collection[str] = (),
        task: str | None = None,
        target_seconds: float | None = None,
        reuse: bool = True,
        tells: bool = False,
    ) -> TextStream:
        """Continue token ids; closing the stream ends the answer.

        `ignore_end` goes on past end tokens; without `reuse` all of the prompt is computed. The events' text has the
        control tokens `spelled`, and no others. `task` and `target_seconds`, from now to the answer's end, are for the
        admission policies of these names. With `tells` there are events while the prompt is computed.
        """
        self._check(ids)
        params = params or self.defaults
        ends: frozenset[int] = frozenset() if ignore_end else self.tokenizer.end_ids
        breakers = Breakers(self.tokenizer, params.dry_sequence_breakers if params.dry_multiplier else ())
        seq = TokenSequence(
            list(ids), params, ends, self.options.seed, reuse, self._grammars.compile(params), breakers=breakers
        )
        seq.task, seq.target_seconds, seq.tells = task, target_seconds, tells
        outputs = self._loop.submit(seq, lambda: self.dispatch.begin(task or ""))

        def heard(first: bool, seconds: float) -> None:
            self._count(first, seq.n_prompt - seq.n_reused, seconds)

        return TextStream(seq, outputs, text_events(self.tokenizer, seq, outputs, spelled, heard))

    def read(self, ids: Sequence[int], n_prompt: int) -> None:
        """Run a text as if its first `n_prompt` tokens were the prompt and the model had written the rest."""
        self._check(ids)
        self._aside(lambda: self._engine.read(ids, n_prompt))

    def record(self, limit: int = 0, scores: bool = False) -> Recorder:
        """Record the routing of all that runs from now on, at most the last `limit` rows; `.trace()` gives it.

        With `scores` the probabilities of all experts too, where the routers tell them.
        """
        return cast(Recorder, self._loop.call(lambda: self._record(limit, scores)))  # not amid a pass

    def _record(self, limit: int = 0, scores: bool = False) -> Recorder:
        recorder = Recorder(header(self.file, self.layout, self.hparams.n_layer), limit)
        self.steps.listeners.append(lambda rows: recorder.begin_step(rows.request, rows.phase, rows.position))

        def observe(layer: int, routing: Routing) -> None:
            told = routing.scores().probabilities if scores and routing.scores is not None else None
            recorder.record(layer, routing.topk_ids.numpy(), routing.topk_weights.numpy(), told)

        self.dispatch.observers.append(observe)
        return recorder

    @property
    def stats(self) -> dict[str, Any]:
        """Counters since loading: by tier, by action with the routed weight mass they served, tokens and seconds."""
        ahead = self._engine.speculation
        drafted, accepted = (0, 0) if ahead is None else (ahead.drafted, ahead.accepted)
        stats = self.dispatch.stats() | self._counts | {"drafted_tokens": drafted, "accepted_tokens": accepted}
        if "gpu" in stats:
            stats["gpu"]["bytes"] += self.budget.fixed
        shares = stats["shares"] = calibration.shares(stats)
        if self.cache.setting is not None:
            stats["estimated_kld"] = self.cache.setting.estimate(shares)
        return stats

    def close(self) -> None:
        """End the engine and forget the file."""
        self._loop.close()
        with nullcontext() if self.device is None else self.device.turns.at_work():
            self.cache.close()
            self.store.close()
        for guard, _ in self._guards:
            guard.close()
        self.file.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _engine(self) -> Engine:
        return self._loop.engine

    def _check_file(self) -> None:
        """Raises TransferError where bytes that a pass has used are no more in the file."""
        for guard, path in self._guards:
            if guard.lost:
                raise TransferError(f"{path} was cut off while in use")

    def _aside(self, work: Callable[[], T]) -> T:
        """What the engine's thread makes of a text of its own, which to the policies is a request."""
        return cast(T, self._loop.call(work, self.dispatch.begin_text))

    def _check(self, ids: Sequence[int]) -> None:
        for id in ids:
            if not hasattr(id, "__index__"):
                raise ValueError(f"the token id {id!r} is no whole number")
            if not 0 <= id < self.model.n_vocab:
                raise ValueError(f"the token id {id} is not one of {self.model.n_vocab}")

    def _count(self, first: bool, n_prompt: int, seconds: float) -> None:
        self._counts["generated_tokens"] += 1
        if first:
            self._counts["prompt_tokens"] += n_prompt
        self._counts["prompt_seconds" if first else "decode_seconds"] += seconds

    def _make_room(self) -> None:
        """A pass has found the device's memory too small: its expert cache shrinks, and the pass runs again."""
        store = self.store
        if not isinstance(store, DeviceStore):
            return
        before = store.slots
        if not store.shrink():
            raise out_of_memory(store.device, "answering, with no expert left to make room of")
        self.dispatch.rewind()
        said = f"{store.device.torch} ran out of memory: its expert cache went from {before} to {store.slots} experts"
        self.notices.append(said)
        logging.getLogger("gmoe").warning(said)

    def _speculation(self) -> Speculation | None:
        """Where a step of several rows gives the bits of as many steps."""
        if self.options.speculate == "off" or self.device is not None:
            return None
        return Speculation(lambda: self.dispatch.steady, self.model.recurrent)

    def _state_bytes(self) -> int:
        """What recurrent layers keep of all sequences."""
        slots = n_slots(self.options.max_sequences, self.device is not None)
        return slots * self.model.state_bytes()

    def _context_that_fits(self, budget: Budget) -> int:
        """The model's own context, or what a share of the free memory holds, in whole blocks."""
        own = self.hparams.n_ctx_train
        block = self.model.kv_bytes_per_block(BLOCK_SIZE, cast(Literal["f16"], self.options.kv_type))
        free = available().free if self.device is None else self.device.free()
        sequences, room = self.options.max_sequences, int(KV_SHARE * free)
        if self.device is None and not budget.whole:
            sequences, room = 1, budget.kv_share
        fits = max(1, (room - self._state_bytes()) // max(1, block * sequences)) * BLOCK_SIZE
        if fits < own:
            self.notices.append(f"the context is {fits} tokens: the model's own {own} would not fit into memory")
        return min(own, fits)


def _own_threads(number: int) -> None:
    """As many for kernels that this thread calls; one that has never asked takes what any thread sets last."""
    torch.get_num_threads()
    torch.set_num_threads(number)
