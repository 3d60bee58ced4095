SELECT object::pg_catalog.text AS json FROM (
  SELECT pg_catalog.jsonb_build_object(
    'object', 'server',
    'version', pg_catalog.current_setting('server_version_num')::pg_catalog.int4 / 10000,
    'encoding', pg_catalog.current_setting('server_encoding'),
    'collate', d.datcollate,
    'ctype', d.datctype) AS object
  FROM pg_catalog.pg_database d WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
) facts
