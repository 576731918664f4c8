"""asyncpg: cases."""

import asyncio
import io
import ssl
from contextlib import asynccontextmanager

import asyncpg

from cases import APP, OTHER, ROOT, ROWS, TENANT, TOKEN, run_async


@asynccontextmanager
async def fresh(**settings):
    c = await asyncpg.connect(server_settings={"application_name": APP, **settings})
    try:
        await c.execute("DELETE FROM items")
        yield c
    finally:
        await c.close()


async def connect():
    async with fresh() as c:
        name = await c.fetchval("SELECT current_setting('application_name')")
        return f"{await c.fetchval('SELECT 1')} {c.get_settings().client_encoding} {name == APP} {c.get_server_version()}"


async def encrypted():
    c = await asyncpg.connect(ssl=ssl.create_default_context(cafile=ROOT))
    try:
        cipher = c._transport.get_extra_info("ssl_object").version()
        return f"{cipher} {await c.fetchval('SELECT length($1)', 'y' * 1_000_000)}"
    finally:
        await c.close()


async def types():
    async with fresh() as c:
        row = (1, "é", None, True, 1.5, [1, 2], b"\x00\xff")
        seen = await c.fetchrow("SELECT $1::int, $2::text, $3::text, $4::bool, $5::float8, $6::int[], $7::bytea", *row)
        # A type that asyncpg does not know is looked up in the catalogue, behind a settings change of its own.
        return f"{tuple(seen)} {await c.fetchval('SELECT x FROM (VALUES (ROW(1, 2))) AS v(x)')}"


async def prepared():
    async with fresh() as c:
        statement = await c.prepare("SELECT $1::int + 1")
        total = sum([await statement.fetchval(n) for n in range(20)])
        names = [await c.fetchval(f"SELECT $1::text || '{n % 3}'", "x") for n in range(12)]
        await c.execute("DEALLOCATE ALL")
        try:
            again = await statement.fetchval(1)
        except asyncpg.PostgresError as e:
            again = e.sqlstate
        return f"{total} {names[:3]} {again}"


async def evicted():
    """More than the connection keeps: what is thrown out is closed."""
    c = await asyncpg.connect(statement_cache_size=20)
    try:
        return f"{sum([await c.fetchval(f'SELECT $1::int + {n % 60}', 1) for n in range(300)])}"
    finally:
        await c.close()


async def transaction():
    async with fresh() as c:
        async with c.transaction():
            await c.execute("INSERT INTO items (id) VALUES (1)")
            try:
                async with c.transaction():
                    await c.execute("INSERT INTO items (id) VALUES (2)")
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass
        try:
            async with c.transaction(isolation="serializable", readonly=True):
                level = await c.fetchval("SHOW transaction_isolation")
                await c.execute("INSERT INTO items (id) VALUES (3)")
        except asyncpg.PostgresError as e:
            state = e.sqlstate
        return f"{await c.fetchval('SELECT count(*) FROM items')} {level} {state}"


async def error():
    states = []
    async with fresh() as c:
        await c.execute("INSERT INTO items (id) VALUES (1)")
        for text in ("INSERT INTO items (id) VALUES (1)", "SELECT 1/0", "SELECT nowhere", "SELEC"):
            try:
                await c.fetch(text)
            except asyncpg.PostgresError as e:
                states.append(e.sqlstate)
        return f"{states} {await c.fetchval('SELECT 1')}"


async def batch():
    async with fresh() as c:
        await c.executemany("INSERT INTO items (id, body) VALUES ($1, $2)", [(n, "b") for n in range(ROWS)])
        try:
            await c.executemany("INSERT INTO items (id) VALUES ($1)", [(5000,), (5001,), (5000,)])
        except asyncpg.PostgresError as e:
            state = e.sqlstate
        return f"{tuple(await c.fetchrow('SELECT count(*), sum(id) FROM items'))} {state}"


async def copy():
    async with fresh() as c:
        await c.execute("DELETE FROM own_loads")
        rows = [(n, f"row {n}") for n in range(ROWS)]
        await c.copy_records_to_table("loads", records=rows, columns=["id", "body"])
        text = io.BytesIO()
        await c.copy_from_query("SELECT id, body FROM own_loads WHERE id < $1", 100, output=text)
        try:
            await c.copy_to_table("loads", source=io.BytesIO(b"rubbish\n"), columns=["id", "body"])
        except asyncpg.PostgresError as e:
            state = e.sqlstate
        return f"{len(text.getvalue())} {state} {await c.fetchval('SELECT count(*) FROM own_loads')}"


