// node-postgres: cases.

import { readFileSync } from "node:fs";
import { Readable } from "node:stream";
import { pipeline as pipe } from "node:stream/promises";
import pg from "pg";
import { from as copyFrom, to as copyTo } from "pg-copy-streams";
import Cursor from "pg-cursor";
import QueryStream from "pg-query-stream";
import { createRequire } from "node:module";
import { APP, ERRORS, OTHER, ROWS, TENANT, TOKEN, owners, run, sleep, stateOf } from "./cases.mjs";

const { version } = createRequire(import.meta.url)("pg/package.json");

async function fresh(body, options = {}) {
    const c = new pg.Client({ application_name: APP, ...options });
    await c.connect();
    c.on("error", () => {});
    try {
        await c.query("DELETE FROM items");
        return await body(c);
    } finally {
        await c.end();
    }
}

const value = async (c, text, values) => Object.values((await c.query(text, values)).rows[0])[0];

const connect = () => fresh(async (c) => [await value(c, "SELECT 1"), (await value(c, "SHOW application_name")) === APP]);

const encrypted = () => fresh(async (c) =>
    [c.connection.stream.getProtocol(), await value(c, "SELECT length($1)", ["y".repeat(1_000_000)])],
{ ssl: { ca: readFileSync(process.env.CASES_ROOT) } });

const types = () => fresh(async (c) => {
    const text = "SELECT $1::int a, $2::text b, $3::text c, $4::bool d, $5::float8 e, $6::int[] f, $7::bytea g, $8::jsonb h";
    const row = [1, "é", null, true, 1.5, [1, 2], Buffer.from([0, 255]), { k: 1 }];
    return (await c.query({ text, values: row })).rows;
});

const prepared = () => fresh(async (c) => {
    let total = 0;
    for (let n = 0; n < 20; n++) {
        total += (await c.query({ name: "plus", text: "SELECT $1::int + 1 AS n", values: [n] })).rows[0].n;
    }
    const wrong = await stateOf(c.query({ name: "bad", text: "SELECT nowhere" }));
    return [total, wrong, (await c.query({ name: "bad", text: "SELECT 2 AS n" })).rows];
});

const transaction = () => fresh(async (c) => {
    for (const text of ["BEGIN", "INSERT INTO items (id) VALUES (1)", "SAVEPOINT s", "INSERT INTO items (id) VALUES (2)",
        "ROLLBACK TO s", "COMMIT", "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY"]) {
        await c.query(text);
    }
    const level = await value(c, "SHOW transaction_isolation");
    const state = await stateOf(c.query("INSERT INTO items (id) VALUES (3)"));
    const next = await stateOf(c.query("SELECT 1"));
    await c.query("ROLLBACK");
    return [level, state, next, await value(c, "SELECT count(*) FROM items")];
});

const error = () => fresh(async (c) => {
    await c.query("INSERT INTO items (id) VALUES (1)");
    const states = [];
    for (const text of ERRORS) {
        states.push(await stateOf(c.query(text)), await stateOf(c.query(text, [])));
    }
    return [...states, await value(c, "SELECT 1")];
});

const batch = () => fresh(async (c) => {
    const several = await c.query("INSERT INTO items (id) VALUES (1); SELECT 1 AS one; UPDATE items SET body = 'b'");
    const state = await stateOf(c.query("INSERT INTO items (id) VALUES (2); SELECT 1/0"));
    return [several.map((r) => [r.command, r.rowCount]), state, await value(c, "SELECT count(*) FROM items")];
});

// Queries of one client are sent one by one, unless it is told otherwise.
const pipeline = () => fresh(async (c) => {
    const all = Array.from({ length: 100 }, (_, n) => value(c, "SELECT $1::int AS n", [n]));
    return (await Promise.all(all)).reduce((a, b) => a + b);
}, { pipeline: true });

const pipeline_error = () => fresh(async (c) => {
    const inserted = (n) => stateOf(c.query("INSERT INTO items (id) VALUES ($1)", [n]));
    const states = await Promise.all([inserted(1), inserted(1), stateOf(c.query("SELECT 1/$1", [0])), inserted(2)]);
    return [states, await value(c, "SELECT count(*) FROM items")];
}, { pipeline: true });

const copy = () => fresh(async (c) => {
    await c.query("DELETE FROM own_loads");
    const rows = Array.from({ length: ROWS }, (_, n) => `${n}\trow ${n}\n`);
    const load = (lines) => pipe(Readable.from(lines), c.query(copyFrom("COPY loads (id, body) FROM STDIN")));
    await load(rows);
    let size = 0;
    for await (const chunk of c.query(copyTo("COPY (SELECT id, body FROM own_loads) TO STDOUT"))) {
        size += chunk.length;
    }
    const state = await stateOf(load(["rubbish\n"]));
    return [size, state, await value(c, "SELECT count(*) FROM own_loads")];
});

