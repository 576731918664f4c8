"""psycopg 3: cases."""

import ctypes
import glob
import os
import threading

import psycopg
from psycopg_pool import ConnectionPool

from cases import APP, ISSUER, OTHER, PROXY, ROOT, ROWS, TENANT, TOKEN, run


def fresh(**options):
    connection = psycopg.connect("", autocommit=True, **options)
    connection.execute("DELETE FROM items")
    return connection


def connect():
    with fresh() as c:
        name = c.execute("SELECT current_setting('application_name')").fetchone()[0]
        info = c.info
        return f"{c.execute('SELECT 1').fetchone()} {info.encoding} {name == APP} {info.server_version}"


def encrypted():
    """The certificate is looked at; a password is bound to it."""
    binding = "prefer" if TENANT else "require"
    with fresh(sslmode="verify-full", sslrootcert=ROOT, channel_binding=binding) as c:
        length = c.execute("SELECT length(%s)", ("y" * 1_000_000,)).fetchone()[0]
        return f"{c.pgconn.ssl_in_use} {length}"


def direct_tls():
    """TLS from the first byte, which PostgreSQL 17 and its libpq brought."""
    if not PROXY or psycopg.pq.version() < 170000:
        return None
    with fresh(sslmode="verify-full", sslrootcert=ROOT, sslnegotiation="direct") as c:
        return f"{c.pgconn.ssl_in_use}"


def protocol():
    """Protocol 3.2, whose cancel keys are long, which PostgreSQL 18 and its libpq brought."""
    if not PROXY or psycopg.pq.version() < 180000:
        return None
    with fresh(min_protocol_version="3.2", max_protocol_version="3.2") as c:
        threading.Timer(0.3, c.cancel_safe).start()
        try:
            c.execute("SELECT pg_sleep(20)")
        except psycopg.Error as e:
            return f"{c.pgconn.full_protocol_version} {e.sqlstate}"


class BearerRequest(ctypes.Structure):
    """PGoauthBearerRequest of libpq 18 (PostgreSQL documentation, "OAuth Support" of libpq)."""
    _fields_ = [("openid_configuration", ctypes.c_char_p), ("scope", ctypes.c_char_p), ("step", ctypes.c_void_p),
                ("cleanup", ctypes.c_void_p), ("token", ctypes.c_char_p), ("user", ctypes.c_void_p)]


def oauth():
    """A token by OAUTHBEARER: libpq 18 asks the server where to get one, and its hook has it."""
    if not TENANT or psycopg.pq.version() < 180000:
        return None
    seen = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(BearerRequest))
    def hook(kind, connection, request):
        if kind != 1:
            return 0
        place = request.contents.openid_configuration.decode()
        seen.append("discovery" if place == f"{ISSUER}/.well-known/openid-configuration" else place)
        request.contents.token = os.environ["PGPASSWORD"].encode()
        return 1

    folder = os.path.join(os.path.dirname(psycopg.__path__[0]), "psycopg_binary.libs")
    libpq = ctypes.CDLL(glob.glob(os.path.join(folder, "libpq-*"))[0])
    libpq.PQsetAuthDataHook.argtypes = [ctypes.c_void_p]
    libpq.PQsetAuthDataHook(hook)
    try:
        with fresh(oauth_issuer=ISSUER, oauth_client_id="cases", options="-c pgtenant.sign_in=oauth") as c:
            owner = c.execute("SELECT owner()").fetchone()[0]
        return f"{' '.join(seen)} {'own' if owner == TENANT else owner}"
    finally:
        libpq.PQsetAuthDataHook(None)


def types():
    with fresh() as c:
        row = (1, "é", None, True, 1.5, [1, 2], b"\x00\xff")
        text = c.execute("SELECT %s::int, %s::text, %s::text, %s::bool, %s::float8, %s::int[], %s::bytea", row).fetchone()
        binary = c.cursor(binary=True).execute("SELECT %s::int, %b::bytea", (1, b"\x00")).fetchone()
        return f"{text} {binary}"


