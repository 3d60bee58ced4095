-- The functions that stand in for clocks and random sources. Settings, by transaction or statement:
--   cloudbft.time_us  microseconds since 1970-01-01 00:00 UTC, of the order
--   cloudbft.seed     any text without spaces, another one for every statement
-- Each function has the name of what it replaces, so that output columns keep their names.
CREATE SCHEMA IF NOT EXISTS cloudbft;
GRANT USAGE ON SCHEMA cloudbft TO PUBLIC;

-- Exact to the microsecond: whole seconds and whole microseconds; to_timestamp(double) would round.
CREATE OR REPLACE FUNCTION cloudbft.now() RETURNS pg_catalog.timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT ('epoch'::pg_catalog.timestamptz
    OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => (pg_catalog.current_setting('cloudbft.time_us')::pg_catalog.int8
      OPERATOR(pg_catalog./) 1000000)::pg_catalog.float8))
    OPERATOR(pg_catalog.+) ('00:00:00.000001'::pg_catalog.interval
      OPERATOR(pg_catalog.*) (pg_catalog.current_setting('cloudbft.time_us')::pg_catalog.int8
        OPERATOR(pg_catalog.%) 1000000)::pg_catalog.float8)
$$;

CREATE OR REPLACE FUNCTION cloudbft.transaction_timestamp() RETURNS pg_catalog.timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.now() $$;
CREATE OR REPLACE FUNCTION cloudbft.statement_timestamp() RETURNS pg_catalog.timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.now() $$;
-- Stands still within a statement.
CREATE OR REPLACE FUNCTION cloudbft.clock_timestamp() RETURNS pg_catalog.timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.now() $$;
CREATE OR REPLACE FUNCTION cloudbft.timeofday() RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT pg_catalog.to_char(cloudbft.now(), 'Dy Mon DD HH24:MI:SS.US YYYY TZ')
$$;

CREATE OR REPLACE FUNCTION cloudbft."current_timestamp"() RETURNS pg_catalog.timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.now() $$;
CREATE OR REPLACE FUNCTION cloudbft."current_date"() RETURNS pg_catalog.date
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.now()::pg_catalog.date $$;
CREATE OR REPLACE FUNCTION cloudbft."current_time"() RETURNS pg_catalog.timetz
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.now()::pg_catalog.timetz $$;
CREATE OR REPLACE FUNCTION cloudbft."localtimestamp"() RETURNS pg_catalog.timestamp
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.now()::pg_catalog.timestamp $$;
CREATE OR REPLACE FUNCTION cloudbft."localtime"() RETURNS pg_catalog.time
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.now()::pg_catalog.time $$;

CREATE OR REPLACE FUNCTION cloudbft.age(since pg_catalog.timestamptz) RETURNS pg_catalog.interval
LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT pg_catalog.age(cloudbft.now()::pg_catalog.date::pg_catalog.timestamptz, since)
$$;
CREATE OR REPLACE FUNCTION cloudbft.age(since pg_catalog.timestamp) RETURNS pg_catalog.interval
LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT pg_catalog.age(cloudbft.now()::pg_catalog.date::pg_catalog.timestamp, since)
$$;
-- A fact of one server; here so that monitoring queries keep working.
CREATE OR REPLACE FUNCTION cloudbft.age(transaction pg_catalog.xid) RETURNS pg_catalog.int4
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT pg_catalog.age(transaction) $$;

-- What the literals 'now', 'today', 'tomorrow' and 'yesterday' mean.
CREATE OR REPLACE FUNCTION cloudbft.moment(word pg_catalog.text) RETURNS pg_catalog.timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT CASE word
    WHEN 'now' THEN cloudbft.now()
    WHEN 'today' THEN cloudbft.now()::pg_catalog.date::pg_catalog.timestamptz
    WHEN 'tomorrow' THEN (cloudbft.now()::pg_catalog.date OPERATOR(pg_catalog.+) 1)::pg_catalog.timestamptz
    WHEN 'yesterday' THEN (cloudbft.now()::pg_catalog.date OPERATOR(pg_catalog.-) 1)::pg_catalog.timestamptz
  END
$$;

