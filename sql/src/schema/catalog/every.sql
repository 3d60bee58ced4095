  -- All of them, and what is known of all objects of users: names that `relations.sql` and `globals.sql` use.
), user_functions AS (
  SELECT p.oid, n.nspname, p.proname, p.provolatile, l.lanname, p.pronargs, p.prokind
  FROM pg_catalog.pg_proc p
  JOIN namespaces n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
  JOIN pg_catalog.pg_language l ON l.oid OPERATOR(pg_catalog.=) p.prolang
), code AS (
  -- Functions that may do more than compute from their arguments, and the operators made of them.
  SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass AS class, p.oid FROM user_functions p
  WHERE NOT (p.lanname OPERATOR(pg_catalog.=) 'c' AND p.provolatile OPERATOR(pg_catalog.=) 'i')
  UNION
  SELECT 'pg_catalog.pg_operator'::pg_catalog.regclass, o.oid FROM pg_catalog.pg_operator o
  JOIN user_functions p ON p.oid OPERATOR(pg_catalog.=) o.oprcode
  WHERE NOT (p.lanname OPERATOR(pg_catalog.=) 'c' AND p.provolatile OPERATOR(pg_catalog.=) 'i')
), type_parts AS (
  -- Which type holds values of which: arrays, domains, ranges, composite types.
  SELECT t.oid AS whole, t.typelem AS part FROM pg_catalog.pg_type t WHERE t.typelem OPERATOR(pg_catalog.<>) 0
  UNION ALL SELECT t.oid, t.typbasetype FROM pg_catalog.pg_type t WHERE t.typbasetype OPERATOR(pg_catalog.<>) 0
  UNION ALL SELECT g.rngtypid, g.rngsubtype FROM pg_catalog.pg_range g
  UNION ALL SELECT g.rngmultitypid, g.rngsubtype FROM pg_catalog.pg_range g
  UNION ALL SELECT c.reltype, a.atttypid FROM relations c
    JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.oid
    WHERE a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped AND c.reltype OPERATOR(pg_catalog.<>) 0
), coded_types AS (
  -- Types of which a cast may run code of users: domains with such a check, and what holds them.
  SELECT k.contypid AS oid FROM pg_catalog.pg_constraint k
  JOIN pg_catalog.pg_depend d ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_constraint'::pg_catalog.regclass
    AND d.objid OPERATOR(pg_catalog.=) k.oid
  JOIN code c ON c.class OPERATOR(pg_catalog.=) d.refclassid AND c.oid OPERATOR(pg_catalog.=) d.refobjid
  WHERE k.contypid OPERATOR(pg_catalog.<>) 0
  UNION
  SELECT p.whole FROM coded_types c JOIN type_parts p ON p.part OPERATOR(pg_catalog.=) c.oid
), calling AS (
  SELECT o.relation FROM (
    SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass AS class, k.oid, k.conrelid AS relation FROM pg_catalog.pg_constraint k
    UNION ALL SELECT 'pg_catalog.pg_attrdef'::pg_catalog.regclass, a.oid, a.adrelid FROM pg_catalog.pg_attrdef a
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, i.indexrelid, i.indrelid FROM pg_catalog.pg_index i
  ) o
  JOIN pg_catalog.pg_depend d ON d.classid OPERATOR(pg_catalog.=) o.class AND d.objid OPERATOR(pg_catalog.=) o.oid
  JOIN (
    SELECT code.class, code.oid FROM code
    UNION ALL SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, coded_types.oid FROM coded_types
  ) c ON c.class OPERATOR(pg_catalog.=) d.refclassid AND c.oid OPERATOR(pg_catalog.=) d.refobjid
), objects AS (
