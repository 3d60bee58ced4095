WITH RECURSIVE namespaces AS (
  SELECT n.oid, n.nspname FROM pg_catalog.pg_namespace n
  WHERE n.nspname OPERATOR(pg_catalog.<>) ALL ('{pg_catalog,information_schema,cloudbft}'::pg_catalog.name[])
    AND n.nspname OPERATOR(pg_catalog.!~) '^pg_(toast|temp_)'
), relations AS (
  SELECT c.*, n.nspname FROM pg_catalog.pg_class c
  JOIN namespaces n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
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
  SELECT pg_catalog.jsonb_build_object(
    'object', 'server',
    'version', pg_catalog.current_setting('server_version_num')::pg_catalog.int4 OPERATOR(pg_catalog./) 10000,
    'encoding', pg_catalog.current_setting('server_encoding'),
    'collate', d.datcollate,
    'ctype', d.datctype) AS object
  FROM pg_catalog.pg_database d WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
  UNION ALL SELECT pg_catalog.jsonb_build_object('object', 'schema', 'name', n.nspname) FROM namespaces n
  UNION ALL
  SELECT pg_catalog.jsonb_build_object(
    'object', 'table',
    'schema', c.nspname,
    'name', c.relname,
    'kind', c.relkind,
    'persistence', c.relpersistence,
    'row_security', c.relrowsecurity,
    'inheritance', c.relispartition OR c.relkind OPERATOR(pg_catalog.=) 'p' OR EXISTS (SELECT FROM pg_catalog.pg_inherits h
      WHERE h.inhrelid OPERATOR(pg_catalog.=) c.oid) OR EXISTS (SELECT FROM pg_catalog.pg_inherits h
      WHERE h.inhparent OPERATOR(pg_catalog.=) c.oid),
    'columns', k.columns,
    'indexes', i.indexes,
    'foreign_keys', f.keys,
    'triggers', (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(t.tgname, pg_catalog.pg_get_triggerdef(t.oid)) ORDER BY t.tgname)
      FROM pg_catalog.pg_trigger t WHERE t.tgrelid OPERATOR(pg_catalog.=) c.oid AND NOT t.tgisinternal
        AND t.tgenabled OPERATOR(pg_catalog.<>) 'D'),
    'rules', (SELECT pg_catalog.jsonb_agg(r.rulename ORDER BY r.rulename) FROM pg_catalog.pg_rewrite r
      WHERE r.ev_class OPERATOR(pg_catalog.=) c.oid AND r.rulename OPERATOR(pg_catalog.<>) '_RETURN'),
    'calls_functions', c.oid IN (SELECT calling.relation FROM calling),
    'expressions', e.expressions,
    'definition', CASE WHEN c.relkind OPERATOR(pg_catalog.=) ANY ('{v,m}'::pg_catalog."char"[])
      THEN pg_catalog.pg_get_viewdef(c.oid) END)
  FROM relations c
  LEFT JOIN LATERAL (
    SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
      'name', a.attname,
      'type', pg_catalog.format_type(a.atttypid, a.atttypmod),
      'category', CASE
        WHEN a.atttypid OPERATOR(pg_catalog.=) ANY ('{int2,int4,int8}'::pg_catalog.regtype[]) THEN 'integer'
        WHEN a.atttypid OPERATOR(pg_catalog.=) ANY ('{text,varchar}'::pg_catalog.regtype[])
          AND coalesce(l.collisdeterministic, true) THEN 'text'
        WHEN a.atttypid OPERATOR(pg_catalog.=) ANY ('{date,time,timetz,timestamp,timestamptz}'::pg_catalog.regtype[]) THEN 'date'
        WHEN a.atttypid OPERATOR(pg_catalog.=) ANY ('{float4,float8}'::pg_catalog.regtype[]) THEN 'float'
        WHEN t.typtype OPERATOR(pg_catalog.=) 'd' OR t.oid IN (SELECT x.oid FROM coded_types x) THEN 'domain'
        ELSE 'other' END,
      'not_null', a.attnotnull,
      'default', pg_catalog.pg_get_expr(f.adbin, f.adrelid),
      'identity', a.attidentity,
      'generated', a.attgenerated,
      'sequences', (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(s.nspname, s.relname) ORDER BY s.nspname, s.relname)
        FROM (
          -- Those that its default draws from, and the one of an identity column.
          SELECT n.nspname, q.relname FROM pg_catalog.pg_depend d
          JOIN pg_catalog.pg_class q ON q.oid OPERATOR(pg_catalog.=) d.refobjid AND q.relkind OPERATOR(pg_catalog.=) 'S'
          JOIN namespaces n ON n.oid OPERATOR(pg_catalog.=) q.relnamespace
          WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_attrdef'::pg_catalog.regclass
            AND d.objid OPERATOR(pg_catalog.=) f.oid
            AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
          UNION
          SELECT n.nspname, q.relname FROM pg_catalog.pg_depend d
          JOIN pg_catalog.pg_class q ON q.oid OPERATOR(pg_catalog.=) d.objid AND q.relkind OPERATOR(pg_catalog.=) 'S'
          JOIN namespaces n ON n.oid OPERATOR(pg_catalog.=) q.relnamespace
          WHERE d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
            AND d.refobjid OPERATOR(pg_catalog.=) a.attrelid AND d.refobjsubid OPERATOR(pg_catalog.=) a.attnum
            AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
            AND d.deptype OPERATOR(pg_catalog.=) 'i'
        ) s)
    ) ORDER BY a.attnum) AS columns
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) a.atttypid
    LEFT JOIN pg_catalog.pg_collation l ON l.oid OPERATOR(pg_catalog.=) a.attcollation
    LEFT JOIN pg_catalog.pg_attrdef f ON f.adrelid OPERATOR(pg_catalog.=) a.attrelid AND f.adnum OPERATOR(pg_catalog.=) a.attnum
    WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
  ) k ON true
  LEFT JOIN LATERAL (
    SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
      'name', x.relname,
      'primary', i.indisprimary,
      'exclusion', i.indisexclusion,
      'plain', i.indpred IS NULL AND i.indexprs IS NULL AND NOT i.indisexclusion AND i.indimmediate,
      'columns', (SELECT pg_catalog.jsonb_agg(a.attname ORDER BY k.position)
        FROM pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k (number, position)
        LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid
          AND a.attnum OPERATOR(pg_catalog.=) k.number AND k.number OPERATOR(pg_catalog.>) 0
        WHERE k.position OPERATOR(pg_catalog.<=) i.indnkeyatts)
    ) ORDER BY x.relname) AS indexes
    FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_class x ON x.oid OPERATOR(pg_catalog.=) i.indexrelid
    WHERE i.indrelid OPERATOR(pg_catalog.=) c.oid AND (i.indisunique OR i.indisexclusion)
  ) i ON true
  LEFT JOIN LATERAL (
    SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
      'name', k.conname,
      'columns', (SELECT pg_catalog.jsonb_agg(a.attname ORDER BY u.position)
        FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY AS u (number, position)
        JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) k.conrelid AND a.attnum OPERATOR(pg_catalog.=) u.number),
      'referenced', pg_catalog.jsonb_build_array(n.nspname, r.relname),
      'referenced_columns', (SELECT pg_catalog.jsonb_agg(a.attname ORDER BY u.position)
        FROM pg_catalog.unnest(k.confkey) WITH ORDINALITY AS u (number, position)
        JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) k.confrelid AND a.attnum OPERATOR(pg_catalog.=) u.number),
      'on_update', k.confupdtype,
      'on_delete', k.confdeltype
    ) ORDER BY k.conname) AS keys
    FROM pg_catalog.pg_constraint k
    JOIN pg_catalog.pg_class r ON r.oid OPERATOR(pg_catalog.=) k.confrelid
    JOIN namespaces n ON n.oid OPERATOR(pg_catalog.=) r.relnamespace
    WHERE k.conrelid OPERATOR(pg_catalog.=) c.oid AND k.contype OPERATOR(pg_catalog.=) 'f'
  ) f ON true
  LEFT JOIN LATERAL (
    -- Expressions that a write computes beyond the defaults of columns: checks, expressions and conditions of indexes.
    SELECT pg_catalog.jsonb_agg(e.expression ORDER BY e.expression COLLATE pg_catalog."C") AS expressions FROM (
      SELECT pg_catalog.pg_get_expr(k.conbin, k.conrelid) AS expression FROM pg_catalog.pg_constraint k
      WHERE k.conrelid OPERATOR(pg_catalog.=) c.oid AND k.contype OPERATOR(pg_catalog.=) 'c'
      UNION ALL SELECT pg_catalog.pg_get_expr(i.indexprs, i.indrelid) FROM pg_catalog.pg_index i
      WHERE i.indrelid OPERATOR(pg_catalog.=) c.oid AND i.indexprs IS NOT NULL
      UNION ALL SELECT pg_catalog.pg_get_expr(i.indpred, i.indrelid) FROM pg_catalog.pg_index i
      WHERE i.indrelid OPERATOR(pg_catalog.=) c.oid AND i.indpred IS NOT NULL
    ) e
  ) e ON true
  WHERE c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p,v,m,f}'::pg_catalog."char"[])
  UNION ALL
  SELECT pg_catalog.jsonb_build_object('object', 'sequence', 'schema', c.nspname, 'name', c.relname)
  FROM relations c WHERE c.relkind OPERATOR(pg_catalog.=) 'S'
  UNION ALL
  SELECT pg_catalog.jsonb_build_object('object', 'function', 'schema', p.nspname, 'name', p.proname,
    'volatility', p.provolatile, 'language', p.lanname, 'arguments', p.pronargs, 'kind', p.prokind)
  FROM user_functions p
  UNION ALL
  SELECT DISTINCT pg_catalog.jsonb_build_object('object', 'operator', 'schema', n.nspname, 'name', o.oprname,
    'plain', NOT EXISTS (SELECT FROM code c WHERE c.class OPERATOR(pg_catalog.=) 'pg_catalog.pg_operator'::pg_catalog.regclass
      AND c.oid OPERATOR(pg_catalog.=) o.oid),
    'takes_keys', o.oprleft OPERATOR(pg_catalog.=) ANY ('{int2,int4,int8,text,varchar,numeric}'::pg_catalog.regtype[])
      OR o.oprright OPERATOR(pg_catalog.=) ANY ('{int2,int4,int8,text,varchar,numeric}'::pg_catalog.regtype[]))
  FROM pg_catalog.pg_operator o
  JOIN namespaces n ON n.oid OPERATOR(pg_catalog.=) o.oprnamespace
  WHERE o.oprname OPERATOR(pg_catalog.=) '=' OR EXISTS (SELECT FROM code c
    WHERE c.class OPERATOR(pg_catalog.=) 'pg_catalog.pg_operator'::pg_catalog.regclass AND c.oid OPERATOR(pg_catalog.=) o.oid)
  UNION ALL
  SELECT pg_catalog.jsonb_build_object('object', 'type', 'schema', n.nspname, 'name', t.typname, 'kind', t.typtype,
    'runs_code', t.oid IN (SELECT x.oid FROM coded_types x))
  FROM pg_catalog.pg_type t
  JOIN namespaces n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace
  LEFT JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.typrelid
  WHERE (t.typtype OPERATOR(pg_catalog.=) ANY ('{d,e,r,m}'::pg_catalog."char"[])
    OR (t.typtype OPERATOR(pg_catalog.=) 'b' AND t.typcategory OPERATOR(pg_catalog.<>) 'A')
    OR (t.typtype OPERATOR(pg_catalog.=) 'c' AND (c.relkind OPERATOR(pg_catalog.=) 'c'
      OR t.oid IN (SELECT x.oid FROM coded_types x))))
  UNION ALL
  SELECT DISTINCT pg_catalog.jsonb_build_object('object', 'cast', 'target', t.typname,
    'implicit', k.castcontext OPERATOR(pg_catalog.<>) 'e')
  FROM pg_catalog.pg_cast k
  JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) k.casttarget
  JOIN code c ON c.class OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass AND c.oid OPERATOR(pg_catalog.=) k.castfunc
)
SELECT o.object::pg_catalog.text AS json FROM objects o
ORDER BY (o.object::pg_catalog.text) COLLATE pg_catalog."C"
