//! What names mean to one session: its temporary objects lie in a schema of its own, which is searched first (rule
//! TemporaryTables, `docs/decisions/0044-temporary-objects-live-in-a-schema-of-the-session.md`).

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::operation::SessionContext;
use crate::schema::{Schema, TableName};

/// How the names of all such schemas begin. Names that begin with `pg_` are reserved: no application can make one, and
/// `pg_dump` and the lists of schemas in clients leave them out.
pub const TEMPORARY_SCHEMA_PREFIX: &str = "pg_cloudbft_temp_";

/// The name by which an application calls the schema of its temporary objects.
pub(crate) const ALIAS: &str = "pg_temp";

/// The search path of a session that has not set one.
pub const DEFAULT_PATH: &str = "\"$user\", public";

/// More names than this in one transaction: all of its names may mean temporary objects.
const MADE_MAX: usize = 4096;

/// The schema of the temporary objects of a session. Sessions are unique for ever, so it is nobody else's.
#[must_use]
pub fn temporary_schema(client: u32, session: u64) -> String {
    format!("{TEMPORARY_SCHEMA_PREFIX}{client}_{session}")
}

/// The client and the session to which such a schema belongs.
#[must_use]
pub fn owner_of_temporary_schema(name: &str) -> Option<(u32, u64)> {
    let (client, session) = name.strip_prefix(TEMPORARY_SCHEMA_PREFIX)?.split_once('_')?;
    let owner = (client.parse().ok()?, session.parse().ok()?);
    // One name for each: no leading zeros or signs.
    (temporary_schema(owner.0, owner.1) == name).then_some(owner)
}

/// A search path with the schema of the session's temporary objects: where the path says `pg_temp`, else at its beginning.
#[must_use]
pub fn path_with_temporary(path: &str, schema: &str) -> String {
    let mut is_named = false;
    let mut elements: Vec<String> = elements(path)
        .into_iter()
        .map(|element| match element.name.as_str() {
            ALIAS => {
                is_named = true;
                schema.to_owned()
            }
            _ => element.source,
        })
        .collect();
    if !is_named {
        elements.insert(0, schema.to_owned());
    }
    elements.join(", ")
}

/// An element of a search path.
struct Element {
    source: String,
    name: String,
}

/// The elements of a search path, as `SHOW` prints it.
fn elements(path: &str) -> Vec<Element> {
    let mut elements = Vec::new();
    let mut rest = path.trim();
    while !rest.is_empty() {
        let mut is_quoted = false;
        let end = rest.find(|character| {
            is_quoted ^= character == '"';
            character == ',' && !is_quoted
        });
        let (element, after) = match end {
            Some(end) => (rest.get(..end), rest.get(end + 1..)),
            None => (Some(rest), None),
        };
        let source = element.unwrap_or_default().trim().to_owned();
        let name = match source.strip_prefix('"').and_then(|inner| inner.strip_suffix('"')) {
            Some(inner) => inner.replace("\"\"", "\""),
            None => source.to_ascii_lowercase(),
        };
        if !name.is_empty() {
            elements.push(Element { source, name });
        }
        rest = after.unwrap_or_default().trim();
    }
    elements
}

/// What the open transaction has done to names, of which the catalog does not know yet.
#[derive(Clone, Debug, Default)]
pub struct Made {
    names: Arc<BTreeSet<String>>,
    /// More names than are remembered.
    all: bool,
    /// A temporary object was made: the session has its schema.
    temporary: bool,
    /// The search path or the role was changed.
    renaming: Renaming,
    /// Relations that it has changed.
    changed: Changed,
}

/// Relations, by name without schema, of which the catalog that analyses work with does not say what they are any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    names: Arc<BTreeSet<String>>,
    /// All of them.
    all: bool,
}

impl Changed {
    /// All relations.
    pub(crate) fn all() -> Self {
        Self {
            all: true,
            ..Self::default()
        }
    }

    /// The relations of these names; all, where the names are too many to be kept.
    pub(crate) fn of(names: BTreeSet<String>) -> Self {
        match names.len() > MADE_MAX {
            true => Self::all(),
            false => Self {
                names: Arc::new(names),
                all: false,
            },
        }
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty() && !self.all
    }

    fn add(&mut self, other: &Self) {
        if !other.names.is_empty() {
            let names = Arc::make_mut(&mut self.names);
            names.extend(other.names.iter().cloned());
            self.all |= names.len() > MADE_MAX;
        }
        self.all |= other.all;
        if self.all {
            self.names = Arc::default();
        }
    }

