-- The migration's ledger: which step is done, when, by which text, and how far one is that goes row by row.
SET LOCAL search_path = pg_catalog, pg_temp;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pgtenant_owner') THEN
        CREATE ROLE pgtenant_owner NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION NOINHERIT;
    END IF;
END
$$;
CREATE SCHEMA IF NOT EXISTS pgtenant;
ALTER SCHEMA pgtenant OWNER TO pgtenant_owner;
REVOKE ALL ON SCHEMA pgtenant FROM PUBLIC;
CREATE TABLE IF NOT EXISTS pgtenant.migration_steps (
    id       text PRIMARY KEY,
    number   bigint GENERATED ALWAYS AS IDENTITY,
    title    text NOT NULL,
    hash     text NOT NULL,
    state    text NOT NULL CHECK (state IN ('running', 'done', 'undoing')),
    position jsonb,
    rows     bigint NOT NULL DEFAULT 0,
    total    bigint,
    undone   bigint NOT NULL DEFAULT 0,
    attempts bigint NOT NULL DEFAULT 0,
    started  timestamptz NOT NULL DEFAULT now(),
    finished timestamptz
);
COMMENT ON TABLE pgtenant.migration_steps IS 'Steps of pgtenant migrate: what is done, and how far the one is that runs.';
CREATE TABLE IF NOT EXISTS pgtenant.migration_checksums (
    table_name text NOT NULL,
    moment     text NOT NULL CHECK (moment IN ('before', 'after')),
    rows       bigint NOT NULL,
    checksum   numeric NOT NULL,
    taken      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (table_name, moment)
);
COMMENT ON TABLE pgtenant.migration_checksums IS 'Rows of each table, and a checksum over the columns that it had before.';
CREATE TABLE IF NOT EXISTS pgtenant.migration_promises (
    object     text PRIMARY KEY,
    definition text NOT NULL
);
COMMENT ON TABLE pgtenant.migration_promises IS 'What isolation rests on, as it was when the migration was done: pgtenant migrate verify tells what was changed since.';
CREATE TABLE IF NOT EXISTS pgtenant.migration_pace (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    pause    float8 NOT NULL DEFAULT 0,
    nice     float8 NOT NULL DEFAULT 3
);
COMMENT ON TABLE pgtenant.migration_pace IS 'Between two batches: seconds, which pgtenant migrate apply sets where standbys or others suffer, and as many times as long as the last one took.';
INSERT INTO pgtenant.migration_pace DEFAULT VALUES ON CONFLICT DO NOTHING;
ALTER TABLE pgtenant.migration_steps OWNER TO pgtenant_owner;
ALTER TABLE pgtenant.migration_checksums OWNER TO pgtenant_owner;
ALTER TABLE pgtenant.migration_promises OWNER TO pgtenant_owner;
ALTER TABLE pgtenant.migration_pace OWNER TO pgtenant_owner;
REVOKE ALL ON pgtenant.migration_steps, pgtenant.migration_checksums, pgtenant.migration_promises, pgtenant.migration_pace FROM PUBLIC;
