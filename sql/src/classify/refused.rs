//! Statements that are refused by their keywords.

use crate::refusal::{FEATURE_NOT_SUPPORTED, INSUFFICIENT_PRIVILEGE, Refusal};
use crate::words::Words;

use super::{control, cursor, outside_world};

/// Extensions of which the functions depend on their arguments and the database alone, or are known here.
const EXTENSIONS: [&str; 19] = [
    "btree_gin",
    "btree_gist",
    "citext",
    "cube",
    "dict_int",
    "earthdistance",
    "fuzzystrmatch",
    "hstore",
    "intarray",
    "isn",
    "lo",
    "ltree",
    "pg_trgm",
    "pgcrypto",
    "plpgsql",
    "seg",
    "tablefunc",
    "unaccent",
    "uuid-ossp",
];

/// Procedural languages that may be used in functions.
const LANGUAGES: [&str; 2] = ["sql", "plpgsql"];

/// The refusal of a statement that no words after its first few can make acceptable.
pub(super) fn refusal(words: Words<'_>) -> Option<Refusal> {
    let mut after = words;
    let keyword = after.keyword()?;
    after.skip();
    match keyword.as_ref() {
        "prepare" if after.keyword().as_deref() == Some("transaction") => Some(control::two_phase()),
        "load" => Some(outside_world(44, "LOAD")),
        "create" => create(after),
        "alter" | "drop" => alter(&keyword, after),
        "import" => Some(outside_world(45, "IMPORT FOREIGN SCHEMA")),
        "do" => language(after),
        "declare" => cursor::refusal(after),
        "select" | "with" if into(after, &["unlogged"]) => Some(unlogged()),
        _ => None,
    }
}

/// Whether rows are selected into a table of this kind.
fn into(words: Words<'_>, kinds: &[&str]) -> bool {
    let mut ahead = words;
    while !ahead.is_end() {
        if ahead.accept("into") {
            ahead.accept_one(&["local", "global"]);
            if ahead.accept_one(kinds) {
                return true;
            }
        } else {
            ahead.skip();
        }
    }
    false
}

fn unlogged() -> Refusal {
    Refusal::new(
        FEATURE_NOT_SUPPORTED,
        35,
        "UNLOGGED tables are not supported: a crash would empty them on one server only",
        "Leave out UNLOGGED.",
    )
}

fn create(mut words: Words<'_>) -> Option<Refusal> {
    words.accept_all(&["or", "replace"]);
    words.accept_one(&["global", "local"]);
    let keyword = words.keyword()?;
    words.skip();
    match keyword.as_ref() {
        "unlogged" => Some(unlogged()),
        "database" | "tablespace" => Some(cluster_wide(&keyword)),
        "server" | "foreign" | "subscription" => Some(outside_world(45, "a foreign server or subscription")),
        "user" if words.accept("mapping") => Some(outside_world(45, "a user mapping")),
        "extension" => extension(words),
        "language" | "trusted" | "procedural" => Some(untrusted_language("CREATE LANGUAGE")),
        "function" | "procedure" => language(words),
        _ => None,
    }
}

fn alter(verb: &str, mut words: Words<'_>) -> Option<Refusal> {
    let keyword = words.keyword()?;
    words.skip();
    match keyword.as_ref() {
        "database" | "tablespace" | "system" => Some(cluster_wide(&keyword)),
        "table" | "sequence" if verb == "alter" && words.contains_pair("set", "unlogged") => Some(unlogged()),
        "server" | "foreign" | "subscription" if verb == "alter" => {
            Some(outside_world(45, "a foreign server or subscription"))
        }
        _ => None,
    }
}

fn cluster_wide(what: &str) -> Refusal {
    let sqlstate = match what {
        "database" => FEATURE_NOT_SUPPORTED,
        _ => INSUFFICIENT_PRIVILEGE,
    };
    Refusal::new(
        sqlstate,
        44,
        format!(
            "{} cannot be created, altered or dropped through the proxy",
            what.to_ascii_uppercase()
        ),
        "It is set up with the cluster file, for all database nodes alike.",
    )
}

fn extension(mut words: Words<'_>) -> Option<Refusal> {
    words.accept_all(&["if", "not", "exists"]);
    let name = words.identifier()?;
    (!EXTENSIONS.contains(&name.as_str())).then(|| {
        Refusal::new(
            INSUFFICIENT_PRIVILEGE,
            44,
            format!("extension \"{name}\" is not known to be deterministic"),
            "Extensions that compute from their arguments alone can be added to CloudBFT's list.",
        )
    })
}

/// Refuses languages that can reach outside the database.
fn language(words: Words<'_>) -> Option<Refusal> {
    let mut ahead = words;
    while !ahead.is_end() {
        if ahead.accept("language") {
            let token = ahead.skip()?;
            let name = token
                .identifier(words.text)
                .or_else(|| token.string_value(words.text))?
                .to_ascii_lowercase();
            if !LANGUAGES.contains(&name.as_str()) {
                return Some(untrusted_language(&format!("language {name}")));
            }
        } else {
            ahead.skip();
        }
    }
    None
}

fn untrusted_language(what: &str) -> Refusal {
    Refusal::new(
        INSUFFICIENT_PRIVILEGE,
        25,
        format!("{what}: only functions in SQL and PL/pgSQL are known to be deterministic"),
        "Write the function in SQL or PL/pgSQL.",
    )
}
