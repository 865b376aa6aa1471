"""Acts in somebody else's transaction: they happen if, and only if, it commits, and hold nobody up until then."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from actlab import doer
from corelab import Lab, in_threads, step
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from flowstone_celery.core import acts, runs
from flowstone_celery.core.joining import Joiner, not_there
from flowstone_celery.core.model import NewRun
from flowstone_celery.db.database import Database
from flowstone_celery.db.listening import Listener, channel
from flowstone_celery.db.migrate import migrate
from flowstone_celery.errors import CannotJoin, IdempotencyConflict, NotCommitted, RunNotFound
from flowstone_celery.outcomes import Fail
from flowstone_celery.states import Act
from flowstone_celery.telemetry import add_sink, remove_sink

if TYPE_CHECKING:
    from flowstone_celery.core.pacer import Pacer
    from flowstone_celery.testing.databases import Databases

ORDER = text("INSERT INTO public.orders (id) VALUES (:id)")


@pytest.fixture
def engine(lab: Lab) -> Iterator[Engine]:
    """The user's own engine on the same database, with a table of theirs."""
    lab.sql("CREATE TABLE IF NOT EXISTS public.orders (id text PRIMARY KEY)")
    lab.sql("DELETE FROM public.orders")
    lab.sql("DELETE FROM flowstone.requests")
    assert lab.settings.database_url
    found = create_engine(lab.settings.database_url)
    yield found
    found.dispose()


@pytest.fixture
def joiner(lab: Lab) -> Joiner:
    return Joiner(lab.database, lab.settings, lambda: lab.postbox, lambda _: None)


def new(*names: str, **options: Any) -> NewRun:
    return NewRun("plain", "joined", [step(name) for name in names or ("a",)], **options)


def orders(lab: Lab) -> list[str]:
    return [row["id"] for row in lab.sql("SELECT id FROM public.orders ORDER BY id")]


def exists(lab: Lab, run: UUID) -> bool:
    return bool(lab.sql("SELECT 1 FROM flowstone.runs WHERE id = %(run)s", run=run))


def called(lab: Lab) -> list[UUID]:
    return [wakeup.run for wakeup in lab.postbox.take()]


# --- a session ------------------------------------------------------------------------------------------------------------------


def test_a_run_stands_with_their_row_and_is_called_when_the_session_has_committed(
    lab: Lab, engine: Engine, joiner: Joiner
) -> None:
    with Session(engine) as session:
        session.execute(ORDER, {"id": "o1"})
        run, _ = joiner.start(session, new())
        assert not exists(lab, run)
        assert called(lab) == []
        session.commit()
        assert called(lab) == [run]
    assert exists(lab, run)
    assert orders(lab) == ["o1"]
    assert lab.drain() == 1
    assert lab.run(run)["status"] == "succeeded"


@pytest.mark.parametrize("end", [Session.rollback, Session.close, Session.reset])
def test_a_session_that_does_not_commit_leaves_neither_row_nor_run_nor_word(
    lab: Lab, engine: Engine, joiner: Joiner, end: Callable[[Session], None]
) -> None:
    told: list[str] = []
    sink = lambda event: told.append(event.name)  # noqa: E731 - one word for a sink
    add_sink(sink)
    try:
        with Session(engine) as session:
            session.execute(ORDER, {"id": "o1"})
            run, _ = joiner.start(session, new())
            end(session)
            session.execute(ORDER, {"id": "o2"})
            session.commit()
    finally:
        remove_sink(sink)
    assert not exists(lab, run)
    assert orders(lab) == ["o2"]
    assert called(lab) == []
    assert told == []


