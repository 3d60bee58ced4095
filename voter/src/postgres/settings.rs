//! The difference between the settings that a backend has and those that an operation asks for.

use std::hash::{DefaultHasher, Hash, Hasher};

use sql::names::{DEFAULT_PATH, path_with_temporary};

/// Settings that no operation may change: they would make servers differ, or lift what guards the voter.
const REFUSED_SETTINGS: &[&str] = &[
    "application_name",
    "array_nulls",
    "backslash_quote",
    "client_encoding",
    "exit_on_error",
    "gin_fuzzy_search_limit",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "jit",
    "lc_messages",
    "local_preload_libraries",
    "lock_timeout",
    "max_parallel_workers_per_gather",
    "session_authorization",
    "session_preload_libraries",
    "session_replication_role",
    "standard_conforming_strings",
    "statement_timeout",
    "synchronize_seqscans",
    "synchronous_commit",
    "transaction_deferrable",
    "transaction_isolation",
    "transaction_read_only",
    "transform_null_equals",
];

/// The first of an operation's settings that the voter does not apply, if any.
pub fn refused(settings: &[(String, String)]) -> Option<&str> {
    let names = settings.iter().map(|(name, _)| name.as_str());
    names.into_iter().find(|name| {
        let lower = name.to_ascii_lowercase();
        REFUSED_SETTINGS.contains(&lower.as_str())
            || lower.starts_with("cloudbft.")
            || lower.starts_with("default_transaction_")
            || lower.is_empty()
            || !lower
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'))
    })
}

/// A hash of settings: tells apart what statements were parsed under.
pub fn hash(settings: &[(String, String)]) -> u64 {
    let mut hasher = DefaultHasher::new();
    settings.hash(&mut hasher);
    hasher.finish()
}

/// The statements that bring a backend from one list of settings to another; `None` when they are equal. What the backend
/// has is `None` when it is unknown.
pub fn difference(has: Option<&[(String, String)]>, wants: &[(String, String)]) -> Option<String> {
    if has == Some(wants) {
        return None;
    }
    let mut statements: Vec<String> = match has {
        // RESET ALL leaves these two as they are.
        None => ["RESET SESSION AUTHORIZATION", "RESET ROLE", "RESET ALL"]
            .map(String::from)
            .into(),
        Some(has) => {
            let gone = has
                .iter()
                .filter(|(name, _)| !wants.iter().any(|(other, _)| other == name));
            gone.map(|(name, _)| format!("RESET {}", identifier(name))).collect()
        }
    };
    let changed = wants.iter().filter(|pair| has.is_none_or(|has| !has.contains(pair)));
    statements.extend(changed.map(|(name, value)| {
        format!(
            "SELECT pg_catalog.set_config({}, {}, false)",
            literal(name),
            literal(value)
        )
    }));
    Some(statements.join("; "))
}

/// Settings under which the objects of a schema of temporary ones come first.
pub fn with_temporary(settings: &[(String, String)], schema: &str) -> Vec<(String, String)> {
    const PATH: &str = "search_path";
    let path = settings.iter().find(|(name, _)| name == PATH);
    let path = path.map_or(DEFAULT_PATH, |(_, value)| value);
    let mut with: Vec<_> = settings.iter().filter(|(name, _)| name != PATH).cloned().collect();
    with.push((PATH.into(), path_with_temporary(path, schema)));
    with.sort();
    with
}

/// An array constant of texts.
pub fn array(texts: &[&str]) -> String {
    let escaped = texts.iter().map(|text| text.replace('\\', "\\\\").replace('"', "\\\""));
    let quoted: Vec<_> = escaped.map(|text| format!("\"{text}\"")).collect();
    format!("{{{}}}", quoted.join(","))
}

fn identifier(name: &str) -> String {
    let parts = name.split('.').map(|part| format!("\"{}\"", part.replace('"', "\"\"")));
    parts.collect::<Vec<_>>().join(".")
}

/// A string constant (`standard_conforming_strings` is pinned on).
pub fn literal(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect()
    }

    #[test]
    fn only_what_changed_is_sent() {
        let has = pairs(&[("DateStyle", "German"), ("TimeZone", "UTC"), ("work_mem", "4MB")]);
        let wants = pairs(&[("TimeZone", "UTC"), ("work_mem", "8MB")]);
        assert_eq!(difference(Some(&has), &has), None);
        assert_eq!(
            difference(Some(&has), &wants).as_deref(),
            Some("RESET \"DateStyle\"; SELECT pg_catalog.set_config('work_mem', '8MB', false)")
        );
        let unknown = difference(None, &wants).unwrap();
        assert!(unknown.starts_with("RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; "));
    }

    #[test]
    fn pinned_and_strange_names_are_refused() {
        assert_eq!(refused(&pairs(&[("TimeZone", "UTC")])), None);
        for name in [
            "JIT",
            "exit_on_error",
            "gin_fuzzy_search_limit",
            "cloudbft.seed",
            "exit_on_error",
            "gin_fuzzy_search_limit",
            "a; drop table t",
            "default_transaction_read_only",
        ] {
            assert_eq!(refused(&pairs(&[(name, "x")])), Some(name));
        }
    }
}
