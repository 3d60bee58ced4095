//! Which lies adversaries tell, how often, and how often verification let them pass. A lie that is never told shows
//! nothing; one that verification always refuses shows only that.

use std::collections::BTreeMap;
use std::fmt;

/// Whether verification must refuse a lie, or only the state machine can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It verifies at least now and then: the state machine has to bear it.
    Passes,
    /// The counter or a signature gives it away: it must never verify.
    Refused,
    /// That depends on what else was said.
    Either,
}

/// A lie, by name, and what verification makes of it.
pub type Lie = (&'static str, Fate);

/// How often a lie was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Times that it was told.
    pub told: u64,
    /// Times that every message of it verified.
    pub passed: u64,
}

/// How often each lie was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told(BTreeMap<&'static str, Count>);

impl Told {
    /// Counts a lie.
    pub fn count(&mut self, lie: &'static str, has_passed: bool) {
        let count = self.0.entry(lie).or_default();
        count.told += 1;
        count.passed += u64::from(has_passed);
    }

    /// Adds what another run has counted.
    pub fn add(&mut self, other: &Told) {
        for (lie, more) in &other.0 {
            let count = self.0.entry(lie).or_default();
            count.told += more.told;
            count.passed += more.passed;
        }
    }

    /// How often a lie was told.
    pub fn of(&self, lie: &str) -> Count {
        self.0.get(lie).copied().unwrap_or_default()
    }

    /// What is wrong with these counts: lies that were never told, or that verification should have treated
    /// otherwise, or that no list knows.
    pub fn complaints(&self, lies: &[Lie]) -> Vec<String> {
        let mut complaints = Vec::new();
        for (lie, fate) in lies {
            let count = self.0.get(lie).copied().unwrap_or_default();
            match fate {
                _ if count.told == 0 => complaints.push(format!("{lie} was never told")),
                Fate::Passes if count.passed == 0 => complaints.push(format!("{lie} never passed verification")),
                Fate::Refused if count.passed > 0 => complaints.push(format!("{lie} passed verification")),
                _ => {}
            }
        }
        let unknown = self.0.keys().filter(|lie| lies.iter().all(|(known, _)| known != *lie));
        complaints.extend(unknown.map(|lie| format!("{lie} is in no list")));
        complaints
    }
}

/// `name told/passed`, separated by commas.
impl fmt::Display for Told {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = self.0.iter();
        let each = each.map(|(lie, count)| format!("{lie} {}/{}", count.told, count.passed));
        formatter.write_str(&each.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_told_and_what_should_not_pass_is_complained_about() {
        let lies = [
            ("a", Fate::Passes),
            ("b", Fate::Refused),
            ("c", Fate::Passes),
            ("d", Fate::Refused),
        ];
        let mut told = Told::default();
        told.count("a", true);
        told.count("b", true);
        told.count("d", false);
        told.count("e", true);
        let complaints = told.complaints(&lies);
        assert_eq!(
            complaints,
            ["b passed verification", "c was never told", "e is in no list"]
        );
        assert_eq!(told.to_string(), "a 1/1, b 1/1, d 1/0, e 1/1");
    }
}
