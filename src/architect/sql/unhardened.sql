-- One role without tenants keeps what hardening takes from everyone.
GRANT EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean), pg_catalog.setseed(double precision),
    pg_catalog.pg_cancel_backend(integer), pg_catalog.pg_terminate_backend(integer, bigint), pg_catalog.pg_notify(text, text),
    pg_catalog.lo_creat(integer), pg_catalog.lo_create(oid), pg_catalog.lo_from_bytea(oid, bytea),
    pg_catalog.lo_put(oid, bigint, bytea), pg_catalog.lowrite(integer, bytea), pg_catalog.lo_truncate(integer, integer),
    pg_catalog.lo_truncate64(integer, bigint), pg_catalog.lo_unlink(oid) TO {role};
GRANT UPDATE ON pg_catalog.pg_settings TO {role};
GRANT USAGE ON LANGUAGE plpgsql TO {role};
DO $$
BEGIN
    EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO %I', current_database(), {role_text});
END
$$;