-- 32 bytes that follow from the seed and the number of draws since it was set. The counter carries its seed, so a
-- statement that ran on this server only (a read) does not shift the draws of the next.
CREATE OR REPLACE FUNCTION cloudbft.draw() RETURNS pg_catalog.bytea
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog AS $$
DECLARE
  seed text := current_setting('cloudbft.seed');
  counter text := coalesce(current_setting('cloudbft.counter', true), '');
  number bigint := 1;
BEGIN
  IF split_part(counter, ' ', 1) = seed THEN
    number := split_part(counter, ' ', 2)::bigint + 1;
  END IF;
  PERFORM set_config('cloudbft.counter', seed || ' ' || number, true);
  RETURN sha256(convert_to(seed || ' ' || number, 'UTF8'));
END
$$;
CREATE OR REPLACE FUNCTION cloudbft.random() RETURNS pg_catalog.float8
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog AS $$
BEGIN
  -- 53 bits, as many as a double has.
  RETURN (('x' || encode(substr(cloudbft.draw(), 1, 7), 'hex'))::bit(56)::bigint >> 3)::float8 / 9007199254740992.0::float8;
END
$$;
CREATE OR REPLACE FUNCTION cloudbft.gen_random_uuid() RETURNS pg_catalog.uuid
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog AS $$
DECLARE
  bytes bytea := substr(cloudbft.draw(), 1, 16);
BEGIN
  -- Version 4, variant 1 (RFC 9562).
  bytes := set_byte(bytes, 6, (get_byte(bytes, 6) & 15) | 64);
  bytes := set_byte(bytes, 8, (get_byte(bytes, 8) & 63) | 128);
  RETURN encode(bytes, 'hex')::uuid;
END
$$;
CREATE OR REPLACE FUNCTION cloudbft.uuid_generate_v4() RETURNS pg_catalog.uuid
LANGUAGE sql VOLATILE PARALLEL UNSAFE AS $$ SELECT cloudbft.gen_random_uuid() $$;

-- What a server's catalogs say of a table or database that was just created, in place of numbers that are local (rule
-- LocalFacts).
CREATE OR REPLACE FUNCTION cloudbft.relfrozenxid(pg_catalog.xid) RETURNS pg_catalog.xid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$ SELECT '3'::pg_catalog.xid $$;
CREATE OR REPLACE FUNCTION cloudbft.relminmxid(pg_catalog.xid) RETURNS pg_catalog.xid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$ SELECT '1'::pg_catalog.xid $$;
CREATE OR REPLACE FUNCTION cloudbft.relpages(pg_catalog.int4) RETURNS pg_catalog.int4
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$ SELECT '0'::pg_catalog.int4 $$;
CREATE OR REPLACE FUNCTION cloudbft.reltuples(pg_catalog.float4) RETURNS pg_catalog.float4
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$ SELECT '-1'::pg_catalog.float4 $$;
CREATE OR REPLACE FUNCTION cloudbft.relallvisible(pg_catalog.int4) RETURNS pg_catalog.int4
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$ SELECT '0'::pg_catalog.int4 $$;
CREATE OR REPLACE FUNCTION cloudbft.datfrozenxid(pg_catalog.xid) RETURNS pg_catalog.xid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$ SELECT '3'::pg_catalog.xid $$;
CREATE OR REPLACE FUNCTION cloudbft.datminmxid(pg_catalog.xid) RETURNS pg_catalog.xid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$ SELECT '1'::pg_catalog.xid $$;

-- Temporary objects are ordinary ones in a schema of the session's, which comes first in its search path (rule
-- TemporaryTables). These tell what PostgreSQL would tell of them; statements of sessions that have some call them.
CREATE OR REPLACE FUNCTION cloudbft.is_temporary_schema(name pg_catalog.name) RETURNS pg_catalog.bool
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
  SELECT pg_catalog.starts_with(name::pg_catalog.text, 'pg_cloudbft_temp_')
$$;
CREATE OR REPLACE FUNCTION cloudbft.current_schema() RETURNS pg_catalog.name
LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT s.name FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) WITH ORDINALITY AS s (name, position)
  WHERE NOT cloudbft.is_temporary_schema(s.name) ORDER BY s.position LIMIT 1
