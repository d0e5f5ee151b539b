"""Sandbox: jinja2 for templates that nobody has read; a rendering ends within a bounded time and memory."""

import json
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import wraps
from operator import index
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

SECONDS = 5.0
MOST_VALUE = 32 << 20  # bytes of any value, with all that is in it
MOST_MADE = 2 << 30  # bytes of all values that a rendering makes
MOST_BITS = 1 << 16  # of a number
SMALL, NOW_AND_THEN = 1 << 12, 16  # a look at the clock costs more than making what is small
_PERCENT = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\*|\d*)(?:\.(\*|\d*))?")
_BRACE = re.compile(r"\{[^{}]*?(?::[^{}\d]*(\d*)(?:\.(\d+))?[^{}]*)?\}")


class Meter(threading.local):
    """What the rendering of this thread may still do; time is that of its own work: others may keep it waiting."""

    end, made, counted = math.inf, 0, 0

    def start(self) -> None:
        self.end, self.made, self.counted = time.thread_time() + SECONDS, 0, 0
        self.sizes: dict[int, tuple[Any, int]] = {}  # by id; it keeps the container, so that no other gets that id

    def stop(self) -> None:
        self.end, self.sizes = math.inf, {}

    def late(self) -> bool:
        return time.thread_time() > self.end

    def size(self, value: Any) -> int:
        """Bytes of a value with all that is in it, as often as it is in it."""
        if type(value) is str:
            return sys.getsizeof(value)
        if not isinstance(value, list | tuple | dict):
            return sys.getsizeof(value) if isinstance(value, str | bytes | int) else 1
        known = self.sizes.get(id(value))
        if known is None:
            inside = [*value, *value.values()] if isinstance(value, dict) else value
            known = self.sizes[id(value)] = value, sys.getsizeof(value) + sum(map(self.size, inside))
        return known[1]

    def room(self, size: int, what: str) -> None:
        """Raises TemplateError where a value of this size must not be made."""
        if size > MOST_VALUE:
            raise jinja2.TemplateError(f"the result of {what} would be too large")

    def count(self, size: int) -> None:
        """So much has been made; raises TemplateError where that or the time is too much."""
        self.made += size
        if self.made > MOST_MADE:
            raise jinja2.TemplateError("what it makes would fill the memory")
        self.counted += 1
        if (size > SMALL or self.counted % NOW_AND_THEN == 0) and self.late():
            raise jinja2.TemplateError(f"it ran longer than {SECONDS:g} seconds")

    def keep(self, value: Any, what: str) -> Any:
        """The value, counted."""
        size = self.size(value)
        self.room(size, what)
        self.count(size)
        return value


