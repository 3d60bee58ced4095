//! Footprint templates: what a statement touches, with the bound parameters still open.

mod rows;

use bytes::Bytes;

use crate::footprint::{Footprint, Mode, PartitionKey, PartitionValue, Resource};
use crate::refusal::{FEATURE_NOT_SUPPORTED, Refusal};
use crate::rules::{MultiPartition, PartitionRules};

pub(crate) use rows::{Rows, RowsOf};

/// Type OIDs of Postgres that a key parameter may be declared as.
mod oid {
    pub(super) const UNSPECIFIED: u32 = 0;
    pub(super) const INT8: u32 = 20;
    pub(super) const INT2: u32 = 21;
    pub(super) const INT4: u32 = 23;
    pub(super) const TEXT: u32 = 25;
    pub(super) const UNKNOWN: u32 = 705;
    pub(super) const VARCHAR: u32 = 1043;
    pub(super) const NUMERIC: u32 = 1700;
    pub(super) const UUID: u32 = 2950;
    /// date, time, timestamp, timestamptz, timetz
    pub(super) const DATE_TIME: [u32; 5] = [1082, 1083, 1114, 1184, 1266];
}

/// Above this, a parameter of unspecified type that is used several times may be compared as a float.
const EXACT_AS_ANY_TYPE_MAX: i64 = 1 << 24;

/// What a statement touches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Template {
    /// What it touches; together with `everything`.
    pub(crate) accesses: Vec<Access>,
    /// Whether everything is touched, and how.
    pub(crate) everything: Option<Mode>,
    /// Parameters that go into a column of a date or time type, where `now` would read the clock.
    pub(crate) date_parameters: Vec<u16>,
}

/// One resource, or the partitions that some key values name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// A resource known from the text.
    Fixed(Resource, Mode),
    /// Partitions by key.
    Keyed(Keyed),
    /// Rows or unique values by key.
    Rows(Rows),
    /// A row of a table without unique keys, which nobody can name.
    NewRow(String),
}

/// Partitions by key values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Keyed {
    /// The family's index in the rules.
    pub(crate) family: usize,
    /// The kind of the key column.
    pub(crate) kind: KeyKind,
    /// Where the values come from.
    pub(crate) sources: Vec<KeySource>,
    /// How the partitions are held.
    pub(crate) mode: Mode,
    /// Whether a NULL touches nothing (it was compared) or cannot be (it is inserted).
    pub(crate) null_touches_nothing: bool,
}

/// The kinds of key columns that are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyKind {
    /// smallint, integer, bigint.
    Integer,
    /// text, varchar with a deterministic collation.
    Text,
    /// uuid; a value is its 32 hexadecimal digits.
    Uuid,
}

/// Where a key value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeySource {
    /// A literal.
    Value(PartitionValue),
    /// The literal NULL.
    Null,
    /// A bound parameter.
    Parameter {
        /// Its index, from 0.
        index: u16,
        /// Whether this is its only use, so that its type is the column's when none is declared.
        only_use: bool,
        /// Whether it is cast to the kind of the column.
        cast: bool,
    },
}

/// The bound parameters of a Bind message.
pub(crate) struct Parameters<'bind> {
    types: &'bind [u32],
    formats: &'bind [i16],
    values: &'bind [Option<Bytes>],
    /// The client and its session that asks.
    session: (u32, u64),
}

/// A parameter's value as a key.
enum Bound {
    Value(PartitionValue),
    Null,
    NotUnderstood,
}

impl<'bind> Parameters<'bind> {
    pub(crate) fn new(
        session: (u32, u64),
        types: &'bind [u32],
        formats: &'bind [i16],
        values: &'bind [Option<Bytes>],
    ) -> Self {
        Self {
            types,
            formats,
            values,
            session,
        }
    }

    pub(crate) fn none(session: (u32, u64)) -> Self {
        Self::new(session, &[], &[], &[])
    }

    fn declared(&self, index: usize) -> u32 {
        self.types.get(index).copied().unwrap_or(oid::UNSPECIFIED)
    }

