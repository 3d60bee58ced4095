-- The functions that stand in for clocks and random sources. Settings, by transaction or statement:
--   cloudbft.time_us  microseconds since 1970-01-01 00:00 UTC, of the order
--   cloudbft.seed     hexadecimal, of the order and the statement
-- Each has the name of what it replaces, so that output columns keep their names.
CREATE SCHEMA IF NOT EXISTS cloudbft;
GRANT USAGE ON SCHEMA cloudbft TO PUBLIC;

-- Exact: integer seconds and integer microseconds; to_timestamp(double) would round.
CREATE OR REPLACE FUNCTION cloudbft.now() RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL RESTRICTED AS $$
  SELECT 'epoch'::pg_catalog.timestamptz
    OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => (pg_catalog.current_setting('cloudbft.time_us')::pg_catalog.int8
      OPERATOR(pg_catalog./) 1000000)::pg_catalog.float8)
    OPERATOR(pg_catalog.+) '1 microsecond'::pg_catalog.interval
      OPERATOR(pg_catalog.*) (pg_catalog.current_setting('cloudbft.time_us')::pg_catalog.int8
        OPERATOR(pg_catalog.%) 1000000)::pg_catalog.float8
$$;