def test_a_savepoint_that_is_rolled_back_takes_its_runs_along_and_only_these(
    lab: Lab, engine: Engine, joiner: Joiner
) -> None:
    with Session(engine) as session, session.begin():
        kept, _ = joiner.start(session, new())
        with session.begin_nested() as savepoint:
            dropped, _ = joiner.start(session, new())
            with session.begin_nested():
                inner, _ = joiner.start(session, new())
            savepoint.rollback()
        with session.begin_nested():
            released, _ = joiner.start(session, new())
    assert [exists(lab, run) for run in (kept, dropped, inner, released)] == [True, False, False, True]
    assert set(called(lab)) == {kept, released}


def test_a_savepoint_that_was_released_is_lost_with_the_transaction_around_it(
    lab: Lab, engine: Engine, joiner: Joiner
) -> None:
    with Session(engine) as session:
        with session.begin_nested():
            run, _ = joiner.start(session, new())
        session.rollback()
    assert not exists(lab, run)
    assert called(lab) == []


def test_nothing_stays_with_a_session_after_its_transaction(lab: Lab, engine: Engine, joiner: Joiner) -> None:
    gc.disable()  # only references count: a session of a web request ends with the request
    try:
        session = Session(engine)
        joiner.start(session, new())
        session.commit()
        assert session.info == {}
        lab.postbox.take()
        session.execute(text("SELECT 1"))
        session.commit()
        assert called(lab) == []
        joiner.start(session, new())
        session.rollback()
        assert session.info == {}
        session.close()
        gone = weakref.ref(session)
        del session
        gc.collect()
        assert gone() is None
    finally:
        gc.enable()


def test_all_runs_of_one_commit_are_called_together(lab: Lab, engine: Engine, joiner: Joiner) -> None:
    with Session(engine) as session, session.begin():
        runs = [joiner.start(session, new())[0] for _ in range(5)]
    promised = lab.scalar("SELECT count(DISTINCT sent_at) FROM flowstone.steps WHERE sent_at IS NOT NULL")
    assert promised == 1
    assert set(called(lab)) == set(runs)


def test_a_scoped_session_and_a_maker_s_are_sessions(lab: Lab, engine: Engine, joiner: Joiner) -> None:
    registry = scoped_session(sessionmaker(engine))
    run, _ = joiner.start(registry, new())
    registry.commit()
    registry.remove()
    assert called(lab) == [run]


def test_a_run_of_a_lane_is_let_in_after_the_commit(lab: Lab, engine: Engine, joiner: Joiner) -> None:
    with Session(engine) as session, session.begin():
        first, _ = joiner.start(session, new(lane="l"))
        second, _ = joiner.start(session, new(lane="l"))
    assert called(lab) == [first]
    assert [lab.run(run)["admitted"] for run in (first, second)] == [True, False]
    assert lab.drain() == 2


