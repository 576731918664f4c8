// postgres.js: cases. It pipelines, and prepares every query it can.

import { pipeline as pipe } from "node:stream/promises";
import { Readable } from "node:stream";
import postgres from "postgres";
import { createRequire } from "node:module";
import { APP, ERRORS, ROWS, TENANT, TOKEN, owners, run, sleep, stateOf } from "./cases.mjs";

const version = createRequire(import.meta.url)("./package.json").dependencies.postgres;

async function fresh(body, options = {}, settings = {}) {
    const connection = { application_name: APP, ...settings };
    const sql = postgres({ max: 1, connection, onnotice: () => {}, ...options });
    try {
        await sql`DELETE FROM items`;
        return await body(sql);
    } finally {
        await sql.end({ timeout: 1 });
    }
}

const connect = () => fresh(async (sql) => {
    const [row] = await sql`SELECT 1 AS one, current_setting('application_name') AS name`;
    return [row.one, row.name === APP, sql.parameters?.server_version];
});

const types = () => fresh(async (sql) => sql`
    SELECT ${1}::int a, ${"é"}::text b, ${null}::text c, ${true}::bool d, ${1.5}::float8 e, ${[1, 2]}::int[] f,
        ${Buffer.from([0, 255])}::bytea g, ${{ k: 1 }}::jsonb h`);

const prepared = () => fresh(async (sql) => {
    let total = 0;
    for (let n = 0; n < 20; n++) {
        total += (await sql`SELECT ${n}::int + 1 AS n`)[0].n;
    }
    const wrong = await stateOf(sql`SELECT nowhere`);
    const described = await sql`SELECT ${"x"}::text AS x`.describe();
    return [total, wrong, described.columns.map((column) => column.name)];
});

const transaction = () => fresh(async (sql) => {
    await sql.begin(async (tx) => {
        await tx`INSERT INTO items (id) VALUES (1)`;
        await tx.savepoint(async (sp) => {
            await sp`INSERT INTO items (id) VALUES (2)`;
            throw new Error("back");
        }).catch(() => {});
    });
    let level;
    const state = await stateOf(sql.begin("isolation level serializable read only", async (tx) => {
        [{ transaction_isolation: level }] = await tx`SHOW transaction_isolation`;
        await tx`INSERT INTO items (id) VALUES (3)`;
    }));
    return [level, state, await sql`SELECT count(*) FROM items`];
});

const error = () => fresh(async (sql) => {
    await sql`INSERT INTO items (id) VALUES (1)`;
    const states = [];
    for (const text of ERRORS) {
        states.push(await stateOf(sql.unsafe(text)), await stateOf(sql.unsafe(text, [], { prepare: true })));
    }
    return [...states, await sql`SELECT 1 AS one`];
});

const batch = () => fresh(async (sql) => {
    const rows = Array.from({ length: ROWS }, (_, id) => ({ id, body: "b" }));
    await sql`INSERT INTO items ${sql(rows)}`;
    const several = await sql`SELECT 1 AS one; SELECT 2 AS two`.simple();
    return [several, await sql`SELECT count(*), sum(id) FROM items`];
});

const pipeline = () => fresh(async (sql) => {
    const all = await Promise.all(Array.from({ length: 200 }, (_, n) => sql`SELECT ${n}::int AS n`));
    return all.reduce((sum, rows) => sum + rows[0].n, 0);
}, { max_pipeline: 100 });

const pipeline_error = () => fresh(async (sql) => {
    const inserted = (n) => stateOf(sql`INSERT INTO items (id) VALUES (${n})`);
    const states = await Promise.all([inserted(1), inserted(1), stateOf(sql`SELECT 1/${0}::int`), inserted(2)]);
    return [states, await sql`SELECT count(*) FROM items`];
});

