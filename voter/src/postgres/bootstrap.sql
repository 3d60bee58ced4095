-- The voter's bookkeeping (DESIGN.md section 8). Run as superuser, once per start; may be run again.
CREATE SCHEMA IF NOT EXISTS cloudbft;
GRANT USAGE ON SCHEMA cloudbft TO PUBLIC;

-- Who may call the functions below: whoever knows the token. One row.
CREATE TABLE IF NOT EXISTS cloudbft.token (value text NOT NULL);
INSERT INTO cloudbft.token SELECT pg_catalog.gen_random_uuid()::text WHERE NOT EXISTS (SELECT FROM cloudbft.token);

-- The position of the last operation with this home; set in that operation's transaction.
CREATE TABLE IF NOT EXISTS cloudbft.applied (
  home text PRIMARY KEY, granted bigint NOT NULL, "order" bigint NOT NULL
) WITH (fillfactor = 50);

-- Up to where everything is finished and durable, with the voter's logical state at that order. One row.
CREATE TABLE IF NOT EXISTS cloudbft.floor ("order" bigint NOT NULL, state bytea NOT NULL);

-- Committed positions of all sequences: nextval itself is neither undone by ROLLBACK nor exact after a crash.
CREATE TABLE IF NOT EXISTS cloudbft.sequence (name text PRIMARY KEY, last_value bigint NOT NULL, is_called boolean NOT NULL);

REVOKE ALL ON ALL TABLES IN SCHEMA cloudbft FROM PUBLIC;

CREATE OR REPLACE FUNCTION cloudbft.set_applied(token text, home text, granted bigint, "order" bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  INSERT INTO cloudbft.applied AS a
  SELECT set_applied.home, set_applied.granted, set_applied."order"
  FROM cloudbft.token t WHERE t.value = set_applied.token
  ON CONFLICT ON CONSTRAINT applied_pkey DO UPDATE SET granted = excluded.granted, "order" = excluded."order";
  IF NOT FOUND THEN
    RAISE EXCEPTION 'cloudbft: wrong token' USING ERRCODE = '42501';
  END IF;
END
$$;

-- Records where sequences stand (NULL: all of them), in the transaction that moved them.
CREATE OR REPLACE FUNCTION cloudbft.record_sequences(token text, names text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  found_sequence record;
BEGIN
  PERFORM FROM cloudbft.token t WHERE t.value = record_sequences.token;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'cloudbft: wrong token' USING ERRCODE = '42501';
  END IF;
  FOR found_sequence IN
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'S' AND c.relpersistence <> 't'
      AND (record_sequences.names IS NULL OR n.nspname || '.' || c.relname = ANY (record_sequences.names))
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
  PERFORM FROM cloudbft.token t WHERE t.value = restore_sequences.token;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'cloudbft: wrong token' USING ERRCODE = '42501';
  END IF;
  PERFORM setval(c.oid::regclass, s.last_value, s.is_called)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN cloudbft.sequence s ON s.name = n.nspname || '.' || c.relname
  WHERE c.relkind = 'S' AND (restore_sequences.names IS NULL OR s.name = ANY (restore_sequences.names));
END
$$;