const cursor = () => fresh(async (c) => {
    await c.query("BEGIN");
    const portal = c.query(new Cursor("SELECT generate_series(1, $1::int) AS n", [1000]));
    const first = await portal.read(10);
    await portal.close();
    let rows = 0;
    for await (const _ of c.query(new QueryStream("SELECT generate_series(1, 1000)", [], { batchSize: 7 }))) {
        rows++;
    }
    await c.query("COMMIT");
    // Outside a transaction a portal lives until Sync, which pg-cursor sends only at its end.
    for await (const _ of c.query(new QueryStream("SELECT generate_series(1, 1000)", [], { batchSize: 7 }))) {
        rows++;
    }
    return [first.at(-1).n, rows];
});

const cancel = () => fresh(async (c) => {
    const sleeping = { text: "SELECT pg_sleep(20)" };
    const query = new pg.Query(sleeping.text);
    const ended = new Promise((resolve) => query.on("error", (e) => resolve(e.code)).on("end", () => resolve("no error")));
    c.query(query);
    await sleep(300);
    new pg.Client().cancel(c, query);
    return [await ended, await value(c, "SELECT 1")];
});

const setting = () => fresh(async (c) => {
    const seen = [await value(c, "SHOW work_mem")];
    await c.query("SET work_mem = '7MB'");
    seen.push(await value(c, "SHOW work_mem"));
    await c.query("BEGIN");
    await c.query("SET LOCAL work_mem = '9MB'");
    seen.push(await value(c, "SHOW work_mem"));
    await c.query("COMMIT");
    await c.query("SELECT set_config('TimeZone', $1, false)", ["Asia/Tokyo"]);
    seen.push(await value(c, "SHOW work_mem"), await value(c, "SHOW TimeZone"));
    await c.query("RESET work_mem");
    seen.push(await value(c, "SHOW work_mem"), await stateOf(c.query("SELECT pg_sleep(20)")));
    return seen;
}, { options: "-c work_mem=5MB", statement_timeout: 200 });

const notice = () => fresh(async (c) => {
    const heard = [];
    c.on("notice", (message) => heard.push(message.message));
    await c.query("DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$");
    return heard;
});

const large = () => fresh(async (c) => [
    (await value(c, "SELECT repeat('x', 20000000)")).length,
    await value(c, "SELECT length($1)", ["y".repeat(10_000_000)]),
    (await c.query("SELECT n, md5(n::text) FROM generate_series(1, 100000) n")).rows.length,
]);

async function concurrent() {
    await fresh(() => {});
    const pool = new pg.Pool({ max: 8, application_name: APP });
    await Promise.all(Array.from({ length: 160 }, (_, n) => pool.query("INSERT INTO items (id) VALUES ($1)", [n])));
    const rows = (await pool.query("SELECT count(*), sum(id) FROM items")).rows;
    await pool.end();
    return rows;
}

const session_state = () => fresh(async (c) => {
    await c.query("CREATE TEMP TABLE kept (n int)");
    return [await stateOf(c.query("INSERT INTO kept VALUES (1)")), await stateOf(c.query("SELECT * FROM kept"))];
});

const listen = () => fresh((c) => fresh(async (other) => {
    const heard = [];
    c.on("notification", (message) => heard.push(message.payload));
    const state = await stateOf(c.query("LISTEN cases"));
    await other.query("NOTIFY cases, 'hello'");
    await sleep(200);
    return [state, heard];
}));

const tenant = () => TENANT && fresh(async (c) => {
    await c.query("INSERT INTO items (id) VALUES (1)");
    return owners((await c.query("SELECT owner FROM items")).rows.map((row) => row.owner));
});

const token = () => TOKEN && fresh(async (c) => {
    const seen = [await value(c, "SELECT owner()")];
    await c.query("SELECT set_config('pgtenant.token', $1, false)", [TOKEN]);
    seen.push(await value(c, "SELECT owner()"));
    await c.query("RESET pgtenant.token");
    seen.push(await value(c, "SELECT owner()"));
    return owners(seen);
});

await run(`pg ${version}`, [connect, encrypted, types, prepared, transaction, error, batch, pipeline, pipeline_error, copy, cursor, cancel,
    setting, notice, large, concurrent, session_state, listen, tenant, token]);
