"""What one process does with resources: set up once, checked, given up, torn down, never inherited."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone_celery.assets.resource import declare_resource
from flowstone_celery.assets.resource_book import ResourceBook
from flowstone_celery.assets.resources import Resources
from flowstone_celery.core.interrupts import Interrupted
from flowstone_celery.errors import ResourceUnavailable, UnknownResource
from flowstone_celery.telemetry import recorded


class Room:
    """A book and its room, and what happened there, in order."""

    def __init__(self) -> None:
        self.book = ResourceBook()
        self.resources = Resources(self.book)
        self.told: list[str] = []

    def add(self, name: str, *requires: str, **options: Any) -> None:
        """A resource whose value is its number in the order of set-ups."""

        def made(**values: Any) -> Iterator[str]:
            self.told.append(f"+{name}")
            yield f"{name}{self.told.count(f'+{name}')}"
            self.told.append(f"-{name}")

        self.declare(_with_parameters(made, requires), name=name, **options)

    def declare(self, made: Any, **options: Any) -> None:
        self.book.add(declare_resource(made, **options))

    def use(self, *names: str, call: Any = None) -> dict[str, Any]:
        with self.resources.lent(names, asset="shop.orders", call=call) as lent:
            return dict(lent)

    def state(self, name: str) -> str:
        return next(each.state for each in self.resources.status() if each.name == name)


def _with_parameters(made: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """The generator function, with parameters of these names."""
    scope: dict[str, Any] = {"made": made}
    pairs = ", ".join(f"{name}={name}" for name in names)
    exec(f"def declared({', '.join(names)}):\n    yield from made({pairs})", scope)
    found: Callable[..., Any] = scope["declared"]
    return found


@pytest.fixture
def room() -> Iterator[Room]:
    found = Room()
    yield found
    found.resources.close()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a set-up hangs on; open at the end of the test."""
    found = threading.Event()
    yield found
    found.set()


