-- The voter's bookkeeping (`docs/design.md#exactly-once`). Run as superuser, once per start; may be run again.
CREATE SCHEMA IF NOT EXISTS cloudbft;
GRANT USAGE ON SCHEMA cloudbft TO PUBLIC;

-- Who may call the functions below: whoever knows the token. One row.
CREATE TABLE IF NOT EXISTS cloudbft.token (value text NOT NULL);
INSERT INTO cloudbft.token SELECT pg_catalog.gen_random_uuid()::text WHERE NOT EXISTS (SELECT FROM cloudbft.token);

-- The position of the last operation with this home; set in that operation's transaction.
CREATE TABLE IF NOT EXISTS cloudbft.applied (
  home text PRIMARY KEY, granted bigint NOT NULL, "order" bigint NOT NULL
) WITH (fillfactor = 50);

-- Up to where everything is finished and durable, with the voter's logical state at that order; and up to which order positions of
-- rows and unique values were forgotten, if ever. One row.
CREATE TABLE IF NOT EXISTS cloudbft.floor ("order" bigint NOT NULL, state bytea NOT NULL, forgotten bigint);
-- A table of an earlier build lacks the column. (ALTER TABLE would wait for whoever reads it, also if there is nothing to do.)
DO $$
BEGIN
  IF NOT EXISTS (
    SELECT FROM pg_catalog.pg_attribute WHERE attrelid = 'cloudbft.floor'::regclass AND attname = 'forgotten'
  ) THEN
    ALTER TABLE cloudbft.floor ADD COLUMN forgotten bigint;
  END IF;
END
$$;

-- Committed positions of all sequences: nextval itself is neither undone by ROLLBACK nor exact after a crash.
CREATE TABLE IF NOT EXISTS cloudbft.sequence (name text PRIMARY KEY, last_value bigint NOT NULL, is_called boolean NOT NULL);

-- This database has changed something else at this order than f+1 others have, or holds something else (`cloudbft scrub`): it serves
-- no more until it is repaired, which takes the row away. At most one row. The voter looks for it all the time.
CREATE TABLE IF NOT EXISTS cloudbft.diverged ("order" bigint NOT NULL, changed text NOT NULL);

-- The last comparison of all contents with the other databases (`cloudbft scrub`): when it ended (seconds since 1970), how many ranges
-- were compared, and how many things differed, on whatever machine. At most one row.
CREATE TABLE IF NOT EXISTS cloudbft.scrub (ended double precision NOT NULL, ranges bigint NOT NULL, differences bigint NOT NULL);

-- Where cloudbft.command writes. Empty.
CREATE UNLOGGED TABLE IF NOT EXISTS cloudbft.command (written boolean NOT NULL);

-- The temporary objects of sessions, each in a schema of its session's, and what becomes of them at COMMIT: `k` they stay, `e`
-- their rows go, `d` they go.
CREATE TABLE IF NOT EXISTS cloudbft.temporary (
  relation oid PRIMARY KEY, schema name NOT NULL, at_commit "char" NOT NULL
);

REVOKE ALL ON ALL TABLES IN SCHEMA cloudbft FROM PUBLIC;