    fn contains(&self, name: &str) -> bool {
        self.all || self.names.contains(name)
    }
}

/// What became of the search path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Renaming {
    /// Nothing.
    #[default]
    Nothing,
    /// The path was set to this; `None`: to the default.
    Path(Option<String>),
    /// What was set in the transaction may be undone.
    Undo,
    /// The path is not known.
    Unknown,
}

impl Renaming {
    /// Takes account of what comes next.
    fn follow(&mut self, next: &Renaming) {
        *self = match (&*self, next) {
            (_, Renaming::Nothing) => return,
            (Renaming::Unknown, Renaming::Path(_) | Renaming::Undo) => Renaming::Unknown,
            (Renaming::Nothing, Renaming::Undo) => return,
            (_, Renaming::Path(path)) => Renaming::Path(path.clone()),
            (_, Renaming::Undo | Renaming::Unknown) => Renaming::Unknown,
        };
    }
}

impl Made {
    /// Whether it changes which relations names mean.
    fn is_empty(&self) -> bool {
        self.names.is_empty() && !self.all && !self.temporary
    }

    /// Whether a temporary object was made.
    #[must_use]
    pub fn has_temporary(&self) -> bool {
        self.temporary
    }

    /// Notes what a statement or an exchange has made of names.
    pub fn add(&mut self, work: &TemporaryWork) {
        self.temporary |= work.makes();
        self.renaming.follow(&work.renaming);
        self.changed.add(&work.changed);
        if !work.uncertain.is_empty() {
            let names = Arc::make_mut(&mut self.names);
            names.extend(work.uncertain.iter().cloned());
            self.all |= names.len() > MADE_MAX;
            if self.all {
                names.clear();
            }
        }
    }

    /// Whether a name, as PostgreSQL keeps it, may mean something new.
    fn contains(&self, name: &str) -> bool {
        self.all || self.names.contains(name)
    }
}

/// What becomes of a temporary table at COMMIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AtCommit {
    /// ON COMMIT PRESERVE ROWS, and what is no table.
    Keep,
    /// ON COMMIT DELETE ROWS.
    Empty,
    /// ON COMMIT DROP.
    Drop,
}

/// What a statement or an exchange does with temporary objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemporaryWork {
    /// The temporary objects that it makes, by name.
    pub made: Vec<(String, AtCommit)>,
    /// Whether the statement drops all temporary objects of the session.
    pub discards: bool,
    /// Names that may mean something else after it, until the transaction ends.
    pub(crate) uncertain: Vec<String>,
    /// What the statement does to the search path.
    pub(crate) renaming: Renaming,
    /// Relations that it changes.
    pub(crate) changed: Changed,
}

impl TemporaryWork {
    /// Whether it makes a temporary object.
    #[must_use]
    pub fn makes(&self) -> bool {
        !self.made.is_empty()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.made.extend(other.made.iter().cloned());
        self.discards |= other.discards;
        self.uncertain.extend(other.uncertain.iter().cloned());
        self.changed.add(&other.changed);
        match self.renaming {
            Renaming::Nothing => self.renaming = other.renaming.clone(),
            _ => self.renaming.follow(&other.renaming),
        }
    }
}

/// What names mean to one session at one place of its transaction.
#[derive(Clone, Debug, Default)]
pub struct Names {
    client: u32,
    session: u64,
    /// The session has, or may have, temporary objects.
    active: bool,
    made: Made,
    /// The role that is set, and the search path.
    role: String,
    path: Option<String>,
}

impl Names {
    /// What names mean to a session under this catalog, after what its open transaction has made.
    pub(crate) fn new(schema: &Schema, context: &SessionContext, made: &Made) -> Self {
        let (client, session) = (context.client, context.session);
        let active = made.temporary || schema.has_temporary(client, session);
        let setting = |wanted: &str| {
            let mut settings = context.settings.iter();
            settings
                .find(|(name, _)| name == wanted)
                .map(|(_, value)| value.as_str())
        };
        Self {
            client,
            session,
            active,
            made: made.clone(),
            role: setting("role").unwrap_or(&context.role).to_owned(),
            path: setting("search_path").map(str::to_owned),
        }
    }

    /// Whether the session has temporary objects, as far as is known.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// The schema of the session's temporary objects.
    #[must_use]
    pub fn schema(&self) -> String {
        temporary_schema(self.client, self.session)
    }