def test_what_fails_after_the_commit_does_not_fail_the_commit(
    lab: Lab, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    def no_carrier() -> Any:
        raise RuntimeError("the broker's library is missing")

    broken = Joiner(lab.database, lab.settings, no_carrier, lambda _: None)
    with Session(engine) as session, session.begin():
        run, _ = broken.start(session, new())
    assert "what follows a commit failed" in caplog.text
    lab.pacer().step()
    assert called(lab) == [run]


# --- a connection ---------------------------------------------------------------------------------------------------------------


def test_postgres_tells_of_a_connection_s_commit_and_of_no_rollback(
    lab: Lab, engine: Engine, joiner: Joiner
) -> None:
    listener = Listener(lab.database)
    listener.open()
    try:
        with engine.connect() as connection:
            joiner.start(connection, new())
            connection.rollback()
            run, _ = joiner.start(connection, new())
            assert not listener.heard()
            connection.commit()
        lab.wait_until(listener.heard)
        assert called(lab) == []
        lab.pacer().step()
        assert called(lab) == [run]
    finally:
        listener.close()


def test_a_listener_whose_connection_is_lost_listens_again(lab: Lab, engine: Engine, joiner: Joiner) -> None:
    listener = Listener(lab.database)
    listener.open()
    lab.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN %%'")
    lab.wait_until(lambda: not listener.heard() and not listener.sockets)

    def reopened() -> bool:
        listener.open()
        return bool(listener.sockets)

    lab.wait_until(reopened)
    with engine.begin() as connection:
        joiner.start(connection, new())
    lab.wait_until(listener.heard)
    listener.close()


def test_a_schema_of_another_name_is_written_and_told_of(lab: Lab, engine: Engine) -> None:
    database = Database(str(lab.settings.database_url), schema="team_" + "x" * 58)
    migrate(database)
    listener, deaf = Listener(database), Listener(lab.database)
    try:
        for each in (listener, deaf):
            each.open()
        with engine.begin() as connection:
            run, _ = Joiner(database, lab.settings, lambda: lab.postbox, print).start(connection, new())
        lab.wait_until(listener.heard)
        assert not deaf.heard()
        assert runs.read(database, run)["status"] == "pending"
        assert not exists(lab, run)
    finally:
        for each in (listener, deaf):
            each.close()
        lab.sql(f"DROP SCHEMA {database.schema} CASCADE")
        database.dispose()


def test_the_channel_of_a_long_schema_has_a_name_that_postgres_takes() -> None:
    assert channel("flowstone") == "flowstone_flowstone"
    assert len(channel("s" * 63)) <= 63
    assert channel("s" * 63) != channel("s" * 62 + "t")


def test_a_transaction_of_two_phases_notifies_nobody_for_postgres_would_not_prepare_it(
    lab: Lab, engine: Engine, joiner: Joiner
) -> None:
    said: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *told: said.append(told[2]))
    with engine.connect() as connection:
        with connection.begin_twophase() as whole:
            run, _ = joiner.start(connection, new())
            assert [each for each in said if "pg_notify" in each] == []
            whole.rollback()
        joiner.start(connection, new())
        assert [each for each in said if "pg_notify" in each] != []
    assert not exists(lab, run)


def test_a_session_bound_to_a_connection_commits_when_that_does(
    lab: Lab, engine: Engine, joiner: Joiner
) -> None:
    with engine.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            dropped, _ = joiner.start(session, new())
            session.commit()
        outer.rollback()
    assert not exists(lab, dropped)
    assert called(lab) == []


def test_their_connection_is_left_as_it_was(engine: Engine, joiner: Joiner) -> None:
    def state(raw: Any) -> tuple[Any, ...]:
        return raw.autocommit, raw.isolation_level, raw.prepare_threshold, raw.row_factory, raw.cursor_factory

    with engine.connect().execution_options(
        isolation_level="REPEATABLE READ", stream_results=True
    ) as connection:
        raw = connection.connection.driver_connection
        before = state(raw)
        joiner.start(connection, new())
        assert state(raw) == before
        assert (
            connection.execute(text("SELECT current_setting('transaction_isolation')")).scalar()
            == "repeatable read"
        )
        connection.rollback()
        assert state(raw) == before


# --- acts -----------------------------------------------------------------------------------------------------------------------


def _commit(engine: Engine, pacer: Pacer, act: Callable[[Any], object], door: str) -> None:
    """Do it in a session, whose commit we hear of, or on a connection, for which the pacer looks."""
    if door == "session":
        with Session(engine) as session, session.begin():
            act(session)
    else:
        with engine.begin() as connection:
            act(connection)
        pacer.step()


