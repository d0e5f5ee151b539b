"""ModelHost over models that are nothing: who gets what, and when."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gmoe.library.manifest import Layer, Manifest
from gmoe.library.modelfile import parse_modelfile
from gmoe.options import RuntimeOptions
from gmoe.server.ask import Refused
from gmoe.server.catalog import Entry
from gmoe.server.host import ModelHost
from gmoe.server.stream import Source, Threads


class _Catalog:
    def find(self, name: str) -> Entry:
        """The names are of the model that their first letter says."""
        return Entry(name, Path(name[0]), name[0], 1, 0.0)


def host(
    load: Callable[[RuntimeOptions], None] = lambda options: None, most: int = 1 << 20, **limits: Any
) -> ModelHost:
    """Models of 1024 tokens, which are given at `most` so many; `load` may wait."""

    def model(path: Path, options: RuntimeOptions) -> Any:
        load(options)
        hparams = SimpleNamespace(n_ctx_train=1024)
        return SimpleNamespace(
            hparams=hparams, context=min(options.context, most), notices=[], stats={}, close=lambda: None
        )

    return ModelHost(_Catalog(), RuntimeOptions(context=64), model, **limits)  # type: ignore[arg-type]


async def rest() -> None:
    """Let all others go as far as they can."""
    for _ in range(20):
        await asyncio.sleep(0.005)


def test_who_comes_while_it_loads_gets_the_context_he_asks_for() -> None:
    go = threading.Event()
    loaded: list[int] = []

    def load(options: RuntimeOptions) -> None:
        go.wait(20)
        loaded.append(options.context)

    async def run() -> None:
        models = host(load)

        async def ask(num_ctx: int | None) -> int:
            async with models.lease("a", num_ctx=num_ctx) as running:
                return int(running.llm.context)

        asked = [asyncio.create_task(ask(n)) for n in (None, 512, 5000)]
        await rest()
        go.set()
        assert await asyncio.gather(*asked) == [64, 512, 5000]
        await models.close()

    asyncio.run(run())
    assert loaded == [64, 512, 5000]


def test_a_context_beyond_the_model_s_own_is_lowered_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    said = "the context is 1024 tokens, all that the model was trained for: more was asked for"

    async def run() -> list[list[str]]:
        models, heard = host(most=1024), []
        for num_ctx in (1024, 5000, 6000, None):
            async with models.lease("a", num_ctx=num_ctx) as running:
                heard.append(list(running.llm.notices))
        await models.close()
        return heard

    assert asyncio.run(run()) == [[], [said], [said], [said]]
    assert caplog.messages == [f"a: {said}"]


def test_all_names_of_a_model_have_it_loaded_once() -> None:
    loaded: list[int] = []

    async def run() -> None:
        models = host(lambda options: loaded.append(options.context))
        async with models.lease("a1") as one, models.lease("a2") as other, models.lease("b") as another:
            assert one.running is other.running is not another.running and list(models.running) == ["a1", "a2", "b"]
        async with models.lease("a2", num_ctx=512) as larger:
            assert larger.running is not one.running and list(models.running) == ["b", "a2"]
        async with models.lease("a1") as again:
            assert again.running is larger.running and again.entry.name == "a1"
        assert await models.unload("a1") and list(models.running) == ["b", "a2"], "its other name keeps it"
        assert await models.unload("a2") and list(models.running) == ["b"]
        assert not await models.unload("a2")
        await models.close()

    asyncio.run(run())
    assert loaded == [64, 64, 512]


def test_names_share_a_file_where_their_modelfiles_load_it_alike() -> None:
    texts = {name: f"FROM x\n{rest}" for name, rest in (
        ("plain", ""), ("pirate", "SYSTEM Arr\nPARAMETER temperature 0"), ("small", "PARAMETER num_ctx 32"),
        ("large", "PARAMETER num_ctx 512"), ("lossy", "# gmoe: miss skip"),
    )}  # fmt: skip
    manifest, loaded = Manifest(Layer("", "", 0), ()), list[tuple[int, str]]()

    def find(name: str) -> Entry:
        return Entry(name, Path("blob"), texts[name], 1, 0.0, parse_modelfile(texts[name]), manifest)

    def load(path: Path, options: RuntimeOptions) -> Any:
        loaded.append((options.context, options.miss))
        hparams, context = SimpleNamespace(n_ctx_train=1024), options.context or 1024
        return SimpleNamespace(hparams=hparams, context=context, notices=[], stats={}, close=lambda: None)

    async def run() -> None:
        models = ModelHost(SimpleNamespace(find=find), RuntimeOptions(), load, max_loaded=9)  # type: ignore[arg-type]
        async with models.lease("small") as small, models.lease("large") as large, models.lease("plain") as plain:
            assert len({one.running for one in (small, large, plain)}) == 3
            async with models.lease("pirate") as pirate, models.lease("lossy") as lossy:
                assert pirate.running is plain.running and pirate.entry.modelfile.last("system") == "Arr"
                assert lossy.running not in (small.running, large.running, plain.running)
                texts["plain"] = texts["lossy"]  # made again, while what it stood for answers
                async with models.lease("plain") as other:
                    assert other.running is lossy.running and list(plain.running.names) == ["pirate"]
            async with models.lease("small", num_ctx=256) as more:
                assert more.running is large.running
        assert small.running not in models.loaded, "no name is left"
        assert {name: one.llm.context for name, one in models.running.items()} == {
            "large": 512, "small": 512, "pirate": 1024, "lossy": 1024, "plain": 1024,
        }  # fmt: skip
        texts["large"] = "FROM x\n# gmoe: miss cpu\nPARAMETER num_ctx 16"
        async with models.lease("large") as less:
            assert less.llm.context == 16 and list(models.running) == ["small", "pirate", "lossy", "plain", "large"]
        assert await models.unload("pirate") and not await models.unload("pirate")
        await models.close()

    asyncio.run(run())
    assert loaded == [(32, "auto"), (512, "auto"), (0, "auto"), (0, "skip"), (16, "cpu")]


def test_who_wants_more_context_takes_the_place_of_who_wanted_less_and_is_shared() -> None:
    texts = {"small": "FROM x\nPARAMETER num_ctx 32", "large": "FROM x\nPARAMETER num_ctx 512"}
    manifest = Manifest(Layer("", "", 0), ())

    def find(name: str) -> Entry:
        return Entry(name, Path("blob"), texts[name], 1, 0.0, parse_modelfile(texts[name]), manifest)

    def load(path: Path, options: RuntimeOptions) -> Any:
        hparams = SimpleNamespace(n_ctx_train=1024)
        return SimpleNamespace(hparams=hparams, context=options.context, notices=[], stats={}, close=lambda: None)

    async def run() -> None:
        models = ModelHost(SimpleNamespace(find=find), RuntimeOptions(), load)  # type: ignore[arg-type]
        for name in ("small", "large", "small"):
            async with models.lease(name) as lease:
                assert len(models.loaded) == 1
        assert lease.llm.context == 512 and list(models.running) == ["large", "small"]
        texts["large"] = "FROM x\nPARAMETER num_ctx 16"  # made again: all of it counts, less context too
        async with models.lease("large") as less:
            assert less.llm.context == 16 and models.running["small"] is lease.running
        await models.close()

    asyncio.run(run())


def test_a_request_s_small_context_is_not_another_modelfile_s() -> None:
    loaded: list[int] = []

    async def run() -> None:
        models = host(lambda options: loaded.append(options.context))
        async with models.lease("a1", num_ctx=32) as less:
            assert less.llm.context == 32
        async with models.lease("a2") as usual:  # the server's flag says 64
            assert usual.llm.context == 64 and usual.llm.notices == []
        await models.close()

    asyncio.run(run())
    assert loaded == [32, 64]


def test_nobody_passes_one_who_waits_for_a_model_to_end() -> None:
    async def run() -> list[str]:
        models, order, ends = host(max_loaded=1), list[str](), {name: asyncio.Event() for name in "12345"}

        async def ask(number: str, name: str, num_ctx: int | None = None) -> None:
            async with models.lease(name, num_ctx=num_ctx):
                order.append(number)
                await ends[number].wait()

        tasks = []
        for number, name, num_ctx in (("1", "a", None), ("2", "a", 512), ("3", "b", None), ("4", "a", None)):
            tasks.append(asyncio.create_task(ask(number, name, num_ctx)))
            await rest()
        assert order == ["1"]
        gone = asyncio.create_task(ask("5", "c"))
        await rest()
        tasks[1].cancel()  # he waits no longer, so that the next one is the first
        gone.cancel()
        await rest()
        for number in "134":
            ends[number].set()
            await rest()
        await asyncio.wait([*tasks, gone])
        await models.close()
        return order

    assert asyncio.run(run()) == ["1", "3", "4"]


def test_what_the_server_was_told_is_not_the_client_s_fault() -> None:
    def load(options: RuntimeOptions) -> None:
        raise ValueError("evict is 'foo'")

    async def run() -> None:
        async with host(load).lease("a"):
            pass

    with pytest.raises(Refused, match="evict is 'foo'") as caught:
        asyncio.run(run())
    assert caught.value.status == 500


def test_who_leaves_waits_until_the_thread_has_let_go() -> None:
    left, go = threading.Event(), threading.Event()
    done: list[str] = []

    def work(name: str) -> None:
        go.wait(20)
        done.append(name)

    async def run() -> None:
        threads = Threads(1)
        chunks = threads.iterate(Source(lambda put: work("chunks"), left.set))
        first = asyncio.create_task(chunks.__anext__())
        await rest()
        first.cancel()
        whole = asyncio.create_task(threads.run(lambda: work("whole")))  # which has no thread yet
        await rest()
        whole.cancel()
        await rest()
        assert left.is_set() and whole.done() and not first.done() and not done
        go.set()
        await asyncio.wait([first])
        assert done == ["chunks"]
        last = asyncio.create_task(threads.run(lambda: work("last")))
        assert await last is None and done == ["chunks", "last"]
        threads.close()

    asyncio.run(run())