def until(found: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 10
    while not found():
        assert time.monotonic() < end, what
        time.sleep(0.005)


# --- set-up ---------------------------------------------------------------------------------------------------------------------


def test_a_resource_is_set_up_when_it_is_asked_for_and_once(room: Room) -> None:
    room.add("warehouse")
    room.add("mail")
    assert room.told == []
    assert [room.use("warehouse") for _ in range(3)] == [{"warehouse": "warehouse1"}] * 3
    assert room.told == ["+warehouse"]
    assert [room.state("warehouse"), room.state("mail")] == ["ready", "unused"]


def test_however_many_threads_ask_at_once_there_is_one_set_up(room: Room) -> None:
    together = threading.Barrier(16)

    def slow() -> object:
        room.told.append("+")
        time.sleep(0.05)
        return object()

    room.declare(slow, name="slow")

    def ask(_: int) -> Any:
        together.wait()
        return room.use("slow")["slow"]

    with ThreadPoolExecutor(16) as threads:
        assert len(set(threads.map(ask, range(16)))) == 1
    assert room.told == ["+"]


def test_slow_set_up_of_one_resource_holds_up_no_other(room: Room, gate: threading.Event) -> None:
    room.declare(gate.wait, name="slow")
    room.add("quick")
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(room.use, "slow")
        assert room.use("quick") == {"quick": "quick1"}
        assert not waiting.done()
        gate.set()


def test_only_what_is_required_is_lent_and_what_that_requires_is_set_up_before(room: Room) -> None:
    room.add("warehouse", "secrets")
    room.add("secrets")
    assert room.use("warehouse") == {"warehouse": "warehouse1"}
    assert room.told == ["+secrets", "+warehouse"]
    room.resources.close()
    assert room.told[2:] == ["-warehouse", "-secrets"]


def test_what_was_closed_is_set_up_anew(room: Room) -> None:
    room.add("warehouse")
    room.use("warehouse")
    room.resources.close()
    assert room.state("warehouse") == "unused"
    assert room.use("warehouse") == {"warehouse": "warehouse2"}


def test_nothing_is_lent_to_who_requires_nothing(room: Room) -> None:
    assert room.use() == {}


@given(st.data())
def test_set_up_follows_what_is_required_and_teardown_goes_back(data: st.DataObject) -> None:
    room, names = Room(), [f"r{n}" for n in range(data.draw(st.integers(1, 7)))]
    needs = {
        name: data.draw(st.lists(st.sampled_from(names[:place]), unique=True)) if place else []
        for place, name in enumerate(names)
    }
    for name in data.draw(st.permutations(names)):
        room.add(name, *needs[name], timeout=0)
    room.book.check()
    asked = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    assert room.use(*asked) == {name: f"{name}1" for name in asked}
    made = [each[1:] for each in room.told]
    wanted: set[str] = set()
    ahead = list(asked)
    while ahead:
        name = ahead.pop()
        wanted.add(name)
        ahead += needs[name]
    assert sorted(made) == sorted(wanted), "each of them once, and nothing else"
    assert all(made.index(need) < made.index(name) for name in made for need in needs[name])
    room.resources.close()
    assert [each[1:] for each in room.told[len(made) :]] == made[::-1]


# --- set-up that fails ----------------------------------------------------------------------------------------------------------


def test_a_failed_set_up_names_resource_asset_and_cause(room: Room) -> None:
    def warehouse() -> None:
        raise ConnectionError("no route to host")

    room.declare(warehouse)
    with recorded() as events, pytest.raises(ResourceUnavailable) as caught:
        room.use("warehouse")
    assert caught.value.facts == {
        "resource": "warehouse",
        "asset": "shop.orders",
        "cause": "ConnectionError: no route to host",
    }
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert caught.value.retryable
    (status,) = room.resources.status()
    assert (status.state, status.error) == ("failed", "ConnectionError: no route to host")
    assert status.since is not None
    assert [(each.name, each.fields["resource"]) for each in events] == [
        ("flowstone.resource.setup_failed", "warehouse")
    ]


def test_after_a_failure_the_next_who_asks_tries_again_once_the_pause_is_over(room: Room) -> None:
    outcomes: Iterator[Any] = iter([ConnectionError("away"), "there"])

    def warehouse() -> Any:
        room.told.append("+")
        found = next(outcomes)
        if isinstance(found, Exception):
            raise found
        return found

    room.declare(warehouse, retry_after=0.3)
    with pytest.raises(ResourceUnavailable, match="ConnectionError: away"):
        room.use("warehouse")
    failed = time.monotonic()
    with pytest.raises(ResourceUnavailable, match="tried again in"):
        room.use("warehouse")
    assert room.told == ["+"], "nothing is tried during the pause"
    until(lambda: time.monotonic() - failed > 0.3, "the pause to pass")
    assert room.use("warehouse") == {"warehouse": "there"}


@pytest.mark.parametrize("timeout", [0, 5])
def test_whatever_a_set_up_raises_is_a_failure(room: Room, timeout: float) -> None:
    class UnreadableError(Exception):
        def __str__(self) -> str:
            raise ValueError

    def warehouse() -> None:
        raise UnreadableError

    def empty() -> Iterator[None]:
        if room is None:
            yield

    room.declare(warehouse, timeout=timeout)
    room.declare(empty, timeout=timeout)
    with pytest.raises(ResourceUnavailable, match="UnreadableError"):
        room.use("warehouse")
    with pytest.raises(ResourceUnavailable, match="without a yield"):
        room.use("empty")


def test_an_exit_in_a_set_up_is_a_failure_too(room: Room) -> None:
    room.declare(lambda: sys.exit(3), name="warehouse")
    with pytest.raises(ResourceUnavailable, match="SystemExit: 3"):
        room.use("warehouse")


def test_a_requirement_that_fails_is_the_one_that_is_named(room: Room) -> None:
    def secrets() -> None:
        raise PermissionError("sealed")

    room.declare(secrets)
    room.add("warehouse", "secrets")
    with pytest.raises(ResourceUnavailable, match=r"'secrets'.*sealed"):
        room.use("warehouse")
    assert room.told == []
    assert room.state("warehouse") == "unused"


def test_a_set_up_that_asks_for_itself_is_told_so(room: Room) -> None:
    room.declare(lambda: room.use("warehouse"), name="warehouse")
    with pytest.raises(ResourceUnavailable, match="its own set-up asks for it"):
        room.use("warehouse")


# --- set-up that hangs ----------------------------------------------------------------------------------------------------------


def test_a_set_up_that_hangs_is_given_up_and_its_thread_named(room: Room, gate: threading.Event) -> None:
    room.declare(gate.wait, name="warehouse", timeout=0.1)
    begun = time.monotonic()
    with recorded() as events, pytest.raises(ResourceUnavailable, match=r"no answer within 0\.1 s") as caught:
        room.use("warehouse")
    assert time.monotonic() - begun < 5
    (status,) = room.resources.status()
    (thread,) = status.hanging
    assert thread.startswith("flowstone-resource-warehouse-")
    assert thread in str(caught.value)
    assert thread in {each.name for each in threading.enumerate()}
    assert events[0].fields["hanging"] == 1


def test_threads_that_hang_do_not_pile_up(room: Room, gate: threading.Event) -> None:
    def warehouse() -> str:
        room.told.append("+")
        gate.wait()
        return "late"

    room.declare(warehouse, timeout=0.02, retry_after=0)
    for _ in range(6):
        with pytest.raises(ResourceUnavailable):
            room.use("warehouse")
    assert room.told == ["+"] * 3
    with pytest.raises(ResourceUnavailable, match="3 tries hang still, in the threads flowstone-resource"):
        room.use("warehouse")
    gate.set()
    until(lambda: not room.resources.status()[0].hanging, "the threads to end")
    assert room.use("warehouse") == {"warehouse": "late"}


def test_what_is_set_up_too_late_is_torn_down_and_never_used(room: Room, gate: threading.Event) -> None:
    first = iter([True])

    def warehouse() -> Iterator[str]:
        late = next(first, False)
        if late:
            gate.wait()
        yield "late" if late else "in time"
        room.told.append("-late" if late else "-in time")

    room.declare(warehouse, timeout=0.05, retry_after=0)
    with pytest.raises(ResourceUnavailable):
        room.use("warehouse")
    assert room.use("warehouse") == {"warehouse": "in time"}
    gate.set()
    until(lambda: room.told == ["-late"], "the late one to be torn down")
    assert room.use("warehouse") == {"warehouse": "in time"}


def test_whoever_waits_for_the_same_set_up_is_told_the_same(room: Room, gate: threading.Event) -> None:
    room.declare(gate.wait, name="warehouse", timeout=0.2)

    def ask(_: int) -> str:
        with pytest.raises(ResourceUnavailable) as caught:
            room.use("warehouse")
        return str(caught.value.facts["cause"]).split(";")[0]

    with ThreadPoolExecutor(4) as threads, recorded() as events:
        assert len(set(threads.map(ask, range(4)))) == 1
    assert len(events) == 1


# --- interrupts -----------------------------------------------------------------------------------------------------------------


class Call:
    """A step that is to end as soon as it is told so."""

    def __init__(self, ending: threading.Event) -> None:
        self.ending = ending

    def user_code(self) -> Any:
        return nullcontext()

    def check(self) -> None:
        if self.ending.is_set():
            raise Interrupted("cancelled")

    def patiently(self, act: Callable[[], Any]) -> Any:
        return act()


def test_a_step_that_waits_is_interrupted_and_the_set_up_serves_the_next(
    room: Room, gate: threading.Event
) -> None:
    def warehouse() -> str:
        room.told.append("+")
        gate.wait()
        return "there"

    room.declare(warehouse)
    ending = threading.Event()
    ending.set()
    with pytest.raises(Interrupted):
        room.use("warehouse", call=Call(ending))
    gate.set()
    assert room.use("warehouse") == {"warehouse": "there"}
    assert room.told == ["+"]


def test_without_a_timeout_set_up_runs_on_the_steps_thread_where_interrupts_reach_it(room: Room) -> None:
    answers: Iterator[Any] = iter([Interrupted("timeout"), None])

    def warehouse() -> int:
        if error := next(answers):
            raise error
        return threading.get_ident()

    room.declare(warehouse, timeout=0)
    with pytest.raises(Interrupted):
        room.use("warehouse", call=Call(threading.Event()))
    assert room.state("warehouse") == "unused", "an interrupt is no failure of the resource"
    assert room.use("warehouse") == {"warehouse": threading.get_ident()}


# --- health ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (False, "its check answered False"),
        ("replica lags", "replica lags"),
        (ConnectionError("reset"), "ConnectionError: reset"),
    ],
)
def test_an_unhealthy_resource_is_torn_down_and_set_up_anew(room: Room, answer: Any, reason: str) -> None:
    def health(value: str) -> Any:
        if value == "warehouse1" and isinstance(answer, Exception):
            raise answer
        return answer if value == "warehouse1" else True

    room.add("warehouse", health=health, health_every=0)
    assert room.use("warehouse") == {"warehouse": "warehouse1"}
    with recorded() as events:
        assert room.use("warehouse") == {"warehouse": "warehouse2"}
    assert room.told == ["+warehouse", "-warehouse", "+warehouse"]
    assert [each.name.rpartition(".")[2] for each in events] == ["unhealthy", "teardown", "setup"]
    assert events[0].fields["reason"] == reason