@pytest.mark.parametrize("door", ["session", "connection"])
def test_a_run_is_cancelled_paused_resumed_and_retried_by_their_commit(
    lab: Lab, engine: Engine, joiner: Joiner, door: str
) -> None:
    run, pacer = lab.start(step("a")), lab.pacer()
    _commit(engine, pacer, lambda tx: joiner.ask(tx, run, Act.PAUSE, actor="ann"), door)
    assert lab.run(run)["paused"]
    assert lab.drain() == 0
    _commit(engine, pacer, lambda tx: joiner.ask(tx, run, Act.RESUME, actor="ann"), door)
    lab.answers["a"] = Fail("broken")
    assert lab.drain() == 1
    _commit(engine, pacer, lambda tx: joiner.ask(tx, run, Act.RETRY, actor="ann"), door)
    assert (lab.run(run)["round"], lab.run(run)["status"]) == (2, "pending")
    _commit(
        engine, pacer, lambda tx: joiner.ask(tx, run, Act.CANCEL, actor="ann", detail={"reason": "no"}), door
    )
    assert lab.run(run)["status"] == "cancelled"
    acts = lab.sql("SELECT action, actor FROM flowstone.audit ORDER BY id")
    assert [row["action"] for row in acts] == ["run.pause", "run.resume", "run.retry", "run.cancel"]
    assert {row["actor"] for row in acts} == {"ann"}


def test_an_act_is_not_done_if_they_roll_back(lab: Lab, engine: Engine, joiner: Joiner) -> None:
    run = lab.start(step("a"))
    with Session(engine) as session:
        joiner.ask(session, run, Act.CANCEL, actor="ann")
        session.rollback()
    lab.pacer().step()
    assert lab.run(run)["status"] == "pending"


def test_a_run_that_was_started_and_cancelled_in_one_transaction_begins_nothing(
    lab: Lab, engine: Engine, joiner: Joiner
) -> None:
    with Session(engine) as session, session.begin():
        run, _ = joiner.start(session, new())
        joiner.ask(session, run, Act.CANCEL, actor="ann")
    assert lab.run(run)["status"] == "cancelled"
    assert called(lab) == []


def test_an_act_on_a_run_that_does_not_exist_is_refused_and_their_transaction_goes_on(
    lab: Lab, engine: Engine, joiner: Joiner
) -> None:
    with Session(engine) as session, session.begin():
        session.execute(ORDER, {"id": "o1"})
        with pytest.raises(RunNotFound):
            joiner.ask(session, uuid4(), Act.CANCEL, actor="ann")
    assert orders(lab) == ["o1"]


# --- who waits ------------------------------------------------------------------------------------------------------------------


def test_an_open_transaction_of_theirs_holds_nobody_up(lab: Lab, engine: Engine, joiner: Joiner) -> None:
    others = [lab.start(step("a"), step("b", 0)) for _ in range(3)]
    with engine.connect() as connection:
        joiner.start(connection, new(lane="l"))
        joiner.start(connection, new("a", "b"))
        for run, act in zip(others, (Act.CANCEL, Act.PAUSE, Act.RETRY), strict=True):
            joiner.ask(connection, run, act, actor="ann")
        in_lane = lab.start(step("a"), lane="l")
        [worked, *_] = in_threads(lab.drain, lambda: [lab.pacer().step() for _ in range(3)], timeout=20)
        assert worked == 7
        assert lab.cancel(lab.start(step("late")))
        assert {lab.run(run)["status"] for run in (*others, in_lane)} == {"succeeded"}
        connection.rollback()


def test_runs_of_one_key_wait_only_for_each_other(lab: Lab, engine: Engine, joiner: Joiner) -> None:
    keyed = {"idempotency_key": "order-1", "request_digest": "d"}
    with engine.connect() as one, engine.connect() as two:
        first, _ = joiner.start(one, new(**keyed))
        again, _ = joiner.start(one, new(**keyed))
        assert again == first
        joiner.start(two, new(idempotency_key="order-2"))
        two.rollback()
        two.execute(text("SET LOCAL lock_timeout = '100ms'"))
        with pytest.raises(OperationalError, match="lock timeout"):
            joiner.start(two, new(**keyed))
        two.rollback()

        def after() -> UUID:
            found, _ = joiner.start(two, new(**keyed))
            two.commit()
            return found

        def commit() -> None:
            lab.wait_until_one_waits_for_a_lock()
            one.commit()

        assert in_threads(after, commit)[0] == first
        with pytest.raises(IdempotencyConflict):
            joiner.start(two, new(idempotency_key="order-1", request_digest="other"))