    fn is_binary(&self, index: usize) -> Option<bool> {
        let format = match self.formats {
            [] => 0,
            [one] => *one,
            several => *several.get(index)?,
        };
        match format {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn bound(&self, source: &KeySource, kind: KeyKind) -> Bound {
        match source {
            KeySource::Value(value) => Bound::Value(value.clone()),
            KeySource::Null => Bound::Null,
            KeySource::Parameter { index, only_use, cast } => self.key(*index, kind, *only_use, *cast),
        }
    }

    fn key(&self, index: u16, kind: KeyKind, only_use: bool, cast: bool) -> Bound {
        let index = usize::from(index);
        let value = match self.values.get(index) {
            None => return Bound::NotUnderstood,
            Some(None) => return Bound::Null,
            Some(Some(value)) => value,
        };
        let declared = self.declared(index);
        let key = match (kind, self.is_binary(index)) {
            (KeyKind::Integer, Some(false)) => text_integer(value, declared, only_use, cast),
            (KeyKind::Integer, Some(true)) => binary_integer(value, declared, only_use),
            (KeyKind::Text, Some(_)) => text_key(value, declared, only_use),
            (KeyKind::Uuid, Some(is_binary)) => uuid_key(value, declared, only_use, cast, is_binary),
            (_, None) => None,
        };
        key.map_or(Bound::NotUnderstood, Bound::Value)
    }

    /// Refuses `now` and the like as value of a date or time (rule DateWords): each server would read its own clock.
    fn refuse_clock_words(&self, date_parameters: &[u16]) -> Result<(), Refusal> {
        for (index, value) in self.values.iter().enumerate() {
            let Some(value) = value else { continue };
            let declared = self.declared(index);
            let may_be_date = oid::DATE_TIME.contains(&declared)
                || date_parameters.iter().any(|parameter| usize::from(*parameter) == index);
            if may_be_date && self.is_binary(index) != Some(true) && is_clock_word_bytes(value) {
                return Err(clock_word_refusal());
            }
        }
        Ok(())
    }
}

/// The refusal of `'now'` and the like where it cannot be replaced.
pub(crate) fn clock_word_refusal() -> Refusal {
    Refusal::new(
        FEATURE_NOT_SUPPORTED,
        4,
        "the date/time inputs 'now', 'today', 'tomorrow' and 'yesterday' would read each server's own clock",
        "Write now() or current_date in the statement, or send the value itself.",
    )
}

/// Whether Postgres's date/time input functions would read the clock for this word.
pub(crate) fn is_clock_word(word: &str) -> bool {
    // Any input that contains one of the words may: '  now  ', 'today 12:00'.
    word.split(|character: char| !character.is_ascii_alphabetic())
        .any(|part| {
            ["now", "today", "tomorrow", "yesterday"]
                .iter()
                .any(|clock| part.eq_ignore_ascii_case(clock))
        })
}

fn is_clock_word_bytes(word: &[u8]) -> bool {
    std::str::from_utf8(word).is_ok_and(is_clock_word)
}

fn text_integer(value: &[u8], declared: u32, only_use: bool, cast: bool) -> Option<PartitionValue> {
    let exact = match declared {
        oid::INT2 | oid::INT4 | oid::INT8 | oid::NUMERIC => true,
        oid::UNSPECIFIED => only_use,
        oid::TEXT | oid::VARCHAR | oid::UNKNOWN if cast => true,
        _ => return None,
    };
    let number: i64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    (exact || (0..EXACT_AS_ANY_TYPE_MAX).contains(&number)).then_some(PartitionValue::Integer(number))
}

fn binary_integer(value: &[u8], declared: u32, only_use: bool) -> Option<PartitionValue> {
    let of_length = |length: usize| value.len() == length;
    let understood = match declared {
        oid::INT2 => of_length(2),
        oid::INT4 => of_length(4),
        oid::INT8 => of_length(8),
        oid::UNSPECIFIED => only_use,
        _ => false,
    };
    if !understood {
        return None;
    }
    let number = match value.len() {
        2 => i64::from(i16::from_be_bytes(value.try_into().ok()?)),
        4 => i64::from(i32::from_be_bytes(value.try_into().ok()?)),
        8 => i64::from_be_bytes(value.try_into().ok()?),
        _ => return None,
    };
    Some(PartitionValue::Integer(number))
}

fn text_key(value: &[u8], declared: u32, only_use: bool) -> Option<PartitionValue> {
    let understood = match declared {
        oid::TEXT | oid::VARCHAR => true,
        oid::UNSPECIFIED | oid::UNKNOWN => only_use,
        _ => false,
    };
    understood.then_some(())?;
    text_value(std::str::from_utf8(value).ok()?)
}

/// A text as key value. An assignment to varchar(n) cuts trailing spaces, so a value with one is not a key.
pub(crate) fn text_value(value: &str) -> Option<PartitionValue> {
    (!value.ends_with(' ')).then(|| PartitionValue::Text(value.to_owned()))
}

fn uuid_key(value: &[u8], declared: u32, only_use: bool, cast: bool, is_binary: bool) -> Option<PartitionValue> {
    let understood = match declared {
        oid::UUID => true,
        oid::UNSPECIFIED => only_use,
        oid::TEXT | oid::VARCHAR | oid::UNKNOWN => cast && !is_binary,
        _ => false,
    };
    understood.then_some(())?;
    if is_binary {
        let bytes: [u8; 16] = value.try_into().ok()?;
        let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
        return Some(PartitionValue::Text(digits.collect()));
    }
    uuid_value(std::str::from_utf8(value).ok()?)
}

/// A UUID as key value, of the two usual forms of the many that Postgres takes.
pub(crate) fn uuid_value(value: &str) -> Option<PartitionValue> {
    let groups: Vec<usize> = value.split('-').map(str::len).collect();
    let is_usual = matches!(groups.as_slice(), [32] | [8, 4, 4, 4, 12]);
    let digits: String = value.chars().filter(|character| *character != '-').collect();
    let are_digits = digits.chars().all(|digit| digit.is_ascii_hexdigit());
    (is_usual && are_digits).then(|| PartitionValue::Text(digits.to_ascii_lowercase()))
}

impl Template {
    /// Everything, in one mode.
    pub(crate) fn everything(mode: Mode) -> Self {
        Self {
            everything: Some(mode),
            ..Self::default()
        }
    }

    /// Adds what the statement touches with these parameters.
    ///
    /// # Errors
    /// When a parameter would read the clock.
    pub(crate) fn instantiate(
        &self,
        parameters: &Parameters<'_>,
        rules: &PartitionRules,
        footprint: &mut Footprint,
    ) -> Result<(), Refusal> {
        parameters.refuse_clock_words(&self.date_parameters)?;
        if let Some(mode) = self.everything {
            footprint.add(Resource::Everything, mode);
        }
        for access in &self.accesses {
            match access {
                Access::Fixed(resource, mode) => footprint.add(resource.clone(), *mode),
                Access::Keyed(keyed) => keyed.instantiate(parameters, rules, footprint),
                Access::Rows(rows) => rows.instantiate(parameters, footprint),
                Access::NewRow(table) => footprint.add(rows::new_row(table, parameters.session), Mode::Exclusive),
            }
        }
        reduce(rules, footprint);
        Ok(())
    }
}

/// Leaves only `Everything` where it covers all, and applies the global lock where the rules ask for it.
fn reduce(rules: &PartitionRules, footprint: &mut Footprint) {
    let entries = footprint.entries();
    if entries.len() < 2 {
        return;
    }
    let any_exclusive = entries.iter().any(|(_, mode)| *mode == Mode::Exclusive);
    let everything = entries
        .first()
        .filter(|(resource, _)| *resource == Resource::Everything);
    match everything.map(|(_, mode)| *mode) {
        Some(Mode::Exclusive) => *footprint = Footprint::everything(),
        Some(Mode::Shared) if !any_exclusive => *footprint = Footprint::of(Resource::Everything, Mode::Shared),
        _ if any_exclusive && rules.multi_partition == MultiPartition::Global => *footprint = Footprint::everything(),
        _ => {}
    }
}

impl Keyed {
    fn instantiate(&self, parameters: &Parameters<'_>, rules: &PartitionRules, footprint: &mut Footprint) {
        for source in &self.sources {
            match (parameters.bound(source, self.kind), rules.families.get(self.family)) {
                (Bound::Value(value), Some(family)) => {
                    let family = family.name.clone();
                    footprint.add(Resource::Partition(PartitionKey { family, value }), self.mode);
                }
                (Bound::Null, _) if self.null_touches_nothing => {}
                _ => footprint.add(Resource::Everything, self.mode),
            }
        }
    }
}