def test_a_check_is_made_only_when_its_time_has_come(room: Room) -> None:
    asked: list[str] = []
    room.add("warehouse", health=asked.append, health_every=0.3)
    begun = time.monotonic()
    while time.monotonic() - begun < 0.2:
        room.use("warehouse")
    assert asked == []
    until(lambda: time.monotonic() - begun > 0.35, "the time of the check")
    room.use("warehouse")
    room.use("warehouse")
    assert asked == ["warehouse1"]


def test_an_unhealthy_resource_that_cannot_be_set_up_anew_has_failed(room: Room) -> None:
    values: Iterator[str] = iter(["first"])
    room.declare(lambda: next(values), name="warehouse", health=lambda _: False, health_every=0)
    room.use("warehouse")
    with pytest.raises(ResourceUnavailable, match="StopIteration"):
        room.use("warehouse")
    assert room.state("warehouse") == "failed"


def test_a_check_that_hangs_finds_the_resource_unhealthy(room: Room, gate: threading.Event) -> None:
    room.add(
        "warehouse",
        health=lambda value: value != "warehouse1" or gate.wait(),
        health_every=0,
        timeout=0.1,
    )
    room.use("warehouse")
    with recorded() as events:
        assert room.use("warehouse") == {"warehouse": "warehouse2"}
        gate.set()
        until(
            lambda: room.told.count("-warehouse") == 1, "the first to be torn down once its check has ended"
        )
    assert "no answer within 0.1 s" in str(events[0].fields["reason"])