def prepared():
    with fresh(prepare_threshold=2) as c:
        total = sum(c.execute("SELECT %s::int + 1", (n,)).fetchone()[0] for n in range(20))
        names = [c.execute(f"SELECT %s::text || '{n % 3}'", ("x",)).fetchone()[0] for n in range(12)]
        c.execute("DEALLOCATE ALL")
        again = c.execute("SELECT %s::int + 1", (1,), prepare=True).fetchone()[0]
        return f"{total} {names[:3]} {again}"


def evicted():
    """More than the connection keeps: what is thrown out is closed, before libpq 17 by DEALLOCATE."""
    with fresh(prepare_threshold=0) as c:
        c.prepared_max = 20
        return f"{sum(c.execute(f'SELECT %s::int + {n % 60}', (1,)).fetchone()[0] for n in range(300))}"


def transaction():
    with fresh() as c:
        with c.transaction():
            c.execute("INSERT INTO items (id) VALUES (1)")
            try:
                with c.transaction():
                    c.execute("INSERT INTO items (id) VALUES (2)")
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass
        c.isolation_level, c.read_only = psycopg.IsolationLevel.SERIALIZABLE, True
        with c.transaction():
            level = c.execute("SHOW transaction_isolation").fetchone()[0]
            try:
                c.execute("INSERT INTO items (id) VALUES (3)")
            except psycopg.Error as error:
                state = error.sqlstate
                c.execute("ROLLBACK")
        return f"{c.execute('SELECT count(*) FROM items').fetchone()} {level} {state}"


def error():
    states = []
    with fresh() as c:
        c.execute("INSERT INTO items (id) VALUES (1)")
        for text in ("INSERT INTO items (id) VALUES (1)", "SELECT 1/0", "SELECT nowhere", "SELEC"):
            try:
                c.execute(text, prepare=True)
            except psycopg.Error as e:
                states.append(e.sqlstate)
        return f"{states} {c.execute('SELECT 1').fetchone()}"


def batch():
    with fresh() as c, c.cursor() as cursor:
        cursor.executemany("INSERT INTO items (id, body) VALUES (%s, %s) RETURNING id", [(n, "b") for n in range(ROWS)],
                           returning=True)
        return f"{c.execute('SELECT count(*), sum(id) FROM items').fetchone()}"


def pipeline():
    with fresh() as c, c.pipeline() as p:
        cursors = [c.execute("SELECT %s::int", (n,)) for n in range(100)]
        p.sync()
        with c.transaction():
            c.execute("INSERT INTO items (id) VALUES (1)")
        return f"{sum(cursor.fetchone()[0] for cursor in cursors)} {c.execute('SELECT count(*) FROM items').fetchone()}"


def pipeline_error():
    states = []
    with fresh() as c:
        try:
            with c.pipeline():
                c.execute("INSERT INTO items (id) VALUES (1)")
                c.execute("SELECT 1/0")
                c.execute("INSERT INTO items (id) VALUES (2)")
        except psycopg.Error as e:
            states.append(e.sqlstate)
        return f"{states} {c.execute('SELECT count(*) FROM items').fetchone()}"


def copy():
    with fresh() as c, c.cursor() as cursor:
        c.execute("DELETE FROM own_loads")
        with cursor.copy("COPY loads (id, body) FROM STDIN") as data:
            for n in range(ROWS):
                data.write_row((n, f"row {n}"))
        with cursor.copy("COPY (SELECT id, body FROM own_loads) TO STDOUT") as data:
            size = sum(len(block) for block in data)
        with cursor.copy("COPY (SELECT 1) TO STDOUT (FORMAT binary)") as data:
            data.set_types(["int4"])
            binary = list(data.rows())
        try:
            with cursor.copy("COPY loads (id, body) FROM STDIN") as data:
                data.write(b"rubbish\n")
        except psycopg.Error as e:
            state = e.sqlstate
        return f"{size} {binary} {state} {c.execute('SELECT count(*) FROM own_loads').fetchone()}"


def cursor():
    with fresh() as c, c.transaction(), c.cursor("named") as named:
        named.itersize = 100
        named.execute("SELECT generate_series(1, 1000)")
        first = named.fetchmany(10)[-1]
        named.scroll(100)
        return f"{first} {named.fetchone()} {len(named.fetchall())}"


