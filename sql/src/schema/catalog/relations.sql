  -- What other objects say of a relation is its name and the names of its columns; nothing else of it.
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
    'triggers', (SELECT pg_catalog.jsonb_agg(t.tgname ORDER BY t.tgname)
      FROM pg_catalog.pg_trigger t WHERE t.tgrelid OPERATOR(pg_catalog.=) c.oid AND NOT t.tgisinternal
        AND t.tgenabled OPERATOR(pg_catalog.<>) 'D'),
    'rules', (SELECT pg_catalog.jsonb_agg(r.rulename ORDER BY r.rulename) FROM pg_catalog.pg_rewrite r
      WHERE r.ev_class OPERATOR(pg_catalog.=) c.oid AND r.rulename OPERATOR(pg_catalog.<>) '_RETURN'),
    'calls_functions', c.oid IN (SELECT calling.relation FROM calling),
    'expressions', e.expressions) AS object,
    c.oid AS number,
    k.numbers AS columns
  FROM relations c
  LEFT JOIN LATERAL (
    SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
      'name', a.attname,
      'type', pg_catalog.format_type(a.atttypid, a.atttypmod),
      'category', CASE
        WHEN a.atttypid OPERATOR(pg_catalog.=) ANY ('{int2,int4,int8}'::pg_catalog.regtype[]) THEN 'integer'
        WHEN a.atttypid OPERATOR(pg_catalog.=) ANY ('{text,varchar}'::pg_catalog.regtype[])
          AND coalesce(l.collisdeterministic, true) THEN 'text'
        WHEN a.atttypid OPERATOR(pg_catalog.=) 'uuid'::pg_catalog.regtype THEN 'uuid'
        WHEN a.atttypid OPERATOR(pg_catalog.=) ANY ('{date,time,timetz,timestamp,timestamptz}'::pg_catalog.regtype[]) THEN 'date'
        WHEN a.atttypid OPERATOR(pg_catalog.=) ANY ('{float4,float8}'::pg_catalog.regtype[]) THEN 'float'
        WHEN (SELECT t.typtype FROM pg_catalog.pg_type t WHERE t.oid OPERATOR(pg_catalog.=) a.atttypid) OPERATOR(pg_catalog.=) 'd'
          OR a.atttypid IN (SELECT x.oid FROM coded_types x) THEN 'domain'
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
            AND d.deptype OPERATOR(pg_catalog.=) 'i' AND a.attidentity OPERATOR(pg_catalog.<>) ''
        ) s)
    ) ORDER BY a.attnum) AS columns,
    pg_catalog.array_agg(a.attnum ORDER BY a.attnum) AS numbers
    FROM pg_catalog.pg_attribute a
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
      -- Whether values that are different by their types' own equality, in a deterministic collation, are different here.
      'natural', i.indisvalid AND NOT i.indnullsnotdistinct
        AND NOT EXISTS (SELECT FROM pg_catalog.unnest(i.indcollation::pg_catalog.oid[]) AS u (number)
          JOIN pg_catalog.pg_collation l ON l.oid OPERATOR(pg_catalog.=) u.number WHERE NOT l.collisdeterministic)
        AND NOT EXISTS (SELECT FROM pg_catalog.unnest(i.indclass::pg_catalog.oid[]) AS u (number)
          JOIN pg_catalog.pg_opclass o ON o.oid OPERATOR(pg_catalog.=) u.number
          WHERE o.opcnamespace OPERATOR(pg_catalog.<>) 'pg_catalog'::pg_catalog.regnamespace),
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
  SELECT pg_catalog.jsonb_build_object('object', 'sequence', 'schema', c.nspname, 'name', c.relname),
    c.oid, NULL
  FROM relations c WHERE c.relkind OPERATOR(pg_catalog.=) 'S'
