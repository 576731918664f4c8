//! Statements that go through a table batch by batch, each committed by itself, and go on where they were.

use super::design::Tenanted;
use crate::architect::names::{dollar_quoted, ident, literal};

/// For so long the rows of a batch are locked, in milliseconds: by that the size of the next one is chosen.
pub(super) const BATCH_MS: u32 = 50;

/// For so long older transactions are waited for, in milliseconds, before it is told who they are and waited again.
const OLDER_MS: u32 = 2_000;

/// What is done with each batch.
pub(super) struct Batches<'a> {
    /// Whose rows.
    pub(super) one: &'a Tenanted<'a>,
    /// The table, as FROM and UPDATE name its own rows.
    pub(super) rows: &'a str,
    /// The column that is set, quoted.
    pub(super) column: &'a str,
    /// To this.
    pub(super) value: &'a str,
    /// Where this is so of the table's rows.
    pub(super) wrong: &'a str,
    /// The step's id.
    pub(super) id: &'a str,
    /// What is raised where rows are left that are so, and another pass would change nothing. Without it, rows have values already, and are
    /// looked at again.
    pub(super) complaint: Option<&'a str>,
}

impl Batches<'_> {
    /// One statement that goes through a table by its primary key, or by its blocks where it has none.
    pub(super) fn sql(&self) -> String {
        let (id, table) = (self.id, format!("{}::regclass", literal(&self.one.table.name.to_string())));
        let parts =
            format!("part.oid = {table} OR part.oid IN (SELECT relid FROM pg_partition_tree({table}))");
        let (declared, begun, batch) = match self.one.table.primary_key() {
            Some(key) => self.by_key(&key.columns),
            None => self.by_block(&parts),
        };
        // Only where each row that is looked at may be changed is it told how far it is.
        let total = match self.complaint {
            Some(_) => format!(
                "    UPDATE pgtenant.migration_steps SET total = (
        SELECT sum(greatest(part.reltuples, 0)) FROM pg_class AS part WHERE {parts}
    ) WHERE id = '{id}';\n"
            ),
            None => String::new(),
        };
        let left = format!(
            "        SELECT count(*) INTO pgtenant_left FROM {rows} AS {this} WHERE {wrong};
        EXIT WHEN pgtenant_left = 0;
        -- Somebody changed the key of a row, or moved it, while others were looked at.
        CONTINUE WHEN pgtenant_found > 0;
{complaint}",
            rows = self.rows,
            this = ident(&self.one.table.name.name),
            wrong = self.wrong,
            complaint = self.complaint.unwrap_or_default(),
        );
        // Whoever moved what these rows hang on before they had a value, and is not done yet, is not seen, and has not seen them.
        let wait = match self.complaint {
            Some(_) => String::new(),
            None => format!(
                "    pgtenant_begun := clock_timestamp();
    COMMIT;
    WHILE pg_snapshot_xmin(pg_current_snapshot()) <= pgtenant_since LOOP
        IF clock_timestamp() > pgtenant_begun + interval '{OLDER_MS} ms' THEN
            RAISE EXCEPTION USING ERRCODE = '55P03', MESSAGE = 'transactions that are older still run';
        END IF;
        COMMIT;
        PERFORM pg_sleep(0.01);
    END LOOP;\n"
            ),
        };
        let since = match self.complaint {
            Some(_) => "",
            None => "    pgtenant_since xid8 := pg_current_xact_id();\n",
        };
        let body = format!(
            "
DECLARE
    -- Up to where rows have been looked at.
    pgtenant_at jsonb := (SELECT position FROM pgtenant.migration_steps WHERE id = '{id}');
{declared}{since}    pgtenant_is_last boolean;
    pgtenant_changed bigint;
    pgtenant_found bigint;
    pgtenant_left bigint;
    pgtenant_begun timestamptz;
    pgtenant_took float8;
BEGIN
{total}{wait}    LOOP
        pgtenant_found := 0;
{begun}        LOOP
            pgtenant_begun := clock_timestamp();
            SET LOCAL session_replication_role = replica; -- nobody's triggers: nothing but this column changes
            SET LOCAL plan_cache_mode = force_custom_plan;
            SET LOCAL enable_seqscan = off; -- nor is the rest of the table read
            SET LOCAL jit = off;
{batch}
            UPDATE pgtenant.migration_steps SET position = pgtenant_at, rows = rows + pgtenant_changed WHERE id = '{id}';
            COMMIT;
            pgtenant_found := pgtenant_found + pgtenant_changed;
            EXIT WHEN pgtenant_is_last;
            pgtenant_took := greatest(0.001, extract(epoch FROM clock_timestamp() - pgtenant_begun));
            PERFORM pg_sleep(pause + nice * pgtenant_took) FROM pgtenant.migration_pace;
            pgtenant_size := greatest(pgtenant_least, least(20000, pgtenant_size * least(2, {BATCH_MS} / 1000.0 / pgtenant_took)))::integer;
        END LOOP;
        -- Whoever comes again begins anew.
        pgtenant_at := NULL;
        UPDATE pgtenant.migration_steps SET position = NULL WHERE id = '{id}';
        COMMIT;
{left}    END LOOP;
END
"
        );
        format!("DO {}", dollar_quoted(&body))
    }

    /// What is declared, what a pass begins with, and a batch.
    fn by_key(&self, key: &[String]) -> (String, String, String) {
        // Nothing here is called as a column or a table of the application may be.
        let this = ident(&self.one.table.name.name);
        let numbered = |what: &dyn Fn(usize, &str) -> String| {
            let all = key.iter().enumerate().map(|(n, name)| what(n, &ident(name)));
            all.collect::<Vec<_>>().join(", ")
        };
        let kind = |n: usize| self.one.table.column(&key[n]).map_or("text", |column| column.kind.as_str());
        let own = numbered(&|_, name| format!("{this}.{name}"));
        // Between two keys, so that however large a batch is, its rows are found by the index.
        let batch = format!(
            "            WITH pgtenant_batch AS MATERIALIZED (
                SELECT {select} FROM {rows} AS {this}
                WHERE pgtenant_at IS NULL OR ({own}) > ({at})
                ORDER BY {own} LIMIT pgtenant_size
            )
            SELECT (SELECT count(*) FROM pgtenant_batch) < pgtenant_size,
                coalesce((SELECT jsonb_build_object({record}) FROM pgtenant_batch ORDER BY {last} LIMIT 1), pgtenant_at)
                INTO pgtenant_is_last, pgtenant_to;
            WITH pgtenant_done AS (
                UPDATE {rows} AS {this} SET {column} = {value}
                WHERE (pgtenant_at IS NULL OR ({own}) > ({at})) AND ({own}) <= ({to}) AND {wrong}
                RETURNING {this}.{column} AS pgtenant_new
            )
            SELECT count(pgtenant_new) INTO pgtenant_changed FROM pgtenant_done;
            pgtenant_at := pgtenant_to;",
            rows = self.rows,
            column = self.column,
            value = self.value,
            wrong = self.wrong,
            select = numbered(&|n, name| format!("{this}.{name} AS pgtenant_{n}")),
            // As text: JSON has no arrays, ranges or times that could be read back.
            at = numbered(&|n, _| format!("(pgtenant_at ->> '{n}')::{}", kind(n))),
            to = numbered(&|n, _| format!("(pgtenant_to ->> '{n}')::{}", kind(n))),
            record = numbered(&|n, _| format!("'{n}', pgtenant_batch.pgtenant_{n}::text")),
            last = numbered(&|n, _| format!("pgtenant_batch.pgtenant_{n} DESC")),
        );
        let declared =
            "    pgtenant_size integer := 500;\n    pgtenant_least integer := 100;\n    pgtenant_to jsonb;\n";
        (declared.to_owned(), String::new(), batch)
    }

    /// Rows that cannot be told apart are found by where they lie (`ctid`), without sorting them.
    fn by_block(&self, parts: &str) -> (String, String, String) {
        let this = ident(&self.one.table.name.name);
        let begun = format!(
            "        -- What is written later lies behind, and has what a new row has.
        pgtenant_blocks := (SELECT max(pg_relation_size(part.oid) / current_setting('block_size')::bigint) FROM pg_class AS part WHERE {parts});\n"
        );
        let batch = format!(
            "            pgtenant_from := coalesce((pgtenant_at ->> 'block')::bigint, 0);
            WITH pgtenant_done AS (
                UPDATE {rows} AS {this} SET {column} = {value}
                WHERE {this}.ctid >= format('(%s,0)', pgtenant_from)::tid
                AND {this}.ctid < format('(%s,0)', least(4294967295, pgtenant_from + pgtenant_size))::tid AND {wrong}
                RETURNING {this}.{column} AS pgtenant_new
            )
            SELECT count(pgtenant_new) INTO pgtenant_changed FROM pgtenant_done;
            pgtenant_at := jsonb_build_object('block', pgtenant_from + pgtenant_size);
            pgtenant_is_last := pgtenant_from + pgtenant_size >= pgtenant_blocks;",
            rows = self.rows,
            column = self.column,
            value = self.value,
            wrong = self.wrong,
        );
        let declared = "    pgtenant_size integer := 8; -- blocks\n    pgtenant_least integer := 1;\n    pgtenant_from bigint;\n    pgtenant_blocks bigint;\n";
        (declared.to_owned(), begun, batch)
    }
}