async def cursor():
    async with fresh() as c, c.transaction():
        named = await c.cursor("SELECT generate_series(1, $1::int)", 1000)
        first = (await named.fetch(10))[-1][0]
        await named.forward(100)
        rest = [row[0] async for row in c.cursor("SELECT generate_series(1, 200)", prefetch=7)]
        return f"{first} {(await named.fetchrow())[0]} {len(rest)}"


async def cancel():
    async with fresh() as c:
        try:
            await c.execute("SELECT pg_sleep(20)", timeout=0.3)
        except TimeoutError:
            pass
        task = asyncio.create_task(c.fetch("SELECT pg_sleep(20)"))
        await asyncio.sleep(0.2)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        return f"{await c.fetchval('SELECT 1')}"


async def setting():
    async with fresh(work_mem="5MB") as c:
        seen = [await c.fetchval("SHOW work_mem")]
        await c.execute("SET work_mem = '7MB'")
        seen.append(await c.fetchval("SHOW work_mem"))
        async with c.transaction():
            await c.execute("SET LOCAL work_mem = '9MB'")
            seen.append(await c.fetchval("SHOW work_mem"))
        await c.fetchval("SELECT set_config('TimeZone', 'Asia/Tokyo', false)")
        seen += [await c.fetchval("SHOW work_mem"), c.get_settings().TimeZone]
        await c.execute("RESET work_mem")
        seen.append(await c.fetchval("SHOW work_mem"))
        await c.execute("SET statement_timeout = 200")
        try:
            await c.execute("SELECT pg_sleep(20)")
        except asyncpg.PostgresError as e:
            seen.append(e.sqlstate)
        return " ".join(seen)


async def notice():
    heard = []
    async with fresh() as c:
        c.add_log_listener(lambda _, message: heard.append(message.message))
        await c.execute("DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$")
        await asyncio.sleep(0)
    return f"{heard}"


async def large():
    async with fresh() as c:
        value = await c.fetchval("SELECT repeat('x', 20000000)")
        echo = await c.fetchval("SELECT length($1)", "y" * 10_000_000)
        rows = await c.fetch("SELECT n, md5(n::text) FROM generate_series(1, 100000) n")
        return f"{len(value)} {echo} {len(rows)}"


async def concurrent():
    async with fresh():
        pass
    async with asyncpg.create_pool(min_size=8, max_size=8, server_settings={"application_name": APP}) as pool:
        async def work(n):
            for k in range(20):
                # Given back to the pool, a connection is reset by RESET ALL, UNLISTEN and others.
                async with pool.acquire() as c:
                    await c.execute("INSERT INTO items (id) VALUES ($1)", n * 100 + k)
        await asyncio.gather(*(work(n) for n in range(8)))
        return f"{tuple(await pool.fetchrow('SELECT count(*), sum(id) FROM items'))}"


async def session_state():
    async with fresh() as c:
        try:
            await c.execute("CREATE TEMP TABLE kept (n int)")
            await c.execute("INSERT INTO kept VALUES (1)")
            return f"{await c.fetch('SELECT * FROM kept')}"
        except asyncpg.PostgresError as e:
            return e.sqlstate


async def listen():
    async with fresh() as c, fresh() as other:
        heard = asyncio.Queue()
        try:
            await c.add_listener("cases", lambda *message: heard.put_nowait(message[3]))
        except asyncpg.PostgresError as e:
            return f"{e.sqlstate}: {e}"
        await other.execute("NOTIFY cases, 'hello'")
        try:
            return await asyncio.wait_for(heard.get(), 1)
        except TimeoutError:
            return "nothing heard"


async def tenant():
    if not TENANT:
        return None
    async with fresh() as c:
        await c.execute("INSERT INTO items (id) VALUES (1)")
        owners = [row[0] for row in await c.fetch("SELECT owner FROM items")]
        return "own" if owners == [TENANT] else f"{owners}"


async def token():
    if not TOKEN:
        return None
    async with fresh() as c:
        seen = [await c.fetchval("SELECT owner()")]
        await c.fetchval("SELECT set_config('pgtenant.token', $1, false)", TOKEN)
        seen.append(await c.fetchval("SELECT owner()"))
        await c.execute("RESET pgtenant.token")
        seen.append(await c.fetchval("SELECT owner()"))
        return " ".join({TENANT: "own", OTHER: "other"}.get(owner, owner) for owner in seen)


asyncio.run(run_async(
    f"asyncpg {asyncpg.__version__}",
    [connect, encrypted, types, prepared, evicted, transaction, error, batch, copy, cursor, cancel, setting, notice, large,
     concurrent, session_state, listen, tenant, token]))
