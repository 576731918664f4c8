-- One role after the database was hardened: it is bound by the database itself, and nothing was granted to it in another way.
GRANT EXECUTE ON FUNCTION pgtenant.bind(double precision, text, text, boolean), pgtenant.put_back(text, text) TO {role};
DO $$
BEGIN
    IF has_function_privilege({role_text}, 'pg_catalog.set_config(text, text, boolean)', 'EXECUTE')
        OR has_language_privilege({role_text}, 'plpgsql', 'USAGE')
        OR has_database_privilege({role_text}, current_database(), 'TEMPORARY')
    THEN
        RAISE EXCEPTION USING ERRCODE = '42501',
            MESSAGE = format('role %I still has what hardening takes: it is a superuser, owns the database, or was granted it by name', {role_text}),
            HINT = 'Install as a superuser, for a role that is none and owns nothing; revoke what was granted to it or to a role that it is a member of.';
    END IF;
END
$$;