def test_what_was_made_from_an_unhealthy_resource_is_made_anew_before_it_goes(room: Room) -> None:
    room.add("secrets", health=lambda value: value != "secrets1", health_every=0)
    room.add("warehouse", "secrets")
    room.use("warehouse")
    assert room.use("warehouse") == {"warehouse": "warehouse2"}
    assert room.told == [
        "+secrets",
        "+warehouse",
        "-warehouse",
        "-secrets",
        "+secrets",
        "+warehouse",
    ]


def test_an_unhealthy_resource_is_torn_down_when_the_last_step_that_uses_it_has_ended(room: Room) -> None:
    room.add("warehouse", health=lambda value: value != "warehouse1", health_every=0)
    with room.resources.lent(("warehouse",), asset="first") as first:
        assert room.use("warehouse") == {"warehouse": "warehouse2"}
        assert first == {"warehouse": "warehouse1"}
        assert room.told == ["+warehouse", "+warehouse"]
    assert room.told == ["+warehouse", "+warehouse", "-warehouse"]


def test_a_teardown_ends_before_whoever_asks_meanwhile_has_it_set_up_anew(
    room: Room, gate: threading.Event
) -> None:
    leaving = threading.Event()

    def warehouse() -> Iterator[int]:
        room.told.append("+")
        yield room.told.count("+")
        leaving.set()
        gate.wait()
        room.told.append("-")

    class Waiting(Call):
        def check(self) -> None:
            gate.set()  # it waits, and has begun nothing

    room.declare(warehouse, health=lambda value: value != 1, health_every=0)
    room.use("warehouse")
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(room.use, "warehouse")
        leaving.wait()
        assert room.use("warehouse", call=Waiting(threading.Event())) == {"warehouse": 2}
        assert first.result() == {"warehouse": 2}
    assert room.told == ["+", "-", "+"]


# --- teardown -------------------------------------------------------------------------------------------------------------------