$$;
-- PostgreSQL's own: the schema of temporary objects is not in the path, and is searched before pg_catalog.
CREATE OR REPLACE FUNCTION cloudbft.current_schemas(implicit pg_catalog.bool) RETURNS pg_catalog.name[]
LANGUAGE sql STABLE STRICT PARALLEL SAFE AS $$
  SELECT coalesce(pg_catalog.array_agg(s.name ORDER BY NOT cloudbft.is_temporary_schema(s.name), s.position), '{}')
  FROM pg_catalog.unnest(pg_catalog.current_schemas(implicit)) WITH ORDINALITY AS s (name, position)
  WHERE implicit OR NOT cloudbft.is_temporary_schema(s.name)
$$;
CREATE OR REPLACE FUNCTION cloudbft.current_setting(name pg_catalog.text, missing_ok pg_catalog.bool) RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT CASE WHEN pg_catalog.lower(name) OPERATOR(pg_catalog.=) 'search_path'
    THEN pg_catalog.regexp_replace(pg_catalog.current_setting(name, missing_ok), '^pg_cloudbft_temp_[0-9]+_[0-9]+(, )?', '')
    ELSE pg_catalog.current_setting(name, missing_ok) END
$$;
CREATE OR REPLACE FUNCTION cloudbft.current_setting(name pg_catalog.text) RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.current_setting(name, false) $$;
CREATE OR REPLACE FUNCTION cloudbft.pg_my_temp_schema() RETURNS pg_catalog.oid
LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT coalesce((SELECT n.oid FROM pg_catalog.pg_namespace n
    WHERE n.nspname OPERATOR(pg_catalog.=) ANY (pg_catalog.current_schemas(false))
      AND cloudbft.is_temporary_schema(n.nspname)), '0'::pg_catalog.oid)
$$;
CREATE OR REPLACE FUNCTION cloudbft.pg_is_other_temp_schema(schema pg_catalog.oid) RETURNS pg_catalog.bool
LANGUAGE sql STABLE STRICT PARALLEL SAFE AS $$
  SELECT schema OPERATOR(pg_catalog.<>) cloudbft.pg_my_temp_schema() AND (pg_catalog.pg_is_other_temp_schema(schema)
    OR EXISTS (SELECT FROM pg_catalog.pg_namespace n
      WHERE n.oid OPERATOR(pg_catalog.=) schema AND cloudbft.is_temporary_schema(n.nspname)))
$$;
CREATE OR REPLACE FUNCTION cloudbft.relpersistence(persistence "char", schema pg_catalog.oid) RETURNS "char"
LANGUAGE sql STABLE STRICT PARALLEL SAFE AS $$
  SELECT CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_namespace n
      WHERE n.oid OPERATOR(pg_catalog.=) schema AND cloudbft.is_temporary_schema(n.nspname))
    THEN 't'::"char" ELSE persistence END
$$;

-- Large objects whose number the server is to choose (rule LargeObjects): the number is drawn from the seed, and one that is taken is
-- passed over. They run as who calls them, who owns what they make.
CREATE OR REPLACE FUNCTION cloudbft.large_object_number() RETURNS pg_catalog.oid
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog AS $$
DECLARE
  number oid;
BEGIN
  LOOP
    -- From 16384 on, as the numbers of all objects that are not PostgreSQL's own.
    number := (16384 + ('x' || encode(substr(cloudbft.draw(), 1, 5), 'hex'))::bit(40)::bigint % (4294967296 - 16384))::oid;
    EXIT WHEN NOT EXISTS (SELECT FROM pg_largeobject_metadata AS m WHERE m.oid = number);
  END LOOP;
  RETURN number;
END
$$;
CREATE OR REPLACE FUNCTION cloudbft.lo_create(number pg_catalog.oid) RETURNS pg_catalog.oid
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog AS $$
BEGIN
  RETURN lo_create(CASE number WHEN 0 THEN cloudbft.large_object_number() ELSE number END);
END
$$;
CREATE OR REPLACE FUNCTION cloudbft.lo_creat(mode pg_catalog.int4) RETURNS pg_catalog.oid
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog AS $$
BEGIN
  RETURN lo_create(cloudbft.large_object_number());
END
$$;
CREATE OR REPLACE FUNCTION cloudbft.lo_from_bytea(number pg_catalog.oid, content pg_catalog.bytea) RETURNS pg_catalog.oid
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog AS $$
BEGIN
  RETURN lo_from_bytea(CASE number WHEN 0 THEN cloudbft.large_object_number() ELSE number END, content);
END
$$;
