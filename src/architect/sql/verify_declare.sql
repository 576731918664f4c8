    -- mac, version, kid, pid, expiry, organization, project, payload digest: a line each
    seal text := current_setting('pgtenant.seal', true);
    inner_pad bytea;
    outer_pad bytea;
