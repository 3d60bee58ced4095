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
