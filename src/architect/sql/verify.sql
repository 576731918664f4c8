    IF seal IS NULL OR seal = '' THEN
        RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = 'no tenant context',
            HINT = 'Connect through pgtenant with a token.';
    END IF;
    SELECT k.inner_pad, k.outer_pad INTO inner_pad, outer_pad
        FROM pgtenant.seal_keys k WHERE k.kid = split_part(seal, E'\n', 3);
    -- The MAC first: nothing of the text is cast or believed before it. Compared under a keyed hash, so that the
    -- time a comparison takes tells nothing about the expected MAC. now() is the transaction's start: a transaction
    -- that began in time may end in its own time, and so may a procedure that commits on its way.
    IF inner_pad IS NULL
        OR sha256(outer_pad || convert_to(left(seal, 64), 'UTF8')) IS DISTINCT FROM sha256(outer_pad || convert_to(
            encode(sha256(outer_pad || sha256(inner_pad || convert_to(substr(seal, 66), 'UTF8'))), 'hex'), 'UTF8'))
        OR split_part(seal, E'\n', 2) NOT IN ('v1', 'v1-read-only')
        OR split_part(seal, E'\n', 4) <> pg_backend_pid()::text
        OR split_part(seal, E'\n', 5)::float8 <= date_part('epoch', least(now(), statement_timestamp()))
    THEN
        RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = 'tenant context refused',
            HINT = 'Only pgtenant can set the tenant context; connect through it.';
    END IF;
    -- Who acts for somebody else (the claim "act") writes nothing. Once it has asked for its context, a transaction cannot
    -- become one that writes: PostgreSQL refuses that behind the first query.
    IF substr(seal, 68, 1) = '-' AND current_setting('transaction_read_only') = 'off' THEN
        RAISE EXCEPTION USING ERRCODE = '25006', MESSAGE = 'tenant context is read-only',
            HINT = 'The token has an "act" claim; leave the transaction READ ONLY.';
    END IF;