def test_an_error_in_a_teardown_is_told_and_keeps_nothing_else_from_its_own(room: Room) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("stuck")

    def twice() -> Iterator[int]:
        yield 1
        yield 2

    room.add("first")
    room.declare(broken)
    room.declare(twice)
    room.use("first", "broken", "twice")
    with recorded() as events:
        room.resources.close()
    assert [(each.fields["resource"], each.fields.get("error")) for each in events] == [
        ("twice", "RuntimeError: its generator yields more than once"),
        ("broken", "OSError: stuck"),
        ("first", None),
    ]


def test_a_teardown_that_hangs_is_given_up(room: Room, gate: threading.Event) -> None:
    def warehouse() -> Iterator[int]:
        yield 1
        gate.wait()

    room.declare(warehouse, timeout=0.1)
    room.use("warehouse")
    with recorded() as events:
        room.resources.close()
    assert "no end within 0.1 s" in str(events[0].fields["error"])


def test_a_step_that_waits_while_the_process_lets_go_is_told_so(room: Room, gate: threading.Event) -> None:
    begun = threading.Event()

    def warehouse() -> Iterator[str]:
        begun.set()
        gate.wait()
        yield "late"
        room.told.append("-")

    room.declare(warehouse)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(room.use, "warehouse")
        begun.wait()
        room.resources.close()
        with pytest.raises(ResourceUnavailable, match="lets its resources go"):
            waiting.result(10)
    gate.set()
    until(lambda: room.told == ["-"], "the late one to be torn down")


def test_at_its_end_a_process_tears_down_what_nobody_closed() -> None:
    assert _script("room.use('warehouse'); print('end')") == ["+", "end", "-"]


# --- fork -----------------------------------------------------------------------------------------------------------------------

_PROLOGUE = """
import gc, os, sys, threading
from flowstone_celery.assets.resource import declare_resource
from flowstone_celery.assets.resource_book import ResourceBook
from flowstone_celery.assets.resources import Resources

def say(text):
    os.write(1, f"{text}\\n".encode())

class Owner:
    def setup(self):
        self.link = Link()
    def teardown(self):
        self.link = None

class Link:
    def __init__(self):
        self.pid = os.getpid()
    def __del__(self):
        say(f"link of {'mine' if self.pid == os.getpid() else 'PARENT'} gone")

def warehouse():
    pid = os.getpid()
    say("+")
    try:
        yield pid
    finally:
        say("-" if pid == os.getpid() else "- OF THE PARENT")

class Room:
    def __init__(self):
        book = ResourceBook()
        book.add(declare_resource(warehouse, timeout=TIMEOUT))
        book.add(declare_resource(Owner(), name="owner", timeout=TIMEOUT))
        self.resources = Resources(book)
    def use(self, name):
        with self.resources.lent((name,), asset="shop.orders") as lent:
            return lent[name]

room = Room()
"""


def _script(text: str, timeout: float = 30) -> list[str]:
    source = _PROLOGUE.replace("TIMEOUT", str(timeout)) + text
    told = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True
    )
    assert told.stderr == ""
    return told.stdout.split("\n")[:-1]


@pytest.mark.parametrize("timeout", [0, 30])
def test_a_forked_child_has_its_own_and_never_ends_its_parents(timeout: float) -> None:
    told = _script(
        """
parent = room.use("warehouse")
if os.fork() == 0:
    assert room.resources.status()[1].state == "unused"
    assert room.use("warehouse") == os.getpid() != parent
    gc.collect()
    say("child ends")
    sys.exit(0)  # by the interpreter's own way, with everything that is collected then
os.wait()
say("parent ends")
assert room.use("warehouse") == parent
""",
        timeout,
    )
    assert told == ["+", "+", "child ends", "-", "parent ends", "-"]


def test_a_child_that_uses_nothing_ends_nothing() -> None:
    told = _script(
        """
room.use("warehouse"), room.use("owner")
if os.fork() == 0:
    del room
    gc.collect()
    sys.exit(0)
os.wait()
say("parent ends")
"""
    )
    assert told == ["+", "parent ends", "link of mine gone", "-"]


def test_an_object_that_is_set_up_again_in_a_child_drops_nothing_of_its_parents() -> None:
    told = _script(
        """
room.use("owner")
if os.fork() == 0:
    assert room.use("owner").link.pid == os.getpid()
    gc.collect()
    room.resources.close()
    sys.exit(0)
os.wait()
say("parent ends")
"""
    )
    assert told == ["link of mine gone", "parent ends", "link of mine gone"]