-- Fails unless this is the token. The functions below call it, which run as their owner.
CREATE OR REPLACE FUNCTION cloudbft.authorize(token text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM FROM cloudbft.token t WHERE t.value = authorize.token;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'cloudbft: wrong token' USING ERRCODE = '42501';
  END IF;
END
$$;
REVOKE EXECUTE ON FUNCTION cloudbft.authorize(text) FROM PUBLIC;

-- It runs at every commit. So it names everything with its schema instead of setting a search path, and tries what is nearly
-- always right first: both cost less.
CREATE OR REPLACE FUNCTION cloudbft.set_applied(token text, home text, granted bigint, "order" bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  UPDATE cloudbft.applied AS a SET granted = set_applied.granted, "order" = set_applied."order"
  FROM cloudbft.token t
  WHERE t.value OPERATOR(pg_catalog.=) set_applied.token AND a.home OPERATOR(pg_catalog.=) set_applied.home;
  IF FOUND THEN
    RETURN;
  END IF;
  INSERT INTO cloudbft.applied AS a
  SELECT set_applied.home, set_applied.granted, set_applied."order"
  FROM cloudbft.token t WHERE t.value OPERATOR(pg_catalog.=) set_applied.token
  ON CONFLICT ON CONSTRAINT applied_pkey DO UPDATE SET granted = excluded.granted, "order" = excluded."order";
  IF NOT FOUND THEN
    RAISE EXCEPTION 'cloudbft: wrong token' USING ERRCODE = '42501';
  END IF;
END
$$;

-- Checks a B-tree index against its table: fails if it is broken. From the extension amcheck, where the server has it; an extension would
-- show among the application's objects.
DO $$
BEGIN
  IF to_regprocedure('cloudbft.check_index(regclass,boolean)') IS NULL THEN
    CREATE FUNCTION cloudbft.check_index(index regclass, heap boolean) RETURNS void
    LANGUAGE c STRICT AS '$libdir/amcheck', 'bt_index_check';
    REVOKE EXECUTE ON FUNCTION cloudbft.check_index(regclass, boolean) FROM PUBLIC;
  END IF;
EXCEPTION WHEN undefined_file OR undefined_function THEN
  NULL;
END
$$;

-- The number of the transaction's present command. It tells whether anything wrote a row since it was asked before
-- (docs/decisions/0036-nothing-is-deferred-after-the-word.md).
CREATE OR REPLACE FUNCTION cloudbft.command(token text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  number text;
  place tid;
BEGIN
  INSERT INTO cloudbft.command AS c SELECT true FROM cloudbft.token t WHERE t.value = command.token
  RETURNING c.cmin::text, c.ctid INTO number, place;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'cloudbft: wrong token' USING ERRCODE = '42501';
  END IF;
  DELETE FROM cloudbft.command c WHERE c.ctid = place;
  RETURN number;
END
$$;

-- The relations that the transaction has locked in a mode under which their definition can change, or in this one. What draws from a
-- sequence locks it (RowExclusive), what changes a relation's definition locks it more strongly, and all of these locks are held to the
-- end of the transaction, or of the savepoint that takes the change back.
CREATE OR REPLACE FUNCTION cloudbft.locked(or_as text) RETURNS SETOF oid
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  SELECT DISTINCT l.relation FROM pg_lock_status() l
  WHERE l.locktype = 'relation' AND l.pid = pg_backend_pid() AND l.granted AND (l.mode = or_as OR l.mode
    = ANY ('{ShareUpdateExclusiveLock,ShareLock,ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}'))
$$;
REVOKE EXECUTE ON FUNCTION cloudbft.locked(text) FROM PUBLIC;

-- The catalogs of the system.
CREATE TABLE IF NOT EXISTS cloudbft.catalog (number oid PRIMARY KEY, name name NOT NULL);
REVOKE ALL ON cloudbft.catalog FROM PUBLIC;
INSERT INTO cloudbft.catalog
  SELECT c.oid, c.relname FROM pg_catalog.pg_class c
  WHERE c.relnamespace = 'pg_catalog'::pg_catalog.regnamespace AND c.relkind = 'r' AND NOT c.relisshared
ON CONFLICT DO NOTHING;

-- What the transaction has written to the catalogs, by the server's own count of what it did to each (which rolling back to a savepoint
-- does not lower): `name inserted updated deleted` for each, by commas; then, after a semicolon, the relations whose definition it may
-- have changed. Nothing, when it has written to none. `?`, when the server does not count.
CREATE OR REPLACE FUNCTION cloudbft.catalog_changes(token text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  counts text;
BEGIN
  PERFORM cloudbft.authorize(catalog_changes.token);
  IF NOT current_setting('track_counts')::boolean THEN
    RETURN '?';
  END IF;
  SELECT string_agg(concat_ws(' ', c.name, w.inserted, w.updated, w.deleted), ',') INTO counts
  FROM cloudbft.catalog c CROSS JOIN LATERAL (SELECT pg_stat_get_xact_tuples_inserted(c.number) AS inserted,
    pg_stat_get_xact_tuples_updated(c.number) AS updated, pg_stat_get_xact_tuples_deleted(c.number) AS deleted) w
  WHERE w.inserted > 0 OR w.updated > 0 OR w.deleted > 0;
  IF counts IS NULL THEN
    RETURN '';
  END IF;
  -- The next transaction of this backend counts from nothing.
  PERFORM pg_stat_force_next_flush();
  RETURN concat(counts, ';', (SELECT string_agg(l.number::text, ',') FROM cloudbft.locked(NULL) AS l (number)));
END
$$;

-- The relations of these names (`schema.name`), found by index: it is asked for at each commit that draws from a sequence.
CREATE OR REPLACE FUNCTION cloudbft.named(names text[]) RETURNS SETOF oid
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  SELECT c.oid FROM unnest(names) AS w (name)
  JOIN pg_namespace n ON starts_with(w.name, n.nspname || '.')
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = substr(w.name, length(n.nspname) + 2)::name
$$;
REVOKE EXECUTE ON FUNCTION cloudbft.named(text[]) FROM PUBLIC;

-- 1 if the transaction may have written anything: it has a number, or has moved one of these sequences (NULL: any; a
-- value that the log has reserved is drawn without a number). Else 0: nothing that it did can stay, and nothing is deferred
-- (docs/decisions/0040-nothing-written-contradicts-nobody.md).
CREATE OR REPLACE FUNCTION cloudbft.written(token text, names text[]) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  candidates oid[];
  found_sequence record;
  moved boolean;
BEGIN
  PERFORM cloudbft.authorize(written.token);
  IF pg_current_xact_id_if_assigned() IS NOT NULL THEN
    RETURN 1;
  END IF;
  candidates := ARRAY(SELECT cloudbft.locked('RowExclusiveLock'));
  FOR found_sequence IN
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND c.oid = ANY (candidates)
      AND (written.names IS NULL OR n.nspname || '.' || c.relname = ANY (written.names))
  LOOP
    EXECUTE format('SELECT NOT EXISTS (SELECT FROM cloudbft.sequence s, %I.%I q
      WHERE s.name = %L AND s.last_value = q.last_value AND s.is_called = q.is_called)',
      found_sequence.nspname, found_sequence.relname, found_sequence.nspname || '.' || found_sequence.relname)
    INTO moved;
    IF moved THEN
      RETURN 1;
    END IF;
  END LOOP;
  RETURN 0;
END
$$;

-- Records where sequences stand, in the transaction that moved them (NULL: those that it may have moved; `{*}`: all).
CREATE OR REPLACE FUNCTION cloudbft.record_sequences(token text, names text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  candidates oid[];
  found_sequence record;
BEGIN
  PERFORM cloudbft.authorize(record_sequences.token);
  -- A schema that gets another name locks none of its sequences, whose names change.
  IF names IS NULL AND pg_stat_get_xact_tuples_updated('pg_namespace'::regclass) = 0 AND current_setting('track_counts')::boolean THEN
    candidates := ARRAY(SELECT cloudbft.locked('RowExclusiveLock'));
  ELSIF names IS NULL OR names = '{*}' THEN
    candidates := ARRAY(SELECT c.oid FROM pg_class c WHERE c.relkind = 'S');
  ELSE
    candidates := ARRAY(SELECT cloudbft.named(names));
  END IF;
  FOR found_sequence IN
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND c.oid = ANY (candidates)
      AND (names IS NULL OR names = '{*}' OR n.nspname || '.' || c.relname = ANY (names))
  LOOP
    EXECUTE format('INSERT INTO cloudbft.sequence AS s SELECT %L, last_value, is_called FROM %I.%I
      ON CONFLICT (name) DO UPDATE SET last_value = excluded.last_value, is_called = excluded.is_called
      WHERE (s.last_value, s.is_called) IS DISTINCT FROM (excluded.last_value, excluded.is_called)',
      found_sequence.nspname || '.' || found_sequence.relname, found_sequence.nspname, found_sequence.relname);
  END LOOP;
END
$$;

-- Sets sequences (NULL: all of them) back to where the last commit left them.
CREATE OR REPLACE FUNCTION cloudbft.restore_sequences(token text, names text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM cloudbft.authorize(restore_sequences.token);
  PERFORM setval(c.oid::regclass, s.last_value, s.is_called)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN cloudbft.sequence s ON s.name = n.nspname || '.' || c.relname
  WHERE c.relkind = 'S' AND (restore_sequences.names IS NULL
    OR c.oid = ANY (ARRAY(SELECT cloudbft.named(restore_sequences.names))) AND s.name = ANY (restore_sequences.names));
END
$$;

-- Before a statement that changes the catalog, in a session that has temporary objects or makes some: these roles may make
-- objects in the session's schema. At all other times they may only use what is there, so that nothing that code of
-- users makes gets there unseen. `make`: the schema is made if it is not there; only a superuser can make one of such a name.
CREATE OR REPLACE FUNCTION cloudbft.open_temporary(token text, schema text, roles text[], make boolean) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET allow_system_table_mods = on AS $$
DECLARE
  named text;
BEGIN
  PERFORM cloudbft.authorize(open_temporary.token);
  IF NOT EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = open_temporary.schema) THEN
    IF NOT make THEN
      RETURN;
    END IF;
    EXECUTE format('CREATE SCHEMA %I', schema);
  END IF;
  FOREACH named IN ARRAY roles LOOP
    EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %I TO %I', schema, named);
  END LOOP;
END
$$;

-- After such a statement: what it made is known and temporary, and nothing permanent depends on it. The names of what it may
-- have made come with what becomes of each at COMMIT.
CREATE OR REPLACE FUNCTION cloudbft.close_temporary(token text, schema text, roles text[], names text[], at_commit text[])
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  own oid;
  named text;
BEGIN
  PERFORM cloudbft.authorize(close_temporary.token);
  SELECT n.oid INTO own FROM pg_namespace n WHERE n.nspname = close_temporary.schema;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  FOREACH named IN ARRAY roles LOOP
    EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM %I', schema, named);
  END LOOP;
  DELETE FROM cloudbft.temporary t WHERE t.schema = close_temporary.schema
    AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = t.relation AND c.relnamespace = own);
  INSERT INTO cloudbft.temporary AS t
  SELECT c.oid, close_temporary.schema, made.at_commit::"char"
  FROM unnest(names, close_temporary.at_commit) AS made (name, at_commit)
    JOIN pg_class c ON c.relname = made.name AND c.relnamespace = own AND c.relkind IN ('r', 'p', 'v', 'S')
  ON CONFLICT ON CONSTRAINT temporary_pkey DO NOTHING;
  IF (SELECT count(*) FROM pg_class c WHERE c.relnamespace = own) > 2000 THEN
    RAISE EXCEPTION 'too many temporary objects in one session' USING ERRCODE = '54000',
      HINT = 'Drop those that are not needed any more.';
  END IF;
  IF EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = own AND c.relkind NOT IN ('i', 'I', 't')
      AND NOT EXISTS (SELECT FROM cloudbft.temporary t WHERE t.relation = c.oid)
      AND NOT (c.relkind = 'S' AND EXISTS (SELECT FROM pg_depend d JOIN cloudbft.temporary t ON t.relation = d.refobjid
        WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass
          AND d.deptype IN ('a', 'i'))))
    OR EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = own)
    OR EXISTS (SELECT FROM pg_operator o WHERE o.oprnamespace = own)
    OR EXISTS (SELECT FROM pg_type y WHERE y.typnamespace = own AND y.typtype IN ('d', 'e', 'r', 'm'))
  THEN
    RAISE EXCEPTION 'a permanent object would lie among the temporary ones of the session' USING ERRCODE = 'BF004',
      HINT = 'Write its name with its schema, or make it by a statement of its own.';
  END IF;
  IF EXISTS (SELECT FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_class r ON r.oid = k.confrelid
      WHERE k.contype = 'f' AND r.relnamespace = own AND c.relnamespace <> own)
  THEN
    RAISE EXCEPTION 'constraints on permanent tables may reference only permanent tables' USING ERRCODE = '42P16';
  ELSIF EXISTS (SELECT FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_class r ON r.oid = k.confrelid
      WHERE k.contype = 'f' AND r.relnamespace <> own AND c.relnamespace = own)
  THEN
    RAISE EXCEPTION 'constraints on temporary tables may reference only temporary tables' USING ERRCODE = '42P16';
  ELSIF EXISTS (SELECT FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid JOIN pg_class r ON r.oid = h.inhparent
      WHERE (r.relnamespace = own) <> (c.relnamespace = own))
  THEN
    RAISE EXCEPTION 'cannot inherit from, or to, temporary relations' USING ERRCODE = 'BF004';
  ELSIF EXISTS (SELECT FROM pg_depend d JOIN pg_rewrite w ON w.oid = d.objid JOIN pg_class c ON c.oid = w.ev_class
        JOIN pg_class r ON r.oid = d.refobjid
      WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
        AND r.relnamespace = own AND c.relnamespace <> own)
  THEN
    RAISE EXCEPTION 'a permanent view would read a temporary relation' USING ERRCODE = 'BF004',
      HINT = 'Write CREATE TEMPORARY VIEW. Materialized views must not use temporary tables or views.';
  END IF;
