-- Data for the helpdesk: the same on every run, made of numbers and words. Ids of the organizations end in their
-- number, ids of projects in 1000000 x organization + project. One statement behind each line that names a step.

-- step: loading plans
INSERT INTO plans VALUES ('free', 'Free', 0), ('team', 'Team', 1900), ('scale', 'Scale', 4900);

-- step: loading organizations
INSERT INTO organizations (id, name, plan_id, created_at)
SELECT ('018f6f3e-0000-7000-8000-' || lpad(o::text, 12, '0'))::uuid, name, plan, timestamptz '2024-01-01 00:00+00'
FROM (VALUES (1, 'Acme Robotics', 'scale'), (2, 'Blue Harbor Logistics', 'team'), (3, 'Cobalt Clinics', 'team'),
             (4, 'Dune Analytics', 'free')) AS v (o, name, plan);

-- step: loading projects
INSERT INTO projects (organization_id, id, name)
SELECT ('018f6f3e-0000-7000-8000-' || lpad(o::text, 12, '0'))::uuid,
       ('018f6f3e-0000-7000-8000-' || lpad((o * 1000000 + p)::text, 12, '0'))::uuid, name
FROM (VALUES (1, 1, 'Arms and grippers'), (1, 2, 'Warehouse fleet'), (1, 3, 'Spare parts'), (1, 4, 'Academy'),
             (2, 1, 'Sea freight'), (2, 2, 'Customs'), (2, 3, 'Cold chain'),
             (3, 1, 'Front desk'), (3, 2, 'Laboratory'),
             (4, 1, 'Dashboards'), (4, 2, 'Pipelines')) AS v (o, p, name);

-- step: loading users
INSERT INTO users (organization_id, id, email, name, is_admin)
SELECT ('018f6f3e-0000-7000-8000-' || lpad(o::text, 12, '0'))::uuid, u, 'agent' || u || '@org' || o || '.example.com',
       (ARRAY['Ada', 'Grace', 'Edsger', 'Barbara', 'Donald', 'Radia', 'Ken', 'Frances'])[1 + u % 8] || ' '
           || (ARRAY['Moreau', 'Okafor', 'Lindqvist', 'Tanaka', 'Silva', 'Novak'])[1 + u % 6],
       u % 10 = 1
FROM (VALUES (1, 60), (2, 30), (3, 20), (4, 10)) AS v (o, n), generate_series(1, n) AS u;

-- step: loading project members
INSERT INTO project_members (organization_id, project_id, user_id)
SELECT u.organization_id, p.id, u.id
FROM users u JOIN projects p USING (organization_id)
WHERE (u.id + right(p.id::text, 6)::int) % 2 = 0;

-- step: loading customers
INSERT INTO customers (organization_id, id, email, name, attributes, created_at)
SELECT ('018f6f3e-0000-7000-8000-' || lpad(o::text, 12, '0'))::uuid, c, 'customer' || c || '@example.com',
       (ARRAY['Noor', 'Mateo', 'Yuki', 'Ingrid', 'Kwame', 'Leila', 'Pavel'])[1 + c % 7] || ' '
           || (ARRAY['Haddad', 'Fischer', 'Rossi', 'Kim', 'Dubois'])[1 + c % 5],
       jsonb_build_object('tier', (ARRAY['bronze', 'silver', 'gold'])[1 + c % 3], 'region', 'r' || c % 12),
       timestamptz '2024-02-01 00:00+00' + c * interval '3 hours'
FROM (VALUES (1, 3000), (2, 1200), (3, 600), (4, 300)) AS v (o, n), generate_series(1, n) AS c;

-- step: loading service levels
INSERT INTO sla_policies (organization_id, id, name, first_reply_minutes, solve_minutes)
SELECT id, s, (ARRAY['Standard', 'Business', 'Critical'])[s], (ARRAY[480, 120, 15])[s], (ARRAY[4320, 1440, 240])[s]
FROM organizations, generate_series(1, 3) AS s;

-- step: loading tickets
INSERT INTO tickets (organization_id, project_id, id, customer_id, assignee_id, sla_policy_id, subject, status, priority,
                     via, created_at)
SELECT ('018f6f3e-0000-7000-8000-' || lpad(o::text, 12, '0'))::uuid,
       ('018f6f3e-0000-7000-8000-' || lpad((o * 1000000 + 1 + h % projects)::text, 12, '0'))::uuid,
       t, 1 + h % customers, CASE WHEN h % 5 > 0 THEN 1 + h % users END, 1 + h % 3,
       (ARRAY['Cannot sign in', 'Delivery is late', 'Invoice question', 'Device offline', 'Feature request', 'Data export',
              'Wrong address', 'Slow response'])[1 + h % 8] || ' #' || t,
       (ARRAY['new', 'open', 'open', 'pending', 'solved', 'closed', 'closed', 'closed'])[1 + h / 8 % 8]::ticket_status,
       (ARRAY['low', 'normal', 'normal', 'high', 'urgent'])[1 + h / 64 % 5]::ticket_priority,
       (ARRAY['email', 'web', 'chat', 'phone', 'api'])[1 + h / 320 % 5]::channel,
       timestamptz '2025-01-01 00:00+00' + (t * 1.0 / n) * interval '500 days'