def test_threads_start_in_transactions_of_their_own(lab: Lab, engine: Engine, joiner: Joiner) -> None:
    def commits(odd: int) -> list[UUID]:
        kept = []
        for nth in range(10):
            with Session(engine) as session:
                run, _ = joiner.start(session, new())
                if nth % 2 == odd:
                    session.commit()
                    kept.append(run)
        return kept

    kept = [run for runs in in_threads(lambda: commits(0), lambda: commits(1)) for run in runs]
    assert {row["id"] for row in lab.sql("SELECT id FROM flowstone.runs")} == set(kept)


# --- reading before the commit --------------------------------------------------------------------------------------------------


def test_why_a_run_cannot_be_read_is_told(lab: Lab, engine: Engine, joiner: Joiner) -> None:
    with engine.connect() as connection:
        run, begun = joiner.start(connection, new())
        assert isinstance(not_there(run, begun), NotCommitted)
        connection.rollback()
        assert type(not_there(run, begun)) is RunNotFound
        assert "rolled back" in str(not_there(run, begun))


# --- refused --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (lambda engine: engine, "takes a Connection or a Session"),
        (lambda engine: create_engine("sqlite://").connect(), r"sqlite\+pysqlite"),
        (lambda engine: engine.connect().execution_options(isolation_level="AUTOCOMMIT"), "autocommit mode"),
        (lambda engine: Session(), "gives no connection"),
        (lambda engine: "postgresql://", "takes a Connection or a Session"),
    ],
)
def test_what_is_no_transaction_for_our_rows_is_refused(
    engine: Engine, joiner: Joiner, target: Callable[[Engine], Any], says: str
) -> None:
    caller = target(engine)
    try:
        with pytest.raises(CannotJoin, match=says):
            joiner.start(caller, new())
    finally:
        if hasattr(caller, "close"):
            caller.close()


def test_a_closed_connection_is_refused(engine: Engine, joiner: Joiner) -> None:
    with engine.connect() as connection:
        pass
    with pytest.raises(CannotJoin, match="closed"):
        joiner.start(connection, new())


def test_another_database_is_refused_by_both_names(
    lab: Lab, joiner: Joiner, flowstone_databases: Databases
) -> None:
    with flowstone_databases.fresh() as other:
        assert other.database_url
        theirs, ours = (
            make_url(str(url)).database for url in (other.database_url, lab.settings.database_url)
        )
        engine = create_engine(other.database_url)
        with engine.connect() as connection:
            for _ in range(2):  # the second time it is known
                with pytest.raises(CannotJoin, match=f"'{theirs}'.*'{ours}'"):
                    joiner.start(connection, new())
        engine.dispose()


def test_a_database_is_compared_once_for_each_engine_and_again_after_a_restart_of_the_server(
    lab: Lab, engine: Engine, joiner: Joiner
) -> None:
    said: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *told: said.append(told[2]))
    joiner._ours = {"cluster": 0, "since": None, "database": "as it was before the restart"}
    for _ in range(2):
        with engine.begin() as connection:
            joiner.start(connection.execution_options(some="option"), new())
    assert sum("system_identifier" in each for each in said) == 1


def test_a_role_that_may_not_write_here_is_refused_and_needs_no_more_than_is_said(
    lab: Lab, engine: Engine, joiner: Joiner
) -> None:
    name = f"shop_{uuid4().hex[:8]}"
    lab.sql(f"CREATE ROLE {name}")
    try:
        with engine.connect() as connection:
            connection.execute(text(f"SET LOCAL ROLE {name}"))
            with pytest.raises(CannotJoin, match="may not write"):
                joiner.start(connection, new())
            assert connection.execute(text("SELECT 1")).scalar() == 1
        lab.sql(f"GRANT USAGE ON SCHEMA flowstone TO {name}")
        lab.sql(f"GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA flowstone TO {name}")
        with engine.begin() as connection:
            connection.execute(text(f"SET LOCAL ROLE {name}"))
            run, _ = joiner.start(connection, new("a", "b"))
            joiner.ask(connection, run, Act.CANCEL, actor="ann")
        assert exists(lab, run)
    finally:
        lab.sql(f"DROP OWNED BY {name}")
        lab.sql(f"DROP ROLE {name}")


