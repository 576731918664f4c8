-- Row level security for the helpdesk. Runs as one simple query, by a superuser.
--
--   * tenant_floor is RESTRICTIVE and for everyone: whatever permissive policy somebody adds later, no row of another
--     organization passes. It guards reads (USING) and writes (WITH CHECK). Restrictive policies only take away, so a
--     permissive one, app_base, gives the application something to take from; without one nobody sees a row.
--   * project_floor does the same for projects. A token without a project sees its whole organization: COALESCE lets
--     every project pass then. This cannot be an index condition, so lists rely on the indexes that start with
--     (organization_id, created_at); a query that names its project gets one that starts with both.
--   * Each helper stands in a scalar sub-select, an InitPlan: PostgreSQL runs it once per query and not once per row,
--     and its result can be an index condition.
--   * FORCE comes last: from then on not even the tables' owner sees a row without a context.

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO app;
-- Identity columns need no right on their sequences; with one, an organization could read how fast others grow.
GRANT SELECT ON plans TO app;

DO $$
DECLARE
    -- Tables of an organization, and those that also belong to a project.
    organization_tables constant text[] := ARRAY[
        'users', 'customers', 'sla_policies', 'tags', 'invoices', 'invoice_lines'];
    project_tables constant text[] := ARRAY[
        'project_members', 'tickets', 'ticket_messages', 'attachments', 'ticket_tags', 'articles', 'events'];
    own_organization constant text := '%1$I = (SELECT pgtenant.organization_id())';
    own_project constant text := '%1$I = COALESCE((SELECT pgtenant.project_id()), %1$I)';
    floor constant text := 'CREATE POLICY %I ON %I AS RESTRICTIVE FOR ALL TO PUBLIC USING (%s) WITH CHECK (%3$s)';
    t text;
BEGIN
    -- The tenants themselves: of the organizations one's own, of the projects those of the token.
    EXECUTE format(floor, 'tenant_floor', 'organizations', format(own_organization, 'id'));
    EXECUTE format(floor, 'tenant_floor', 'projects', format(own_organization, 'organization_id'));
    EXECUTE format(floor, 'project_floor', 'projects', format(own_project, 'id'));
    FOREACH t IN ARRAY organization_tables || project_tables LOOP
        EXECUTE format(floor, 'tenant_floor', t, format(own_organization, 'organization_id'));
    END LOOP;
    FOREACH t IN ARRAY project_tables LOOP
        EXECUTE format(floor, 'project_floor', t, format(own_project, 'project_id'));
    END LOOP;

    FOREACH t IN ARRAY ARRAY['organizations', 'projects'] || organization_tables || project_tables LOOP
        EXECUTE format('CREATE POLICY app_base ON %I AS PERMISSIVE FOR ALL TO app USING (true) WITH CHECK (true)', t);
        -- Not TRUNCATE, REFERENCES or TRIGGER: they look past policies.
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO app', t);
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
    END LOOP;
    -- An organization is opened and closed, and its plan changed, by the product's maker.
    REVOKE INSERT, UPDATE, DELETE ON organizations FROM app;

    -- A view reads with its owner's rights unless it is told otherwise, which PostgreSQL can since version 15.
    IF current_setting('server_version_num')::int >= 150000 THEN
        EXECUTE $view$
            CREATE VIEW open_tickets WITH (security_invoker = true) AS
                SELECT organization_id, project_id, id, subject, status, priority, assignee_id, customer_id, created_at
                FROM tickets WHERE status IN ('new', 'open', 'pending')
        $view$;
        EXECUTE $view$
            CREATE VIEW invoice_totals WITH (security_invoker = true) AS
                SELECT i.organization_id, i.id, i.number, i.status, i.due_on, sum(l.cents)::bigint AS cents
                FROM invoices i
                JOIN invoice_lines l ON (l.organization_id, l.invoice_id) = (i.organization_id, i.id)
                GROUP BY i.organization_id, i.id
        $view$;
        ALTER VIEW open_tickets OWNER TO helpdesk_owner;
        ALTER VIEW invoice_totals OWNER TO helpdesk_owner;
        GRANT SELECT ON open_tickets, invoice_totals TO app;
    END IF;

    FOREACH t IN ARRAY ARRAY['organizations', 'projects'] || organization_tables || project_tables LOOP
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
    END LOOP;
END
$$;