END
$$;

-- What COMMIT does to the temporary tables that the transaction may have written (NULL: all of the session's). It runs no code of
-- users, which would run with the rights of this function: so it reads no table (what is in it may be a view's query, or a
-- function in an index), and empties none with a trigger on TRUNCATE.
CREATE OR REPLACE FUNCTION cloudbft.end_temporary(token text, schema text, names text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
DECLARE
  found_table record;
  emptied text := '';
BEGIN
  PERFORM cloudbft.authorize(end_temporary.token);
  FOR found_table IN
    SELECT c.oid, c.relname, t.at_commit, pg_relation_size(c.oid) > 0 AS is_filled,
      EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgtype & 32 <> 0) AS runs_code
    FROM cloudbft.temporary t JOIN pg_class c ON c.oid = t.relation JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE t.schema = end_temporary.schema AND n.nspname = end_temporary.schema AND t.at_commit <> 'k'
      AND c.relkind IN ('r', 'p')
      AND (end_temporary.names IS NULL OR c.relname = ANY (end_temporary.names))
    ORDER BY c.relname
  LOOP
    IF found_table.at_commit = 'd' THEN
      EXECUTE format('DROP TABLE IF EXISTS %I.%I CASCADE', schema, found_table.relname);
      DELETE FROM cloudbft.temporary t WHERE t.relation = found_table.oid;
    ELSIF found_table.runs_code THEN
      RAISE EXCEPTION 'a temporary table with ON COMMIT DELETE ROWS cannot have a trigger on TRUNCATE' USING ERRCODE = 'BF004';
    ELSIF found_table.is_filled THEN
      emptied := emptied || format(', ONLY %I.%I', schema, found_table.relname);
    END IF;
  END LOOP;
  IF emptied <> '' THEN
    EXECUTE 'TRUNCATE ' || substr(emptied, 3);
  END IF;
END
$$;

-- Drops all temporary objects of a session.
CREATE OR REPLACE FUNCTION cloudbft.drop_temporary(token text, schema text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
BEGIN
  PERFORM cloudbft.authorize(drop_temporary.token);
  EXECUTE format('DROP SCHEMA IF EXISTS %I CASCADE', schema);
  DELETE FROM cloudbft.temporary t WHERE t.schema = drop_temporary.schema;
  DELETE FROM cloudbft.sequence s WHERE starts_with(s.name, drop_temporary.schema || '.');
END
$$;

-- The database belongs to this superuser. An owner could allow temporary tables again, and change settings of the database
-- (earlier builds made the application's first role the owner): it keeps what it needs, and the schema `public`.
DO $$
DECLARE
  former_owner name;
  grantee name;
BEGIN
  SELECT r.rolname INTO former_owner FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba
  WHERE d.datname = current_database() AND NOT r.rolsuper;
  IF FOUND THEN
    EXECUTE format('ALTER DATABASE %I OWNER TO %I', current_database(), current_user);
    EXECUTE format('GRANT CREATE, CONNECT ON DATABASE %I TO %I WITH GRANT OPTION', current_database(), former_owner);
    IF EXISTS (SELECT FROM pg_namespace WHERE nspname = 'public' AND nspowner = 'pg_database_owner'::regrole) THEN
      EXECUTE format('ALTER SCHEMA public OWNER TO %I', former_owner);
    END IF;
  END IF;
  -- A temporary table of PostgreSQL's lives in one backend, and which backend runs a statement differs from server to server:
  -- it would hide the real table of its name there. Those of applications are ordinary tables (see above).
  EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
  FOR grantee IN
    SELECT DISTINCT r.rolname FROM pg_database d, aclexplode(d.datacl) a, pg_roles r
    WHERE d.datname = current_database() AND a.privilege_type = 'TEMPORARY' AND r.oid = a.grantee AND NOT r.rolsuper
  LOOP
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM %I CASCADE', current_database(), grantee);
  END LOOP;
END
$$;

-- Functions that tell what only one server knows, or reach beyond their transaction, are for superusers: dynamic SQL in a
-- function body is seen by nobody before it runs. What psql, drivers and pg_dump need in everyday reads stays
-- (pg_is_in_recovery, version, sizes, pg_advisory_unlock_all, settings, what is visible).
DO $$
DECLARE
  revoked regprocedure;
BEGIN
  FOR revoked IN
    SELECT p.oid::regprocedure FROM pg_proc p
    WHERE p.pronamespace = 'pg_catalog'::regnamespace AND has_function_privilege('public', p.oid, 'EXECUTE')
      AND (p.proname = ANY (ARRAY[
          -- Other backends, and locks that outlive a transaction.
          'pg_terminate_backend', 'pg_cancel_backend', 'pg_advisory_lock', 'pg_advisory_lock_shared',
          'pg_try_advisory_lock', 'pg_try_advisory_lock_shared', 'pg_advisory_unlock', 'pg_advisory_unlock_shared',
          'pg_export_snapshot', 'pg_logical_emit_message', 'pg_get_replication_slots',
          -- This backend, and what it has open.
          'pg_backend_pid', 'pg_prepared_statement', 'pg_blocking_pids', 'pg_safe_snapshot_blocking_pids',
          'pg_lock_status', 'pg_isolation_test_session_is_blocked', 'pg_notification_queue_usage',
          -- Transaction numbers.
          'txid_current', 'txid_current_if_assigned', 'txid_current_snapshot', 'txid_status', 'pg_current_xact_id',
          'pg_current_xact_id_if_assigned', 'pg_current_snapshot', 'pg_xact_status', 'pg_xact_commit_timestamp',
          'pg_xact_commit_timestamp_origin', 'pg_last_committed_xact', 'pg_get_multixact_members', 'mxid_age',
          -- The server: its times, its log, its files.
          'pg_postmaster_start_time', 'pg_conf_load_time', 'pg_current_wal_lsn', 'pg_current_wal_insert_lsn',
          'pg_current_wal_flush_lsn', 'pg_control_system', 'pg_control_checkpoint', 'pg_control_recovery',
          'pg_control_init', 'pg_relation_filenode', 'pg_relation_filepath'])
        OR p.proname LIKE 'pg\_stat\_get\_%'
        OR p.oid = 'age(xid)'::regprocedure)
  LOOP
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', revoked);
    -- As the state that the server was made in: pg_dump is not to write it into its dumps.
    UPDATE pg_init_privs i SET initprivs = p.proacl FROM pg_proc p
    WHERE p.oid = revoked AND i.objoid = p.oid AND i.classoid = 'pg_proc'::regclass AND i.objsubid = 0;
    IF NOT FOUND THEN
      INSERT INTO pg_init_privs (objoid, classoid, objsubid, privtype, initprivs)
      SELECT p.oid, 'pg_proc'::regclass, 0, 'i', p.proacl FROM pg_proc p WHERE p.oid = revoked;
    END IF;
  END LOOP;
END
$$;
