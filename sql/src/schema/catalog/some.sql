  -- Relations of these numbers, and the tables of the indexes of these numbers, where no type runs code of users. What `every.sql` says of
  -- all is said of these alone, so that it costs what they cost, however many others there are.
  WHERE c.oid IN (
    SELECT g.number FROM pg_catalog.unnest($1::pg_catalog.oid[]) AS g (number)
    UNION SELECT i.indrelid FROM pg_catalog.pg_index i WHERE i.indexrelid OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.oid[]))
), coded_types AS (
  SELECT 0::pg_catalog.oid AS oid WHERE false
), calling AS (
  SELECT o.relation FROM (
    SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass AS class, k.oid, k.conrelid AS relation
    FROM relations r JOIN pg_catalog.pg_constraint k ON k.conrelid OPERATOR(pg_catalog.=) r.oid
    UNION ALL SELECT 'pg_catalog.pg_attrdef'::pg_catalog.regclass, a.oid, a.adrelid
    FROM relations r JOIN pg_catalog.pg_attrdef a ON a.adrelid OPERATOR(pg_catalog.=) r.oid
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, i.indexrelid, i.indrelid
    FROM relations r JOIN pg_catalog.pg_index i ON i.indrelid OPERATOR(pg_catalog.=) r.oid
  ) o
  JOIN pg_catalog.pg_depend d ON d.classid OPERATOR(pg_catalog.=) o.class AND d.objid OPERATOR(pg_catalog.=) o.oid
  LEFT JOIN pg_catalog.pg_operator q ON d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_operator'::pg_catalog.regclass
    AND q.oid OPERATOR(pg_catalog.=) d.refobjid
  JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) CASE
    WHEN d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass THEN d.refobjid ELSE q.oprcode::pg_catalog.oid END
  JOIN namespaces n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
  JOIN pg_catalog.pg_language l ON l.oid OPERATOR(pg_catalog.=) p.prolang
  WHERE NOT (l.lanname OPERATOR(pg_catalog.=) 'c' AND p.provolatile OPERATOR(pg_catalog.=) 'i')
), objects AS (
