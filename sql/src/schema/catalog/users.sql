-- The schemas of users, and the relations in them.
WITH RECURSIVE namespaces AS (
  SELECT n.oid, n.nspname FROM pg_catalog.pg_namespace n
  WHERE n.nspname OPERATOR(pg_catalog.<>) ALL ('{pg_catalog,information_schema,cloudbft}'::pg_catalog.name[])
    AND n.nspname OPERATOR(pg_catalog.!~) '^pg_(toast|temp_)'
), relations AS (
  SELECT c.*, n.nspname FROM pg_catalog.pg_class c
  JOIN namespaces n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
