-- What is in schema `cloudbft` belongs to an extension of that name, which counts as built in (its number is below those of users'
-- objects): pg_dump neither locks nor writes what belongs to such an extension. There are no files of it, so that nobody can
-- create or drop it by SQL. Run as superuser, after all else of the schema was made; may be run again.
DO $$
DECLARE
  own_extension CONSTANT oid := 9500;
  member record;
BEGIN
  SET LOCAL allow_system_table_mods = on;
  INSERT INTO pg_catalog.pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
  SELECT own_extension, 'cloudbft', r.oid, n.oid, false, '1'
  FROM pg_catalog.pg_roles r, pg_catalog.pg_namespace n
  WHERE r.rolname = current_user AND n.nspname = 'cloudbft'
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_extension e WHERE e.oid = own_extension);
  FOR member IN
    SELECT 'pg_catalog.pg_namespace'::regclass::oid AS catalog, n.oid AS number, n.nspacl AS privileges
    FROM pg_catalog.pg_namespace n WHERE n.nspname = 'cloudbft'
    UNION ALL
    SELECT 'pg_catalog.pg_class'::regclass, c.oid, c.relacl FROM pg_catalog.pg_class c
    WHERE c.relnamespace = 'cloudbft'::regnamespace AND c.relkind IN ('r', 'v', 'S')
    UNION ALL
    SELECT 'pg_catalog.pg_proc'::regclass, p.oid, p.proacl FROM pg_catalog.pg_proc p
    WHERE p.pronamespace = 'cloudbft'::regnamespace
  LOOP
    INSERT INTO pg_catalog.pg_depend (classid, objid, objsubid, refclassid, refobjid, refobjsubid, deptype)
    SELECT member.catalog, member.number, 0, 'pg_catalog.pg_extension'::regclass, own_extension, 0, 'e'
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
      WHERE d.classid = member.catalog AND d.objid = member.number AND d.deptype = 'e');
    -- Their privileges are those that the extension came with: pg_dump writes only others.
    DELETE FROM pg_catalog.pg_init_privs i
    WHERE i.classoid = member.catalog AND i.objoid = member.number AND i.objsubid = 0
      AND i.initprivs IS DISTINCT FROM member.privileges;
    INSERT INTO pg_catalog.pg_init_privs (objoid, classoid, objsubid, privtype, initprivs)
    SELECT member.number, member.catalog, 0, 'e', member.privileges
    WHERE member.privileges IS NOT NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_init_privs i
      WHERE i.classoid = member.catalog AND i.objoid = member.number AND i.objsubid = 0);
  END LOOP;
END
$$;