FROM (VALUES (1, 24000, 4, 3000, 60), (2, 10000, 3, 1200, 30), (3, 4000, 2, 600, 20), (4, 2000, 2, 300, 10))
         AS v (o, n, projects, customers, users),
     generate_series(1, n) AS t,
     LATERAL (SELECT (hashtextextended('ticket' || o || '/' || t, 0) & 2147483647)::int AS h) AS hash;

-- step: loading messages
INSERT INTO ticket_messages (organization_id, project_id, id, ticket_id, author_id, body, is_internal, created_at)
SELECT t.organization_id, t.project_id, (t.id - 1) * 3 + m, t.id, CASE WHEN m > 1 THEN t.assignee_id END,
       (ARRAY['Hello, I need help with this.', 'Thank you for writing, we are looking into it.',
              'Could you send us a screenshot?', 'It works again, thank you.', 'Any news?'])[1 + (t.id + m) % 5]
           || ' ' || repeat((ARRAY['Since yesterday. ', 'As before. ', 'On all devices. '])[1 + t.id % 3], 1 + (t.id * m % 6)::int),
       m > 1 AND t.assignee_id IS NOT NULL AND (t.id + m) % 9 = 0, t.created_at + m * interval '47 minutes'
FROM tickets t, generate_series(1, 3) AS m;

-- step: loading attachments
INSERT INTO attachments (organization_id, project_id, id, message_id, file_name, bytes)
SELECT organization_id, project_id, id, id, 'screenshot-' || id || '.png', 20000 + id * 37 % 900000
FROM ticket_messages WHERE id % 17 = 0;

-- step: loading tags
INSERT INTO tags (organization_id, id, name)
SELECT o.id, v.position, v.tag
FROM organizations o,
     unnest(ARRAY['billing', 'bug', 'vip', 'refund', 'shipping', 'outage', 'question', 'praise']) WITH ORDINALITY
         AS v (tag, position);

-- step: tagging tickets
INSERT INTO ticket_tags (organization_id, project_id, ticket_id, tag_id)
SELECT organization_id, project_id, id, 1 + id % 8 FROM tickets WHERE id % 2 = 0;

-- step: loading articles
INSERT INTO articles (organization_id, project_id, id, title, body, is_public)
SELECT organization_id, id, (right(id::text, 6)::int - 1) * 50 + a,
       'How to ' || (ARRAY['reset', 'configure', 'return', 'export', 'update'])[1 + a % 5] || ' item ' || a,
       repeat('First do this, then that. ', 10 + a), a % 3 > 0
FROM projects, generate_series(1, 50) AS a;

-- step: loading events
INSERT INTO events (organization_id, project_id, id, ticket_id, actor_id, kind, details, created_at)
SELECT organization_id, project_id, id * 2 + k, id, CASE k WHEN 1 THEN assignee_id END,
       (ARRAY['opened', 'assigned'])[k + 1], jsonb_build_object('via', via), created_at + k * interval '9 minutes'
FROM tickets, generate_series(0, 1) AS k;

-- step: loading invoices
INSERT INTO invoices (organization_id, id, customer_id, number, status, issued_on, due_on, paid_at)
SELECT organization_id, id, id, 'INV-' || lpad(id::text, 6, '0'), status, issued_on, issued_on + 30,
       CASE WHEN status = 'paid' THEN issued_on + interval '12 days' END
FROM customers,
     LATERAL (SELECT (ARRAY['draft', 'sent', 'paid', 'paid', 'void'])[1 + id % 5]::invoice_status AS status,
                     date '2025-03-01' + (id % 300)::int AS issued_on) AS i;

-- step: loading invoice lines
INSERT INTO invoice_lines (organization_id, invoice_id, line, description, quantity, unit_cents)
SELECT organization_id, id, l, 'Support, month ' || l, l, 1900 + id % 700
FROM invoices, generate_series(1, 3) AS l;

-- step: setting sequences behind the data
DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['users', 'customers', 'sla_policies', 'tickets', 'ticket_messages', 'attachments', 'tags',
                             'articles', 'events', 'invoices'] LOOP
        EXECUTE format('SELECT setval(pg_get_serial_sequence(%L, ''id''), (SELECT max(id) + 1 FROM %I), false)', t, t);
    END LOOP;
END
$$;

-- step: gathering statistics
ANALYZE;
