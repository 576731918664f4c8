// Drizzle over node-postgres: cases.

import { count, eq, sql, sum } from "drizzle-orm";
import { drizzle } from "drizzle-orm/node-postgres";
import { integer, pgTable, text } from "drizzle-orm/pg-core";
import { createRequire } from "node:module";
import pg from "pg";
import { APP, ERRORS, ROWS, TENANT, TOKEN, owners, run, stateOf } from "./cases.mjs";

const version = createRequire(import.meta.url)("./package.json").dependencies["drizzle-orm"];
const items = pgTable("items", { owner: text().default(sql`owner()`), id: integer(), body: text() });

async function fresh(body, max = 1) {
    const pool = new pg.Pool({ max, application_name: APP });
    try {
        const db = drizzle(pool);
        await db.delete(items);
        return await body(db);
    } finally {
        await pool.end();
    }
}

const value = async (db, query) => Object.values((await db.execute(query)).rows[0])[0];

const connect = () => fresh(async (db) => [await value(db, sql`SELECT 1`), (await value(db, sql`SHOW application_name`)) === APP]);

const prepared = () => fresh(async (db) => {
    await db.insert(items).values({ id: 1, body: "x" });
    const query = db.select({ body: items.body }).from(items).where(eq(items.id, sql.placeholder("id"))).prepare("by_id");
    const seen = [];
    for (let n = 0; n < 20; n++) {
        seen.push((await query.execute({ id: n % 2 })).length);
    }
    return seen.join("");
});

const transaction = () => fresh(async (db) => {
    await db.transaction(async (tx) => {
        await tx.insert(items).values({ id: 1 });
        await tx.transaction(async (nested) => {
            await nested.insert(items).values({ id: 2 });
            nested.rollback();
        }).catch(() => {});
    });
    let level;
    const state = await stateOf(db.transaction(async (tx) => {
        level = await value(tx, sql`SHOW transaction_isolation`);
        await tx.insert(items).values({ id: 3 });
    }, { isolationLevel: "serializable", accessMode: "read only" }));
    return [level, state, await db.select({ n: count() }).from(items)];
});

const error = () => fresh(async (db) => {
    await db.insert(items).values({ id: 1 });
    const states = [];
    for (const text of ERRORS) {
        states.push(await stateOf(db.execute(sql.raw(text))));
    }
    return [...states, await value(db, sql`SELECT 1`)];
});

const batch = () => fresh(async (db) => {
    await db.insert(items).values(Array.from({ length: ROWS }, (_, id) => ({ id, body: "b" })));
    await db.update(items).set({ body: "c" });
    return db.select({ n: count(), ids: sum(items.id) }).from(items);
});

const setting = () => fresh(async (db) => {
    await db.execute(sql`SET work_mem = '7MB'`);
    const seen = [await value(db, sql`SHOW work_mem`)];
    await db.transaction(async (tx) => {
        await tx.execute(sql`SET LOCAL work_mem = '9MB'`);
        seen.push(await value(tx, sql`SHOW work_mem`));
    });
    await db.execute(sql`RESET work_mem`);
    return [...seen, await value(db, sql`SHOW work_mem`)];
});

const concurrent = () => fresh(async (db) => {
    await Promise.all(Array.from({ length: 160 }, (_, id) => db.insert(items).values({ id })));
    return db.select({ n: count(), ids: sum(items.id) }).from(items);
}, 8);

const session_state = () => fresh(async (db) => {
    await db.execute(sql`CREATE TEMP TABLE kept (n int)`);
    return [await stateOf(db.execute(sql`INSERT INTO kept VALUES (1)`)), await stateOf(db.execute(sql`SELECT * FROM kept`))];
});

const tenant = () => TENANT && fresh(async (db) => {
    await db.insert(items).values({ id: 1 });
    return owners((await db.select({ owner: items.owner }).from(items)).map((row) => row.owner));
});

const token = () => TOKEN && fresh(async (db) => {
    const seen = [await value(db, sql`SELECT owner()`)];
    await db.execute(sql`SELECT set_config('pgtenant.token', ${TOKEN}, false)`);
    seen.push(await value(db, sql`SELECT owner()`));
    await db.execute(sql`RESET pgtenant.token`);
    seen.push(await value(db, sql`SELECT owner()`));
    return owners(seen);
});

await run(`drizzle-orm ${version}`, [connect, prepared, transaction, error, batch, setting, concurrent, session_state, tenant,
    token]);