def cancel():
    with fresh() as c:
        threading.Timer(0.3, c.cancel_safe).start()
        try:
            c.execute("SELECT pg_sleep(20)")
        except psycopg.Error as e:
            return f"{e.sqlstate} {c.execute('SELECT 1').fetchone()}"


def setting():
    with fresh(options="-c work_mem=5MB") as c:
        seen = [c.execute("SHOW work_mem").fetchone()[0]]
        c.execute("SET work_mem = '7MB'")
        seen.append(c.execute("SHOW work_mem").fetchone()[0])
        with c.transaction():
            c.execute("SET LOCAL work_mem = '9MB'")
            seen.append(c.execute("SHOW work_mem").fetchone()[0])
        c.execute("SELECT set_config('TimeZone', 'Asia/Tokyo', false)")
        seen.append(c.execute("SHOW work_mem").fetchone()[0])
        seen.append(str(c.info.timezone))
        c.execute("RESET work_mem")
        seen.append(c.execute("SHOW work_mem").fetchone()[0])
        c.execute("SET statement_timeout = 200")
        try:
            c.execute("SELECT pg_sleep(20)")
        except psycopg.Error as e:
            seen.append(e.sqlstate)
        return " ".join(seen)


def notice():
    heard = []
    with fresh() as c:
        c.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary))
        c.execute("DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$")
    return f"{heard}"


def large():
    with fresh() as c:
        value = c.execute("SELECT repeat('x', 20000000)").fetchone()[0]
        echo = c.execute("SELECT length(%s)", ("y" * 10_000_000,)).fetchone()[0]
        rows = c.execute("SELECT n, md5(n::text) FROM generate_series(1, 100000) n").fetchall()
        return f"{len(value)} {echo} {len(rows)}"


def concurrent():
    with fresh():
        pass
    with ConnectionPool("", min_size=8, max_size=8, open=True) as pool:
        def work(n):
            for k in range(20):
                with pool.connection() as c:
                    c.execute("INSERT INTO items (id) VALUES (%s)", (n * 100 + k,))
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pool.connection() as c:
            return f"{c.execute('SELECT count(*), sum(id) FROM items').fetchone()}"


def session_state():
    with fresh() as c:
        try:
            c.execute("CREATE TEMP TABLE kept (n int)")
            c.execute("INSERT INTO kept VALUES (1)")
            return f"{c.execute('SELECT * FROM kept').fetchall()}"
        except psycopg.Error as e:
            return e.sqlstate


def listen():
    with fresh() as c, fresh() as other:
        try:
            c.execute("LISTEN cases")
        except psycopg.Error as e:
            return f"{e.sqlstate}: {e.diag.message_primary}"
        other.execute("NOTIFY cases, 'hello'")
        return f"{[n.payload for n in c.notifies(timeout=1, stop_after=1)]}"


def tenant():
    if not TENANT:
        return None
    with fresh() as c:
        c.execute("INSERT INTO items (id) VALUES (1)")
        rows = c.execute("SELECT owner FROM items").fetchall()
        return "own" if rows == [(TENANT,)] else f"{rows}"


def token():
    if not TOKEN:
        return None
    with fresh() as c:
        seen = [c.execute("SELECT owner()").fetchone()[0]]
        c.execute("SELECT set_config('pgtenant.token', %s, false)", (TOKEN,))
        seen.append(c.execute("SELECT owner()").fetchone()[0])
        c.execute("RESET pgtenant.token")
        seen.append(c.execute("SELECT owner()").fetchone()[0])
        return " ".join({TENANT: "own", OTHER: "other"}.get(owner, owner) for owner in seen)


run(f"psycopg {psycopg.__version__} ({psycopg.pq.__impl__}), libpq {psycopg.pq.version() // 10000}",
    [connect, encrypted, direct_tls, oauth, protocol, types, prepared, evicted, transaction, error, batch, pipeline, pipeline_error, copy, cursor, cancel, setting, notice,
     large, concurrent, session_state, listen, tenant, token])
