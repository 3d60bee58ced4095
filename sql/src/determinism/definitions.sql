-- What the catalogs say of definitions, as applications wrote them: with the clocks and random sources that functions of schema
-- `cloudbft` stand in for. So a dump can be restored anywhere. Each function has the name of what it replaces.
CREATE OR REPLACE FUNCTION cloudbft.as_written(definition pg_catalog.text) RETURNS pg_catalog.text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog AS $$
DECLARE
  moment text := '\(cloudbft\.moment\(''%s''(::text)?\) (OPERATOR\(pg_catalog\.\+\)|\+) ''[0:]+''::(pg_catalog\.)?interval\)';
  written text := definition;
  keyword text;
BEGIN
  IF strpos(definition, 'cloudbft.') = 0 THEN
    RETURN definition;
  END IF;
  FOREACH keyword IN ARRAY ARRAY['current_timestamp', 'current_date', 'current_time', 'localtimestamp', 'localtime'] LOOP
    written := replace(written, 'cloudbft."' || keyword || '"()', upper(keyword));
  END LOOP;
  written := regexp_replace(written, format(moment, 'now'), 'now()', 'g');
  written := regexp_replace(written, format(moment, 'today'), 'date_trunc(''day''::text, now())', 'g');
  written := regexp_replace(written, format(moment, 'tomorrow'), '(date_trunc(''day''::text, now()) + ''1 day''::interval)', 'g');
  written := regexp_replace(written, format(moment, 'yesterday'), '(date_trunc(''day''::text, now()) - ''1 day''::interval)', 'g');
  written := regexp_replace(written, 'cloudbft\.uuid_generate_v4\(', 'gen_random_uuid(', 'g');
  RETURN regexp_replace(written, 'cloudbft\.(now|transaction_timestamp|statement_timestamp|clock_timestamp|timeofday|random'
    '|gen_random_uuid|age|lo_create|lo_creat|lo_from_bytea)\(', '\1(', 'g');
END
$$;

CREATE OR REPLACE FUNCTION cloudbft.prosrc(pg_catalog.text) RETURNS pg_catalog.text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT cloudbft.as_written($1) $$;
CREATE OR REPLACE FUNCTION cloudbft.pg_get_expr(pg_catalog.pg_node_tree, pg_catalog.oid) RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.as_written(pg_catalog.pg_get_expr($1, $2)) $$;
CREATE OR REPLACE FUNCTION cloudbft.pg_get_expr(pg_catalog.pg_node_tree, pg_catalog.oid, pg_catalog.bool) RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.as_written(pg_catalog.pg_get_expr($1, $2, $3)) $$;
CREATE OR REPLACE FUNCTION cloudbft.pg_get_viewdef(pg_catalog.oid) RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL RESTRICTED AS $$ SELECT cloudbft.as_written(pg_catalog.pg_get_viewdef($1)) $$;
CREATE OR REPLACE FUNCTION cloudbft.pg_get_viewdef(pg_catalog.oid, pg_catalog.bool) RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL RESTRICTED AS $$ SELECT cloudbft.as_written(pg_catalog.pg_get_viewdef($1, $2)) $$;
CREATE OR REPLACE FUNCTION cloudbft.pg_get_viewdef(pg_catalog.oid, pg_catalog.int4) RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL RESTRICTED AS $$ SELECT cloudbft.as_written(pg_catalog.pg_get_viewdef($1, $2)) $$;
CREATE OR REPLACE FUNCTION cloudbft.pg_get_viewdef(pg_catalog.text) RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL RESTRICTED AS $$ SELECT cloudbft.as_written(pg_catalog.pg_get_viewdef($1)) $$;
CREATE OR REPLACE FUNCTION cloudbft.pg_get_viewdef(pg_catalog.text, pg_catalog.bool) RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL RESTRICTED AS $$ SELECT cloudbft.as_written(pg_catalog.pg_get_viewdef($1, $2)) $$;
CREATE OR REPLACE FUNCTION cloudbft.pg_get_functiondef(pg_catalog.oid) RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.as_written(pg_catalog.pg_get_functiondef($1)) $$;
CREATE OR REPLACE FUNCTION cloudbft.pg_get_function_sqlbody(pg_catalog.oid) RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.as_written(pg_catalog.pg_get_function_sqlbody($1)) $$;
CREATE OR REPLACE FUNCTION cloudbft.pg_get_function_arguments(pg_catalog.oid) RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.as_written(pg_catalog.pg_get_function_arguments($1)) $$;
CREATE OR REPLACE FUNCTION cloudbft.pg_get_constraintdef(pg_catalog.oid) RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.as_written(pg_catalog.pg_get_constraintdef($1)) $$;
CREATE OR REPLACE FUNCTION cloudbft.pg_get_constraintdef(pg_catalog.oid, pg_catalog.bool) RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.as_written(pg_catalog.pg_get_constraintdef($1, $2)) $$;
CREATE OR REPLACE FUNCTION cloudbft.pg_get_ruledef(pg_catalog.oid) RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.as_written(pg_catalog.pg_get_ruledef($1)) $$;
CREATE OR REPLACE FUNCTION cloudbft.pg_get_ruledef(pg_catalog.oid, pg_catalog.bool) RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.as_written(pg_catalog.pg_get_ruledef($1, $2)) $$;
CREATE OR REPLACE FUNCTION cloudbft.pg_get_triggerdef(pg_catalog.oid) RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.as_written(pg_catalog.pg_get_triggerdef($1)) $$;
CREATE OR REPLACE FUNCTION cloudbft.pg_get_triggerdef(pg_catalog.oid, pg_catalog.bool) RETURNS pg_catalog.text
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT cloudbft.as_written(pg_catalog.pg_get_triggerdef($1, $2)) $$;