# --- any order of their verbs ---------------------------------------------------------------------------------------------------

VERBS = st.lists(
    st.sampled_from(["start", "cancel", "savepoint", "release", "back", "commit", "rollback"]), max_size=24
)


class Model:
    """Which runs must exist, and which must be cancelled: a stack of what each open savepoint has added."""

    def __init__(self) -> None:
        self.certain: dict[UUID, bool] = {}
        self.open: list[dict[UUID, bool]] = [{}]

    @property
    def seen(self) -> dict[UUID, bool]:
        """What their transaction sees: run -> whether it is to be cancelled."""
        seen = dict(self.certain)
        for level in self.open:
            seen |= level
        return seen


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(verbs=VERBS, door=st.sampled_from(["session", "connection"]))
def test_whatever_they_do_exactly_what_they_committed_stands(
    lab: Lab, engine: Engine, joiner: Joiner, verbs: list[str], door: str
) -> None:
    lab.wipe()
    model = Model()
    with Session(engine) if door == "session" else engine.connect() as theirs:
        savepoints: list[Any] = []
        for verb in (*verbs, "rollback"):
            _act(verb, theirs, savepoints, model, joiner)
    lab.pacer().step()
    found = {row["id"]: row["status"] for row in lab.sql("SELECT id, status FROM flowstone.runs")}
    assert found == {run: "cancelled" if gone else "pending" for run, gone in model.certain.items()}
    promised = {
        row["run_id"] for row in lab.sql("SELECT run_id FROM flowstone.steps WHERE sent_at IS NOT NULL")
    }
    assert promised <= set(called(lab)) <= set(model.certain)
    assert lab.scalar("SELECT count(*) FROM flowstone.requests") == 0


def _act(verb: str, theirs: Any, savepoints: list[Any], model: Model, joiner: Joiner) -> None:
    match verb:
        case "start":
            run, _ = joiner.start(theirs, new())
            model.open[-1][run] = False
        case "cancel" if model.seen:
            run = list(model.seen)[-1]
            joiner.ask(theirs, run, Act.CANCEL, actor="ann")
            model.open[-1][run] = True
        case "savepoint":
            savepoints.append(theirs.begin_nested())
            model.open.append({})
        case "release" if savepoints:
            savepoints.pop().commit()
            inner = model.open.pop()
            model.open[-1] |= inner
        case "back" if savepoints:
            savepoints.pop().rollback()
            model.open.pop()
        case "commit" | "rollback":
            (theirs.commit if verb == "commit" else theirs.rollback)()
            if verb == "commit":
                model.certain = model.seen
            model.open, savepoints[:] = [{}], []


def test_a_request_that_cannot_be_done_is_audited_and_holds_up_none_behind_it(lab: Lab) -> None:
    hopeless, other = lab.start(step("a")), lab.start(step("b"))
    with lab.database.transaction() as tx:
        acts.ask(tx, hopeless, Act.RETRY, actor="ann", detail={"deadline_in": "soon"})
        acts.ask(tx, other, Act.PAUSE, actor="bob")
    assert acts.do_asked(doer(lab)) == 2
    assert lab.run(other)["paused"]
    assert lab.sql("SELECT * FROM flowstone.requests") == []
    (refused,) = lab.sql("SELECT * FROM flowstone.audit WHERE action = 'run.retry.refused'")
    assert (refused["actor"], refused["resource_id"]) == ("ann", str(hopeless))
    assert "soon" in refused["details"]["error"]
