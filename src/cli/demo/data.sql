-- What the helpdesk's importer sends for a company: the same statements before the migration, when there is one, and after it,
-- through the proxy, for each that comes. The same on every run, made of numbers and words. One statement behind each line that
-- names a step; {words} are the importer's parameters.

-- for: company
-- step: agents
INSERT INTO users (id, email, name, is_admin)
SELECT u, 'agent' || u || '@{domain}',
       (ARRAY['Ada', 'Grace', 'Edsger', 'Barbara', 'Donald', 'Radia', 'Ken', 'Frances'])[1 + u % 8] || ' '
           || (ARRAY['Moreau', 'Okafor', 'Lindqvist', 'Tanaka', 'Silva', 'Novak'])[1 + u % 6],
       u % 10 = 1
FROM generate_series(1, {agents}) AS u

-- step: customers
INSERT INTO customers (id, email, name, plan_id, attributes, created_at)
SELECT c, 'customer' || c || '@example.com',
       (ARRAY['Noor', 'Mateo', 'Yuki', 'Ingrid', 'Kwame', 'Leila', 'Pavel'])[1 + c % 7] || ' '
           || (ARRAY['Haddad', 'Fischer', 'Rossi', 'Kim', 'Dubois'])[1 + c % 5],
       (ARRAY['free', 'team', 'scale'])[1 + c % 3],
       jsonb_build_object('tier', (ARRAY['bronze', 'silver', 'gold'])[1 + c % 3], 'region', 'r' || c % 12),
       timestamptz '2024-02-01 00:00+00' + c * interval '3 hours'
FROM generate_series(1, {customers}) AS c

-- step: service levels
INSERT INTO sla_policies (id, name, first_reply_minutes, solve_minutes)
SELECT s, (ARRAY['Standard', 'Business', 'Critical'])[s], (ARRAY[480, 120, 15])[s], (ARRAY[4320, 1440, 240])[s]
FROM generate_series(1, 3) AS s

-- step: tags
INSERT INTO tags (id, name)
SELECT position, tag
FROM unnest(ARRAY['billing', 'bug', 'vip', 'refund', 'shipping', 'outage', 'question', 'praise']) WITH ORDINALITY
         AS v (tag, position)

-- step: invoices
INSERT INTO invoices (id, customer_id, number, status, issued_on, due_on, paid_at)
SELECT id, id, 'INV-' || lpad(id::text, 6, '0'), status, issued_on, issued_on + 30,
       CASE WHEN status = 'paid' THEN issued_on + interval '12 days' END
FROM customers,
     LATERAL (SELECT (ARRAY['draft', 'sent', 'paid', 'paid', 'void'])[1 + id % 5]::invoice_status AS status,
                     date '2025-03-01' + (id % 300)::int AS issued_on) AS i

-- step: invoice lines
INSERT INTO invoice_lines (invoice_id, line, description, quantity, unit_cents)
SELECT id, l, 'Support, month ' || l, l, 1900 + id % 700
FROM invoices, generate_series(1, 3) AS l

-- for: project
-- step: the desk
INSERT INTO projects (id, name) VALUES ('{project}', '{name}')

-- step: its agents
INSERT INTO project_members (project_id, user_id)
SELECT '{project}', id FROM users WHERE (id + {number}) % 2 = 0

-- step: tickets
INSERT INTO tickets (id, project_id, customer_id, assignee_id, sla_policy_id, subject, status, priority, via, created_at)
SELECT {before} + t, '{project}', 1 + h % {customers}, CASE WHEN h % 5 > 0 THEN 1 + h % {agents} END, 1 + h % 3,
       (ARRAY['Cannot sign in', 'Delivery is late', 'Invoice question', 'Device offline', 'Feature request', 'Data export',
              'Wrong address', 'Slow response'])[1 + h % 8] || ' #' || {before} + t,
       (ARRAY['new', 'open', 'open', 'pending', 'solved', 'closed', 'closed', 'closed'])[1 + h / 8 % 8]::ticket_status,
       (ARRAY['low', 'normal', 'normal', 'high', 'urgent'])[1 + h / 64 % 5]::ticket_priority,
       (ARRAY['email', 'web', 'chat', 'phone', 'api'])[1 + h / 320 % 5]::channel,
       timestamptz '2025-01-01 00:00+00' + (t * 1.0 / {tickets}) * interval '500 days'
FROM generate_series(1, {tickets}) AS t,
     LATERAL (SELECT (hashtextextended('{project}/' || t, 0) & 2147483647)::int AS h) AS hash

-- step: messages
INSERT INTO ticket_messages (id, ticket_id, author_id, body, is_internal, created_at)
SELECT (t.id - 1) * 3 + m, t.id, CASE WHEN m > 1 THEN t.assignee_id END,
       (ARRAY['Hello, I need help with this.', 'Thank you for writing, we are looking into it.',
              'Could you send us a screenshot?', 'It works again, thank you.', 'Any news?'])[1 + (t.id + m) % 5]
           || ' ' || repeat((ARRAY['Since yesterday. ', 'As before. ', 'On all devices. '])[1 + t.id % 3], 1 + (t.id * m % 6)::int),
       m > 1 AND t.assignee_id IS NOT NULL AND (t.id + m) % 9 = 0, t.created_at + m * interval '47 minutes'
FROM tickets t, generate_series(1, 3) AS m WHERE t.project_id = '{project}'

-- step: attachments
INSERT INTO attachments (id, message_id, file_name, bytes)
SELECT m.id, m.id, 'screenshot-' || m.id || '.png', 20000 + m.id * 37 % 900000
FROM ticket_messages m JOIN tickets t ON t.id = m.ticket_id WHERE t.project_id = '{project}' AND m.id % 17 = 0

-- step: tagged tickets
INSERT INTO ticket_tags (ticket_id, tag_id)
SELECT id, 1 + id % 8 FROM tickets WHERE project_id = '{project}' AND id % 2 = 0

-- step: articles
INSERT INTO articles (id, project_id, title, body, is_public)
SELECT ({number} - 1) * 50 + a, '{project}',
       'How to ' || (ARRAY['reset', 'configure', 'return', 'export', 'update'])[1 + a % 5] || ' item ' || a,
       repeat('First do this, then that. ', 10 + a), a % 3 > 0
FROM generate_series(1, 50) AS a

-- step: events
INSERT INTO events (id, ticket_id, actor_id, kind, details, created_at)
SELECT id * 2 + k, id, CASE k WHEN 1 THEN assignee_id END,
       (ARRAY['opened', 'assigned'])[k + 1], jsonb_build_object('via', via), created_at + k * interval '9 minutes'
FROM tickets, generate_series(0, 1) AS k WHERE project_id = '{project}'