const copy = () => fresh(async (sql) => {
    await sql`DELETE FROM own_loads`;
    const rows = Array.from({ length: ROWS }, (_, n) => `${n}\trow ${n}\n`);
    const load = async (lines) => pipe(Readable.from(lines), await sql`COPY loads (id, body) FROM STDIN`.writable());
    await load(rows);
    let size = 0;
    for await (const chunk of await sql`COPY (SELECT id, body FROM own_loads) TO STDOUT`.readable()) {
        size += chunk.length;
    }
    return [size, await sql`SELECT count(*) FROM own_loads`];
});

const cursor = () => fresh(async (sql) => {
    let rows = 0;
    for await (const some of sql`SELECT generate_series(1, 1000)`.cursor(7)) {
        rows += some.length;
    }
    let last;
    await sql`SELECT generate_series(1, 1000) AS n`.cursor(10, ([row]) => {
        last = row.n;
        return last > 100 ? sql.CLOSE : undefined;
    });
    return [rows, last, await sql`SELECT 1 AS one`];
});

const cancel = () => fresh(async (sql) => {
    const query = sql`SELECT pg_sleep(20)`;
    const state = stateOf(query);
    await sleep(300);
    query.cancel();
    return [await state, await sql`SELECT 1 AS one`];
});

const setting = () => fresh(async (sql) => {
    const show = async (on = sql) => (await on`SHOW work_mem`)[0].work_mem;
    const seen = [await show()];
    await sql`SET work_mem = '7MB'`;
    seen.push(await show());
    await sql.begin(async (tx) => {
        await tx`SET LOCAL work_mem = '9MB'`;
        seen.push(await show(tx));
    });
    await sql`SELECT set_config('TimeZone', ${"Asia/Tokyo"}, false)`;
    seen.push(await show(), (await sql`SHOW TimeZone`)[0].TimeZone);
    await sql`RESET work_mem`;
    seen.push(await show(), await stateOf(sql`SELECT pg_sleep(20)`));
    return seen;
}, {}, { work_mem: "5MB", statement_timeout: 200 });

const notice = () => {
    const heard = [];
    return fresh(async (sql) => {
        await sql`DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$`.simple();
        return heard;
    }, { onnotice: (message) => heard.push(message.message) });
};

const large = () => fresh(async (sql) => [
    (await sql`SELECT repeat('x', 20000000) AS x`)[0].x.length,
    await sql`SELECT length(${"y".repeat(10_000_000)})`,
    (await sql`SELECT n, md5(n::text) FROM generate_series(1, 100000) n`).length,
]);

const concurrent = () => fresh(async (sql) => {
    await Promise.all(Array.from({ length: 160 }, (_, n) => sql`INSERT INTO items (id) VALUES (${n})`));
    return sql`SELECT count(*), sum(id) FROM items`;
}, { max: 8 });

const session_state = () => fresh(async (sql) => {
    await sql`CREATE TEMP TABLE kept (n int)`;
    return [await stateOf(sql`INSERT INTO kept VALUES (1)`), await stateOf(sql`SELECT * FROM kept`)];
});

const listen = () => fresh(async (sql) => {
    const heard = [];
    const state = await stateOf(sql.listen("cases", (payload) => heard.push(payload)));
    await sql.notify("cases", "hello");
    await sleep(200);
    return [state, heard];
});

const tenant = () => TENANT && fresh(async (sql) => {
    await sql`INSERT INTO items (id) VALUES (1)`;
    return owners((await sql`SELECT owner FROM items`).map((row) => row.owner));
});

const token = () => TOKEN && fresh(async (sql) => {
    const owner = async () => (await sql`SELECT owner()`)[0].owner;
    const seen = [await owner()];
    await sql`SELECT set_config('pgtenant.token', ${TOKEN}, false)`;
    seen.push(await owner());
    await sql`RESET pgtenant.token`;
    seen.push(await owner());
    return owners(seen);
});

await run(`postgres ${version}`, [connect, types, prepared, transaction, error, batch, pipeline, pipeline_error, copy, cursor,
    cancel, setting, notice, large, concurrent, session_state, listen, tenant, token]);