class _Generation(Extension):
    """`{% generation %}`, which marks text for training, renders what it encloses."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Counted(NodeTransformer):
    """Lists, tuples, mappings and joined texts are counted where they are written, and loops at each turn.

    What begins as an empty list of a namespace and is appended to is a `_Queue`.
    """

    def __init__(self, template: nodes.Template):
        called = [call.node for call in template.find_all(nodes.Call) if isinstance(call.node, nodes.Getattr)]
        self.queues = {of.node.attr for of in called if of.attr == "append" and isinstance(of.node, nodes.Getattr)}

    def _call(self, name: str, arguments: list[nodes.Expr], line: int) -> nodes.Expr:
        call = nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)
        call.set_lineno(line)
        return call

    def _literal(self, node: Any) -> nodes.Node:
        try:
            node.as_const()
        except nodes.Impossible:
            self.generic_visit(node)
            return self._call("_literal", [node], node.lineno)
        return node

    visit_List = visit_Dict = _literal

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._literal(node) if node.ctx == "load" else node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.node, nodes.Name) and node.node.name == "namespace":
            for given in node.kwargs:
                if given.key in self.queues and isinstance(given.value, nodes.List) and not given.value.items:
                    given.value = self._call("_Queue", [], node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._call("_joined", node.nodes, node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        text = sum(len(data.data) for part in node.body for data in part.find_all(nodes.TemplateData))
        self.generic_visit(node)
        turn = self._call("_turn", [nodes.Const(text)], node.lineno)
        node.body.insert(0, nodes.ExprStmt(turn).set_lineno(node.lineno))
        return node


class _Namespace(Namespace):
    def __repr__(self) -> str:  # it may hold itself many times over
        return "<namespace>"


class _Queue:
    """A list that can grow, which lists cannot: what one is in would grow unseen. Nothing shows it as a whole."""

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._size = 0

    def append(self, item: Any) -> None:
        self._size += Sandbox.meter.size(item)
        Sandbox.meter.room(self._size, "append")
        self._items.append(item)

    def pop(self, at: int = -1) -> Any:
        return self._items.pop(at)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __getitem__(self, at: int) -> Any:
        return self._items[index(at)]

    def __repr__(self) -> str:
        return "<queue>"


class Sandbox(ImmutableSandboxedEnvironment):
    """No attributes that begin with an underscore, no mutation, an end to every loop, and nothing that is huge."""

    meter = Meter()
    _Queue = _Queue
    intercepted_binops = frozenset(("+", "*", "**", "%"))
    padding = frozenset(("center", "ljust", "rjust", "zfill", "expandtabs", "translate", "to_bytes"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=self._shown
        )
        self.filters["tojson"] = self._tojson
        self.globals["namespace"] = _Namespace
        del self.globals["lipsum"]
        for name in ("center", "wordwrap", "urlize", "xmlattr", "pprint", "slice", "batch"):  # no template needs them
            del self.filters[name]
        self.filters.update({name: self._counted(name, filter) for name, filter in self.filters.items()})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Counted(parsed := super()._parse(source, name, filename)).visit(parsed)
        return template

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        coming = self._coming(operator, left, right)
        self.meter.room(coming, f"a {operator}")
        return self.meter.keep(super().call_binop(context, operator, left, right), f"a {operator}")

    def _coming(self, operator: str, left: Any, right: Any) -> int:
        """Bytes of what an operator gives, or more."""
        if operator == "+" and isinstance(left, str):
            return self.meter.size(left) + self.meter.size(right)
        numbers = [n for n in (left, right) if isinstance(n, int)]
        if len(numbers) == 2:
            bits = left.bit_length() * max(right, 1) if operator == "**" else left.bit_length() + right.bit_length()
            return 0 if bits <= MOST_BITS else MOST_VALUE + 1
        if operator == "+":
            return self.meter.size(left) + self.meter.size(right)
        if operator == "*" and numbers:
            repeated = right if numbers[0] is left else left
            one = 4 * len(repeated) if isinstance(repeated, str | bytes) else self.meter.size(repeated)
            return one * max(numbers[0], 0)
        if operator == "%" and isinstance(left, str):
            return self._formatted(left, right)
        return MOST_VALUE + 1 if isinstance(left, bytes) else 0

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in self.padding and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text = value.__self__.replace("{{", "").replace("}}", "")

        def bounded(*args: Any, **kwargs: Any) -> str:
            widths = [int(n) for field in _BRACE.findall(text) for n in field if n]
            largest = self.meter.size([*args, *kwargs.values()])
            huge = re.search(r"\{[^{}]*\{", text) is not None  # a width that is computed
            self.meter.room(MOST_VALUE + 1 if huge else len(text) + sum(widths) + text.count("{") * largest, "format")
            return wrapped(*args, **kwargs)

        return bounded

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.meter.count(0)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.meter.count(0)
        found = super().getitem(obj, argument)
        return self.meter.keep(found, "a slice") if isinstance(argument, slice) else found

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(obj, "__self__", None), str(getattr(obj, "__name__", "a call"))
        if owner is self:
            return obj(*args)
        self.meter.count(0)
        if isinstance(owner, str) and name in ("replace", "join"):
            args = self._bounded(name, owner, args, kwargs)
        return self.meter.keep(super().call(context, obj, *args, **kwargs), name)

    def _counted(self, name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that looks at what would come before, and at what has come."""
        given = 1 if hasattr(filter, "jinja_pass_arg") else 0  # behind the context or its like

        @wraps(filter)
        def counted(*args: Any, **kwargs: Any) -> Any:
            before, value, more = args[:given], args[given], args[given + 1 :]
            if name in ("replace", "indent"):
                value = str(value)
                more = self._bounded(name, value, more, kwargs)
            if name in ("join", "sum"):
                value = list(value)
                self._bounded("join", str((*more, kwargs.get("d", ""))[0]), (value,), {})
            if name == "format":
                self.meter.room(self._formatted(str(value), (*more, *kwargs.values())), name)
            return self.meter.keep(filter(*before, value, *more, **kwargs), name)

        return counted

    def _bounded(self, name: str, text: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments, once what `text` gives with them is known to have room."""
        size = sys.getsizeof(text)
        if name == "replace" and len(args) > 1:
            old, new = str(args[0]), str(args[1])
            size += (text.count(old) if old else len(text) + 1) * sys.getsizeof(new)
        if name == "indent":
            width = args[0] if args else kwargs.get("width", 4)
            size += (text.count("\n") + 1) * (width if isinstance(width, int) else len(width))
        if name == "join" and args:
            args = (list(args[0]), *args[1:])
            size += sum(map(self.meter.size, args[0])) + len(text) * len(args[0])
        self.meter.room(size, name)
        return args

    def _formatted(self, text: str, args: Any) -> int:
        """Bytes of `text % args`, or more."""
        widths = [n for spec in _PERCENT.findall(text) for n in spec if n]
        if "*" in widths:
            return MOST_VALUE + 1
        return len(text) + sum(map(int, widths)) + text.count("%") * self.meter.size(args)

    def _shown(self, value: Any) -> Any:
        return self.meter.keep(value, "an output")

    def _literal(self, value: Any) -> Any:
        return self.meter.keep(value, "a list or mapping")

    def _joined(self, *parts: Any) -> str:
        self.meter.room(sum(map(self.meter.size, parts)), "a ~")
        text: str = self.meter.keep("".join(map(str, parts)), "a ~")
        return text

    def _turn(self, text: int) -> None:
        self.meter.count(text)

    def _tojson(self, value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
        if indent is None:
            return json.dumps(value, ensure_ascii=ensure_ascii, **more)
        self.meter.room(0 if indent <= 16 else MOST_VALUE + 1, "tojson")
        out: list[str] = []
        for piece in json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, **more).iterencode(value):
            self.meter.count(len(piece))  # the deeper, the more spaces
            out.append(piece)
        return "".join(out)