def test_a_fork_while_another_thread_sets_up_leaves_the_child_free_to_do_so() -> None:
    told = _script(
        """
gate, begun = threading.Event(), threading.Event()
def slow():
    say("+slow")
    if threading.main_thread().name == "MainThread" and os.getpid() == first:
        begun.set()
        gate.wait()
    return os.getpid()
first = os.getpid()
room.resources._book.add(declare_resource(slow))
thread = threading.Thread(target=room.use, args=("slow",))
thread.start()
begun.wait()
if os.fork() == 0:
    assert room.use("slow") == os.getpid()
    os._exit(0)
assert os.wait()[1] == 0
gate.set()
thread.join()
assert room.use("slow") == first
"""
    )
    assert told == ["+slow", "+slow"]


# --- override -------------------------------------------------------------------------------------------------------------------


def test_an_override_stands_in_its_block_and_is_neither_set_up_nor_torn_down(room: Room) -> None:
    room.add("secrets")
    room.add("warehouse", "secrets")
    with room.resources.override({"warehouse": "fake"}):
        assert room.use("warehouse") == {"warehouse": "fake"}
        assert [each.overridden for each in room.resources.status()] == [False, True]
        with room.resources.override({"warehouse": "inner"}):
            assert room.use("warehouse") == {"warehouse": "inner"}
        assert room.use("warehouse") == {"warehouse": "fake"}
        room.resources.close()
    assert room.told == [], "nor is what it would have required"
    assert room.use("warehouse") == {"warehouse": "warehouse1"}


def test_what_requires_an_overridden_resource_is_made_from_the_other(room: Room) -> None:
    room.declare(lambda: "real", name="secrets")
    room.declare(lambda secrets: f"with {secrets}", name="warehouse")
    assert room.use("warehouse") == {"warehouse": "with real"}
    with room.resources.override({"secrets": "fake"}):
        assert room.use("warehouse") == {"warehouse": "with fake"}
    assert room.use("warehouse") == {"warehouse": "with real"}


def test_an_override_of_what_is_not_declared_is_refused(room: Room) -> None:
    room.add("warehouse")
    with (
        pytest.raises(UnknownResource, match="Did you mean 'warehouse'"),
        room.resources.override({"warehous": 1}),
    ):
        pass


# --- kinds ----------------------------------------------------------------------------------------------------------------------


def test_every_kind_is_set_up_checked_and_torn_down(room: Room) -> None:
    told = room.told

    class Warehouse:
        def __init__(self, secrets: str) -> None:
            self.secrets = secrets

        def setup(self) -> None:
            told.append("class up")

        def teardown(self) -> None:
            told.append("class down")

        def health_check(self) -> None:
            told.append("class checked")

    class Pool:
        def setup(self) -> str:
            return "connection"

        def teardown(self, value: str) -> None:
            told.append(f"{value} closed")

        def health_check(self, value: str) -> bool:
            told.append(f"{value} checked")
            return True

    class Session:
        def __enter__(self) -> str:
            told.append("entered")
            return "session"

        def __exit__(self, *error: object) -> None:
            told.append("left")

    @contextmanager
    def managed(secrets: str) -> Iterator[str]:
        yield f"managed {secrets}"
        told.append("managed left")

    room.declare(lambda: "s3cret", name="secrets")
    room.declare(Warehouse, health_every=0)
    room.declare(Pool(), name="pool", health_every=0)
    room.declare(Session)
    room.declare(Session(), name="session_object")
    room.declare(managed)
    names = ("warehouse", "pool", "session", "session_object", "managed")
    first, second = room.use(*names), room.use(*names)
    assert first == second
    assert first["warehouse"].secrets == "s3cret"
    assert [first[name] for name in names[1:]] == ["connection", "session", "session", "managed s3cret"]
    room.resources.close()
    assert sorted(told[:3]) == ["class up", "entered", "entered"]
    assert sorted(told) == sorted(
        [
            "class up",
            "entered",
            "entered",
            "class checked",
            "connection checked",
            "managed left",
            "left",
            "left",
            "connection closed",
            "class down",
        ]
    )


def test_a_room_that_nobody_needs_is_collected() -> None:
    import weakref

    found = Room()
    found.add("warehouse")
    kept = weakref.ref(found.resources)
    del found
    gc.collect()
    assert kept() is None
