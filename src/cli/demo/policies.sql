-- Row level security for the helpdesk. Runs as one simple query, by a superuser.
--
--   * tenant_floor is RESTRICTIVE and for everyone: whatever permissive policy somebody adds later, no row of another
--     organization passes. It guards reads (USING) and writes (WITH CHECK).
--   * Each helper stands in a scalar sub-select, so that PostgreSQL runs it once per query and not once per row.
--   * A token without a project sees its whole organization: COALESCE lets every project pass then.
--   * FORCE comes last: before it, the owner may still work on the tables.

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO app;
GRANT SELECT ON plans TO app;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO app;

DO $$
DECLARE
    -- Tables of an organization, and those that also belong to a project.
    organization_tables constant text[] := ARRAY['users', 'customers', 'sla_policies', 'tags', 'invoices', 'invoice_lines'];
    project_tables constant text[] := ARRAY['project_members', 'tickets', 'ticket_messages', 'attachments', 'ticket_tags',
                                            'articles', 'events'];
    organization constant text := '(SELECT pgtenant.organization_id())';
    project constant text := 'COALESCE((SELECT pgtenant.project_id()), %1$I)';
    t text;
BEGIN
    -- The tenants themselves: their own row is what they see of each other's table.
    EXECUTE format('CREATE POLICY tenant_floor ON organizations AS RESTRICTIVE USING (id = %s) WITH CHECK (id = %1$s)', organization);
    EXECUTE format('CREATE POLICY tenant_floor ON projects AS RESTRICTIVE USING (organization_id = %s) WITH CHECK (organization_id = %1$s)', organization);
    EXECUTE format('CREATE POLICY project_floor ON projects AS RESTRICTIVE USING (id = %s) WITH CHECK (id = %1$s)', format(project, 'id'));
    FOREACH t IN ARRAY organization_tables || project_tables LOOP
        EXECUTE format('CREATE POLICY tenant_floor ON %I AS RESTRICTIVE USING (organization_id = %s) WITH CHECK (organization_id = %2$s)',
                       t, organization);
    END LOOP;
    FOREACH t IN ARRAY project_tables LOOP
        EXECUTE format('CREATE POLICY project_floor ON %I AS RESTRICTIVE USING (project_id = %s) WITH CHECK (project_id = %2$s)',
                       t, format(project, 'project_id'));
    END LOOP;
    FOREACH t IN ARRAY ARRAY['organizations', 'projects'] || organization_tables || project_tables LOOP
        EXECUTE format('CREATE POLICY app_base ON %I TO app USING (true) WITH CHECK (true)', t);
        -- Not TRUNCATE, REFERENCES or TRIGGER: they look past policies.
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO app', t);
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
    END LOOP;
    REVOKE INSERT, UPDATE, DELETE ON organizations FROM app;

    -- A view reads with its owner's rights unless it is told otherwise, which PostgreSQL can since version 15.
    IF current_setting('server_version_num')::int >= 150000 THEN
        EXECUTE 'CREATE VIEW open_tickets WITH (security_invoker = true) AS
                     SELECT * FROM tickets WHERE status NOT IN (''solved'', ''closed'')';
        GRANT SELECT ON open_tickets TO app;
    END IF;
END
$$;
