//! What a transaction may have changed of the catalog, as its server counts it, and what has to be read again therefore. Pure.
//!
//! Each table and view, and each sequence, is a *relation*; everything else that statements depend on (schemas, functions, operators,
//! types, casts) is a *global*. Why these rules see every change is in
//! `docs/decisions/0043-ddl-reads-what-it-changed.md`.

use std::collections::BTreeMap;

/// Rows that a transaction wrote to one catalog, at least; what it took back at a savepoint counts too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// Inserted.
    pub inserted: u64,
    /// Updated.
    pub updated: u64,
    /// Deleted.
    pub deleted: u64,
}

/// What a transaction wrote to the catalogs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Written {
    /// Nothing.
    Nothing,
    /// Nobody knows.
    #[default]
    Unknown,
    /// This.
    Some {
        /// The rows, by the catalog's name.
        rows: BTreeMap<String, Rows>,
        /// The relations that the transaction holds locks on under which their definition can change.
        locked: Vec<u32>,
    },
}

/// What has to be read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Nothing.
    Nothing,
    /// Everything.
    All,
    /// Parts.
    Some(Parts),
}

/// Parts of the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// The relations to read, by number.
    pub relations: Vec<u32>,
    /// And all globals.
    pub globals: bool,
    /// And the globals if domains have other constraints than before.
    pub globals_if_domains: bool,
    /// And the globals if these are not the rows of `pg_type` that the changed relations themselves account for.
    pub types: Rows,
}

/// Catalogs of which every row belongs to a relation that is locked (in a mode that [`Written::Some`] lists) by whoever writes it.
const OF_RELATIONS: &[&str] = &[
    "pg_attrdef",
    "pg_attribute",
    "pg_class",
    "pg_constraint",
    "pg_depend",
    "pg_foreign_table",
    "pg_index",
    "pg_partitioned_table",
    "pg_rewrite",
    "pg_sequence",
    "pg_trigger",
];

/// Catalogs that the catalog query does not read.
const UNREAD: &[&str] = &[
    "pg_aggregate",
    "pg_default_acl",
    "pg_description",
    "pg_init_privs",
    "pg_largeobject",
    "pg_largeobject_metadata",
    "pg_policy",
    "pg_seclabel",
    "pg_statistic",
    "pg_statistic_ext",
    "pg_statistic_ext_data",
    "pg_user_mapping",
];

/// Catalogs of globals.
const OF_GLOBALS: &[&str] = &["pg_cast", "pg_namespace", "pg_operator", "pg_proc", "pg_range"];

impl Written {
    /// Reads what `cloudbft.catalog_changes` answers. What is not understood is unknown.
    pub fn read(text: &str) -> Self {
        if text.is_empty() {
            return Written::Nothing;
        }
        read_some(text).unwrap_or_default()
    }

    /// What to read again.
    pub fn reading(self) -> Reading {
        let (rows, locked) = match self {
            Written::Nothing => return Reading::Nothing,
            Written::Unknown => return Reading::All,
            Written::Some { rows, locked } => (rows, locked),
        };
        let (mut globals, mut is_read) = (false, false);
        for (name, rows) in &rows {
            match name.as_str() {
                name if UNREAD.contains(&name) => continue,
                // New labels change nothing; another name for one changes the text of defaults.
                "pg_enum" if rows.updated == 0 => continue,
                // A table that is no longer a parent is not locked.
                "pg_inherits" if rows.updated == 0 && rows.deleted == 0 => {}
                "pg_type" => globals |= rows.updated > 0,
                // The text of an expression tells the schema of an operator.
                "pg_operator" if rows.updated > 0 => return Reading::All,
                name if OF_RELATIONS.contains(&name) => {}
                name if OF_GLOBALS.contains(&name) => globals = true,
                _ => return Reading::All,
            }
            is_read = true;
        }
        match is_read {
            false => Reading::Nothing,
            true => Reading::Some(Parts {
                relations: locked,
                globals,
                globals_if_domains: rows.contains_key("pg_constraint"),
                types: rows.get("pg_type").copied().unwrap_or_default(),
            }),
        }
    }
}

fn read_some(text: &str) -> Option<Written> {
    let (counts, locked) = text.split_once(';')?;
    let mut rows = BTreeMap::new();
    for count in counts.split(',') {
        let mut words = count.split(' ');
        let name = words.next()?.to_owned();
        let numbers: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>().ok()?;
        let [inserted, updated, deleted] = *numbers.as_slice() else {
            return None;
        };
        let written = Rows {
            inserted,
            updated,
            deleted,
        };
        rows.insert(name, written);
    }
    let locked = locked.split(',').filter(|number| !number.is_empty());
    let locked = locked.map(str::parse).collect::<Result<_, _>>().ok()?;
    Some(Written::Some { rows, locked })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(text: &str) -> Reading {
        Written::read(text).reading()
    }

    fn some(globals: bool, globals_if_domains: bool, inserted: u64) -> Reading {
        Reading::Some(Parts {
            relations: vec![16_400, 16_401],
            globals,
            globals_if_domains,
            types: Rows {
                inserted,
                ..Rows::default()
            },
        })
    }

    #[test]
    fn what_is_locked_is_read_and_globals_where_their_catalogs_were_written() {
        for (written, expected) in [
            ("", Reading::Nothing),
            ("pg_description 1 0 0,pg_statistic 0 3 0;", Reading::Nothing),
            ("pg_enum 1 0 0;", Reading::Nothing),
            ("pg_class 1 0 0,pg_type 2 0 0;16400,16401", some(false, false, 2)),
            ("pg_class 1 0 0,pg_constraint 1 0 0;16400,16401", some(false, true, 0)),
            ("pg_class 1 0 0,pg_inherits 1 0 0;16400,16401", some(false, false, 0)),
            ("pg_class 1 0 0,pg_proc 1 0 0;16400,16401", some(true, false, 0)),
        ] {
            assert_eq!(reading(written), expected, "{written}");
        }
    }

    #[test]
    fn what_is_not_known_to_be_told_by_locks_is_read_whole() {
        for written in [
            "?",
            "pg_class 1 0;16400",
            "pg_class 1 0 0",
            "pg_class 1 0 0;x",
            "pg_inherits 0 0 1;16400",
            "pg_enum 0 1 0;",
            "pg_operator 1 1 0;",
            "pg_language 1 0 0;",
            "pg_a_catalog_of_a_later_version 1 0 0;",
        ] {
            assert_eq!(reading(written), Reading::All, "{written}");
        }
    }
}