    /// Where the session makes permanent objects without a schema; `None` when that is not known.
    pub(crate) fn creation(&self, schema: &Schema) -> Option<String> {
        let path = match &self.made.renaming {
            Renaming::Nothing => self.path.as_deref(),
            Renaming::Path(path) => path.as_deref(),
            Renaming::Undo | Renaming::Unknown => return None,
        };
        creation(schema, path.unwrap_or(DEFAULT_PATH), &self.role)
    }

    /// Whether the transaction has changed relations.
    pub(crate) fn has_changes(&self) -> bool {
        !self.made.changed.is_empty()
    }

    /// Whether the transaction may have changed a relation of this name.
    pub(crate) fn is_changed(&self, name: &str) -> bool {
        self.made.changed.contains(cut(name))
    }

    /// Takes account of a statement before the next one.
    pub(crate) fn after(&mut self, work: &TemporaryWork) {
        self.made.add(work);
        self.active |= self.made.temporary;
    }

    /// Under what an analysis that depends on the session is kept; `None`: it is not.
    pub(crate) fn key(&self, text: &str) -> Option<String> {
        let plain = self.made.is_empty() && !self.has_changes();
        let path = self.path.as_deref().unwrap_or(DEFAULT_PATH);
        let renaming = &self.made.renaming;
        plain.then(|| {
            let (client, session, role) = (self.client, self.session, &self.role);
            format!("{client}\0{session}\0{renaming:?}\0{role}\0{path}\0{text}")
        })
    }

    /// Whether `schema` is that of the session's temporary objects.
    pub(crate) fn is_own(&self, schema: &str) -> bool {
        schema == ALIAS || owner_of_temporary_schema(schema) == Some((self.client, self.session))
    }

    /// The relation that a name means.
    pub(crate) fn relation(&self, schema: &Schema, qualifier: Option<&str>, name: &str) -> TableName {
        let name = cut(name);
        let of = |schema: &str| TableName {
            schema: schema.to_owned(),
            name: name.to_owned(),
        };
        match qualifier {
            Some(qualifier) if self.is_own(qualifier) => match self.made.contains(name) {
                true => of(""),
                false => of(&self.schema()),
            },
            Some(qualifier) => of(qualifier),
            // What a transaction has made is in no catalog: nothing is known of it.
            None if self.made.contains(name) => of(""),
            None if self.active => {
                let own = of(&self.schema());
                match schema.is_relation(&own) {
                    true => own,
                    false => of("public"),
                }
            }
            None => of("public"),
        }
    }

    /// Whether a name without schema means, or may mean, a temporary relation.
    pub(crate) fn is_temporary(&self, schema: &Schema, name: &str) -> bool {
        self.active && self.relation(schema, None, name).schema != "public"
    }
}

/// The longest name of PostgreSQL, in bytes; of a longer one it takes the beginning.
const NAME_BYTES_MAX: usize = 63;

/// A name as PostgreSQL keeps it.
pub(crate) fn cut(name: &str) -> &str {
    let mut end = name.len().min(NAME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.get(..end).unwrap_or(name)
}

/// The schema in which objects without schema are made: the first of the path that exists.
fn creation(schema: &Schema, path: &str, role: &str) -> Option<String> {
    let role = role
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(role);
    let mut names = elements(path).into_iter().map(|element| match element.name.as_str() {
        "$user" => role.to_owned(),
        _ => element.name,
    });
    names.find(|name| schema.is_namespace(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_tells_whose_it_is() {
        let name = temporary_schema(3, 17 << 32 | 5);
        assert_eq!(owner_of_temporary_schema(&name), Some((3, 17 << 32 | 5)));
        let longest = temporary_schema(u32::MAX, u64::MAX);
        assert!(longest.len() < 64, "a name of PostgreSQL has at most 63 bytes");
        for other in [
            "pg_temp_3",
            "pg_cloudbft_temp_3",
            "pg_cloudbft_temp_03_5",
            "pg_cloudbft_temp_3_+5",
            "public",
        ] {
            assert_eq!(owner_of_temporary_schema(other), None, "{other}");
        }
    }

    #[test]
    fn temporary_objects_come_first_unless_the_path_says_where() {
        let with = |path| path_with_temporary(path, "t");
        assert_eq!(with("\"$user\", public"), "t, \"$user\", public");
        assert_eq!(with("a, pg_temp"), "a, t");
        assert_eq!(with("\"pg_temp\",\"a,b\""), "t, \"a,b\"");
        assert_eq!(with(""), "t");
    }
}
