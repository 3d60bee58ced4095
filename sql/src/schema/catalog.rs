//! The queries that read the catalog, put together of parts that they share.
//!
//! They are statements for a superuser, or for anybody who may read the system's catalogs, under the search path `pg_catalog`: so
//! all names of users are printed with their schemas.

macro_rules! objects {
    ($($part:expr),+; $columns:literal) => {
        concat!(include_str!("catalog/users.sql"), $($part),+, ")\nSELECT o.object::pg_catalog.text AS json", $columns,
            " FROM objects o\nORDER BY (o.object::pg_catalog.text) COLLATE pg_catalog.\"C\"")
    };
}

/// Reads the catalog: one text column `json`, one row per object, in a deterministic order, without OIDs.
pub const CATALOG_QUERY: &str = objects!(
    include_str!("catalog/every.sql"), include_str!("catalog/globals.sql"), "  UNION ALL\n", include_str!("catalog/relations.sql");
    "");

/// The same, and for one server only: the OID of a relation, a function, a type or a schema, and the numbers of a table's columns.
pub const NUMBERED_CATALOG_QUERY: &str = objects!(
    include_str!("catalog/every.sql"), include_str!("catalog/globals.sql"), "  UNION ALL\n", include_str!("catalog/relations.sql");
    ", o.number, o.columns");

/// The same of everything that is no relation.
pub const NUMBERED_GLOBALS_QUERY: &str = objects!(
    include_str!("catalog/every.sql"), include_str!("catalog/globals.sql");
    ", o.number, o.columns");

/// The same of the relations whose OIDs are in the array `$1`, and of the tables whose indexes are. Only right where no type runs code of
/// users ([`super::Schema::has_coded_types`]). Its cost does not depend on how many other relations there are.
pub const NUMBERED_RELATIONS_QUERY: &str = objects!(
    include_str!("catalog/some.sql"), include_str!("catalog/relations.sql");
    ", o.number, o.columns");
