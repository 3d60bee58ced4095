  SELECT pg_catalog.jsonb_build_object(
    'object', 'server',
    'version', pg_catalog.current_setting('server_version_num')::pg_catalog.int4 OPERATOR(pg_catalog./) 10000,
    'encoding', pg_catalog.current_setting('server_encoding'),
    'collate', d.datcollate,
    'ctype', d.datctype) AS object,
    NULL::pg_catalog.oid AS number,
    NULL::pg_catalog.int2[] AS columns
  FROM pg_catalog.pg_database d WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
  UNION ALL SELECT pg_catalog.jsonb_build_object('object', 'schema', 'name', n.nspname), n.oid, NULL FROM namespaces n
  UNION ALL
  SELECT pg_catalog.jsonb_build_object('object', 'function', 'schema', p.nspname, 'name', p.proname,
    'volatility', p.provolatile, 'language', p.lanname, 'arguments', p.pronargs, 'kind', p.prokind),
    p.oid, NULL
  FROM user_functions p
  UNION ALL
  SELECT DISTINCT pg_catalog.jsonb_build_object('object', 'operator', 'schema', n.nspname, 'name', o.oprname,
    'plain', NOT EXISTS (SELECT FROM code c WHERE c.class OPERATOR(pg_catalog.=) 'pg_catalog.pg_operator'::pg_catalog.regclass
      AND c.oid OPERATOR(pg_catalog.=) o.oid),
    'takes_keys', o.oprleft OPERATOR(pg_catalog.=) ANY ('{int2,int4,int8,text,varchar,numeric,uuid}'::pg_catalog.regtype[])
      OR o.oprright OPERATOR(pg_catalog.=) ANY ('{int2,int4,int8,text,varchar,numeric,uuid}'::pg_catalog.regtype[])),
    NULL::pg_catalog.oid, NULL::pg_catalog.int2[]
  FROM pg_catalog.pg_operator o
  JOIN namespaces n ON n.oid OPERATOR(pg_catalog.=) o.oprnamespace
  WHERE o.oprname OPERATOR(pg_catalog.=) '=' OR EXISTS (SELECT FROM code c
    WHERE c.class OPERATOR(pg_catalog.=) 'pg_catalog.pg_operator'::pg_catalog.regclass AND c.oid OPERATOR(pg_catalog.=) o.oid)
  UNION ALL
  SELECT pg_catalog.jsonb_build_object('object', 'type', 'schema', n.nspname, 'name', t.typname, 'kind', t.typtype,
    'runs_code', t.oid IN (SELECT x.oid FROM coded_types x)),
    t.oid, NULL
  FROM pg_catalog.pg_type t
  JOIN namespaces n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace
  LEFT JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.typrelid
  WHERE (t.typtype OPERATOR(pg_catalog.=) ANY ('{d,e,r,m}'::pg_catalog."char"[])
    OR (t.typtype OPERATOR(pg_catalog.=) 'b' AND t.typcategory OPERATOR(pg_catalog.<>) 'A')
    OR (t.typtype OPERATOR(pg_catalog.=) 'c' AND (c.relkind OPERATOR(pg_catalog.=) 'c'
      OR t.oid IN (SELECT x.oid FROM coded_types x))))
  UNION ALL
  SELECT DISTINCT pg_catalog.jsonb_build_object('object', 'cast', 'target', t.typname,
    'implicit', k.castcontext OPERATOR(pg_catalog.<>) 'e'),
    NULL::pg_catalog.oid, NULL::pg_catalog.int2[]
  FROM pg_catalog.pg_cast k
  JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) k.casttarget
  JOIN code c ON c.class OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass AND c.oid OPERATOR(pg_catalog.=) k.castfunc
