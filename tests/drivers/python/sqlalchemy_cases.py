"""SQLAlchemy's core and ORM over psycopg 3: cases."""

import threading

import sqlalchemy as sa
from sqlalchemy import orm

from cases import APP, OTHER, ROWS, TENANT, TOKEN, run, sqlstate

engine = sa.create_engine("postgresql+psycopg://", pool_size=8)
metadata = sa.MetaData()


class Base(orm.DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"
    owner: orm.Mapped[str] = orm.mapped_column(server_default=sa.func.owner())
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    body: orm.Mapped[str | None]


def fresh():
    with engine.begin() as c:
        c.execute(sa.delete(Item))
    return engine


def value(c, text, **parameters):
    return c.execute(sa.text(text), parameters).scalar()


def connect():
    with fresh().connect() as c:
        name = value(c, "SELECT current_setting('application_name')")
        return f"{value(c, 'SELECT 1')} {name == APP} {c.dialect.server_version_info} {c.dialect.default_schema_name}"


def prepared():
    fresh()
    # psycopg prepares what is run more than five times on a connection.
    with engine.connect() as c:
        total = sum(c.scalar(sa.select(sa.literal(n) + 1)) for n in range(20))
        return f"{total}"


def transaction():
    with orm.Session(fresh()) as session:
        session.add(Item(id=1, body="one"))
        with session.begin_nested() as nested:
            session.add(Item(id=2))
            session.flush()
            nested.rollback()
        session.commit()
        count = session.scalar(sa.select(sa.func.count()).select_from(Item))
        session.rollback()
    serial = engine.execution_options(isolation_level="SERIALIZABLE", postgresql_readonly=True)
    with serial.connect() as c:
        level = value(c, "SHOW transaction_isolation")
        try:
            c.execute(sa.insert(Item).values(id=3))
        except sa.exc.DBAPIError as e:
            state = sqlstate(e)
    return f"{count} {level} {state}"


def error():
    states = []
    with fresh().connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        c.execute(sa.insert(Item).values(id=1))
        for text in ("INSERT INTO items (id) VALUES (1)", "SELECT 1/0", "SELECT nowhere", "SELEC"):
            try:
                c.execute(sa.text(text))
            except sa.exc.DBAPIError as e:
                states.append(sqlstate(e))
        return f"{states} {value(c, 'SELECT 1')}"


def batch():
    with orm.Session(fresh()) as session:
        session.add_all(Item(id=n, body="b") for n in range(ROWS))
        session.flush()
        session.execute(sa.update(Item), [{"id": n, "body": "c"} for n in range(ROWS)])
        session.commit()
        return f"{session.execute(sa.text('SELECT count(*), sum(id), max(body) FROM items')).one()}"


def cursor():
    with fresh().connect() as c:
        rows = c.execution_options(stream_results=True, max_row_buffer=50).execute(
            sa.text("SELECT generate_series(1, 1000)"))
        return f"{rows.fetchmany(10)[-1]} {len(rows.all())}"


def cancel():
    with fresh().connect() as c:
        threading.Timer(0.3, c.connection.driver_connection.cancel_safe).start()
        try:
            value(c, "SELECT pg_sleep(20)")
        except sa.exc.DBAPIError as e:
            state = sqlstate(e)
        c.rollback()
        return f"{state} {value(c, 'SELECT 1')}"


def setting():
    with fresh().connect() as c:
        value(c, "SELECT set_config('work_mem', '7MB', false)")
        c.commit()
        seen = [value(c, "SHOW work_mem")]
        c.execute(sa.text("SET LOCAL work_mem = '9MB'"))
        seen.append(value(c, "SHOW work_mem"))
        c.commit()
        seen.append(value(c, "SHOW work_mem"))
        c.execute(sa.text("RESET work_mem"))
        seen.append(value(c, "SHOW work_mem"))
        c.commit()
        return " ".join(seen)


def catalogue():
    inspector = sa.inspect(fresh())
    columns = [column["name"] for column in inspector.get_columns("items")]
    return f"{sorted(inspector.get_table_names())} {columns} {inspector.get_pk_constraint('items')['constrained_columns']}"


def large():
    with fresh().connect() as c:
        rows = c.execute(sa.text("SELECT n, md5(n::text) FROM generate_series(1, 100000) n")).all()
        return f"{len(value(c, 'SELECT :v', v='y' * 10_000_000))} {len(rows)}"


def concurrent():
    fresh()

    def work(n):
        for k in range(20):
            with orm.Session(engine) as session, session.begin():
                session.add(Item(id=n * 100 + k))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with engine.connect() as c:
        return f"{c.execute(sa.text('SELECT count(*), sum(id) FROM items')).one()}"


def session_state():
    with fresh().connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        try:
            c.execute(sa.text("CREATE TEMP TABLE kept (n int)"))
            c.execute(sa.text("INSERT INTO kept VALUES (1)"))
            seen = value(c, "SELECT n FROM kept")
            c.execute(sa.text("DROP TABLE kept"))
            return f"{seen}"
        except sa.exc.DBAPIError as e:
            return sqlstate(e)


def tenant():
    if not TENANT:
        return None
    with orm.Session(fresh()) as session:
        session.add(Item(id=1))
        session.commit()
        owners = session.scalars(sa.select(Item.owner)).all()
        return "own" if owners == [TENANT] else f"{owners}"


def token():
    if not TOKEN:
        return None
    with fresh().connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        seen = [value(c, "SELECT owner()")]
        value(c, "SELECT set_config('pgtenant.token', :token, false)", token=TOKEN)
        seen.append(value(c, "SELECT owner()"))
        c.execute(sa.text("RESET pgtenant.token"))
        seen.append(value(c, "SELECT owner()"))
        return " ".join({TENANT: "own", OTHER: "other"}.get(owner, owner) for owner in seen)


run(f"SQLAlchemy {sa.__version__}",
    [connect, prepared, transaction, error, batch, cursor, cancel, setting, catalogue, large, concurrent, session_state,
     tenant, token])
