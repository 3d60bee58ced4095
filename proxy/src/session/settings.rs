//! A session's settings (GUCs): kept by the proxy, sent with every operation (`docs/design.md#operations`).

use std::collections::BTreeMap;
use std::sync::Arc;

/// Settings that applications are told of when they change (ParameterStatus), in the spelling of Postgres.
pub(super) const REPORTED: [&str; 13] = [
    "server_version",
    "server_encoding",
    "client_encoding",
    "application_name",
    "default_transaction_read_only",
    "in_hot_standby",
    "is_superuser",
    "session_authorization",
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "integer_datetimes",
    "standard_conforming_strings",
];

/// Which answers to unlocked reads the session accepts: `linearizable` or `session`.
pub(super) const READS: &str = "cloudbft.reads";

/// When an answer inside a transaction is f+1 voters': before the application sees it (`voted`), or at COMMIT (`at_commit`).
pub(super) const ANSWERS: &str = "cloudbft.answers";

/// The reported name of a setting, if it is reported.
pub(super) fn reported_name(name: &str) -> Option<&'static str> {
    REPORTED
        .iter()
        .copied()
        .find(|reported| reported.eq_ignore_ascii_case(name))
}

/// The settings that differ from the defaults of role and database. Names are in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    session: Arc<BTreeMap<String, String>>,
    /// What SET LOCAL set: until the end of the transaction.
    local: Arc<BTreeMap<String, String>>,
}

impl Settings {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.local
            .get(name)
            .or_else(|| self.session.get(name))
            .map(String::as_str)
    }

    /// SET: `None` is the default.
    pub(super) fn set(&mut self, name: &str, value: Option<String>) {
        if self.local.contains_key(name) {
            Arc::make_mut(&mut self.local).remove(name);
        }
        let session = Arc::make_mut(&mut self.session);
        match value {
            Some(value) => session.insert(name.to_owned(), value),
            None => session.remove(name),
        };
    }

    /// SET LOCAL.
    pub(super) fn set_local(&mut self, name: &str, value: String) {
        Arc::make_mut(&mut self.local).insert(name.to_owned(), value);
    }

    /// What remains after the transaction.
    pub(super) fn end_transaction(&mut self) {
        self.local = Arc::default();
    }

    /// The settings as voters need them: sorted by name, without those that concern the proxy only.
    pub(super) fn for_context(&self) -> Vec<(String, String)> {
        let mut merged: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, value) in self.session.iter().chain(self.local.iter()) {
            if !is_proxys_own(name) {
                merged.insert(name, value);
            }
        }
        merged
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// Names of all settings that are set.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.session.keys().chain(self.local.keys()).map(String::as_str)
    }
}

/// Settings that the proxy itself acts on, or that the voters pin: they never travel with operations.
const PROXYS_OWN: [&str; 23] = [
    ANSWERS,
    READS,
    "application_name",
    "array_nulls",
    "backslash_quote",
    "client_encoding",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "jit",
    "lc_messages",
    "lock_timeout",
    "max_parallel_workers_per_gather",
    "session_authorization",
    "session_replication_role",
    "standard_conforming_strings",
    "statement_timeout",
    "synchronize_seqscans",
    "synchronous_commit",
    "transaction_deferrable",
    "transform_null_equals",
];

fn is_proxys_own(name: &str) -> bool {
    PROXYS_OWN.contains(&name)
}

/// The longest time limit of Postgres, in milliseconds.
const MILLISECONDS_MAX: f64 = 2_147_483_647.0;

/// A time of milliseconds, or with a unit, as Postgres reads it for its time limits.
pub(super) fn parse_milliseconds(value: &str) -> Option<u64> {
    let value = value.trim();
    let digits = value
        .find(|character: char| !character.is_ascii_digit() && character != '.')
        .unwrap_or(value.len());
    let (number, unit) = value.split_at_checked(digits)?;
    let factor = match unit.trim() {
        "us" => 0.001,
        "" | "ms" => 1.0,
        "s" => 1_000.0,
        "min" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        _ => return None,
    };
    let milliseconds = (number.parse::<f64>().ok()? * factor).round_ties_even();
    // The limit of Postgres. What is up to it is exact.
    (milliseconds <= MILLISECONDS_MAX).then_some(milliseconds as u64)
}

/// Milliseconds as `SHOW` prints them: in the largest unit that divides them.
pub(super) fn show_milliseconds(milliseconds: u64) -> String {
    let units = [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "min"),
        (1_000, "s"),
        (1, "ms"),
    ];
    let unit = units.iter().find(|(factor, _)| milliseconds.is_multiple_of(*factor));
    match unit {
        Some((factor, unit)) if milliseconds > 0 => format!("{}{unit}", milliseconds / factor),
        _ => "0".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_settings_hide_those_of_the_session_until_the_end() {
        let mut settings = Settings::default();
        settings.set("work_mem", Some("1MB".into()));
        settings.set_local("work_mem", "2MB".into());
        assert_eq!(settings.for_context(), [("work_mem".to_string(), "2MB".to_string())]);
        settings.end_transaction();
        assert_eq!(settings.get("work_mem"), Some("1MB"));
        settings.set("work_mem", None);
        assert_eq!(settings.get("work_mem"), None);
    }

    #[test]
    fn time_limits_are_read_and_shown_as_by_postgres() {
        for (text, milliseconds, shown) in [
            ("0", 0, "0"),
            ("1500", 1500, "1500ms"),
            ("5s", 5000, "5s"),
            ("90 s", 90_000, "90s"),
            ("0.2s", 200, "200ms"),
            ("1499.6", 1500, "1500ms"),
            ("1700us", 2, "2ms"),
            ("1h", 3_600_000, "1h"),
        ] {
            assert_eq!(parse_milliseconds(text), Some(milliseconds));
            assert_eq!(show_milliseconds(milliseconds), shown);
        }
        assert_eq!(parse_milliseconds("soon"), None);
        assert_eq!(parse_milliseconds("99999999999999d"), None);
        assert_eq!(parse_milliseconds("-1"), None);
        assert_eq!(parse_milliseconds("1.2.3s"), None);
        assert_eq!(parse_milliseconds("s"), None);
    }

    #[test]
    fn the_proxys_own_settings_do_not_travel() {
        let mut settings = Settings::default();
        settings.set(READS, Some("session".into()));
        assert!(settings.for_context().is_empty());
    }
}
