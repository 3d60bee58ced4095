//! The catalog of the voter's database as the voter knows it: read whole at the start, and then what each operation has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sql::rules::PartitionRules;
use sql::schema::{
    CatalogChange, CatalogRow, NUMBERED_CATALOG_QUERY, NUMBERED_GLOBALS_QUERY, NUMBERED_RELATIONS_QUERY, Schema,
    SchemaError,
};

use super::PostgresError;
use super::bootstrap::Bookkeeper;
use super::written::{Parts, Reading, Rows, Written};

/// A state of the catalog, and what it has that the one before had not.
#[derive(Debug)]
pub struct NewCatalog {
    /// The state.
    pub schema: Arc<Schema>,
    /// From the one before.
    pub change: CatalogChange,
}

/// What is known of a relation by its number in this database.
#[derive(Debug)]
struct Relation {
    schema: String,
    name: String,
    /// Whether it is a table or a view, which have a row type, and its type an array.
    is_table: bool,
    /// The numbers of its columns, in their order.
    columns: Vec<i16>,
}

/// What is known of the catalog.
#[derive(Debug)]
pub(super) struct Known {
    schema: Arc<Schema>,
    relations: BTreeMap<u32, Relation>,
    globals: Globals,
    /// The numbers of the constraints of domains, as [`DOMAINS_QUERY`] answers them.
    domains: Option<String>,
}

/// What is known of everything that is no relation.
#[derive(Debug, Default)]
struct Globals {
    /// The hashes of the rows of functions, types and schemas, by number.
    numbered: BTreeMap<u32, Hash>,
    /// The hashes of all other rows.
    others: BTreeSet<Hash>,
}

type Hash = [u8; 32];

/// A row of a catalog query.
struct Row {
    json: String,
    number: Option<u32>,
    columns: Vec<i16>,
}

/// What a partial reading has found: a change, or that it does not suffice.
enum Found {
    Change(CatalogChange),
    /// Other objects tell of what has changed.
    More,
}

/// What reading parts of the catalog has come to.
enum Partly {
    /// All that has changed.
    Enough(Option<NewCatalog>),
    /// Everything has to be read.
    TooLittle,
}

/// The numbers of the constraints of domains of users: one row, one column.
const DOMAINS_QUERY: &str = "SELECT pg_catalog.array_agg(oid ORDER BY oid) FROM pg_catalog.pg_constraint \
    WHERE contypid > 0 AND oid >= 16384";

/// The plan of the reading of few relations is made when there are few, and stays when there are many.
const BY_INDEX: &str = "BEGIN READ ONLY; SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL enable_seqscan = off; \
    SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off";

impl Bookkeeper {
    /// Reads the whole catalog.
    ///
    /// # Errors
    /// When the connection is lost, or the catalog is not understood.
    pub(super) async fn read_catalog(&mut self, rules: &PartitionRules) -> Result<Arc<Schema>, PostgresError> {
        let prepared = format!("DEALLOCATE ALL; PREPARE relations_of (oid[]) AS {NUMBERED_RELATIONS_QUERY}");
        self.query(&prepared).await?;
        let (rows, domains) = self.whole().await?;
        let schema = Schema::parse(rows.iter().map(|row| row.json.as_str()), rules).map_err(unfit)?;
        let schema = Arc::new(schema);
        self.known = Some(Known::new(Arc::clone(&schema), &rows, domains)?);
        Ok(schema)
    }

    /// Reads what a transaction that has committed has changed; `None` if that is nothing.
    ///
    /// # Errors
    /// When the connection is lost, or the catalog is not understood.
    pub async fn catalog_after(
        &mut self,
        written: Written,
        rules: &PartitionRules,
    ) -> Result<Option<NewCatalog>, PostgresError> {
        let coded = self.known()?.schema.has_coded_types();
        match written.reading() {
            Reading::Nothing => Ok(None),
            // Which type runs code depends on any other.
            Reading::Some(parts) if !coded => match self.catalog_of(&parts).await? {
                Partly::Enough(new) => Ok(new),
                Partly::TooLittle => self.catalog_anew(rules).await,
            },
            Reading::Some(_) | Reading::All => self.catalog_anew(rules).await,
        }
    }

    fn known(&mut self) -> Result<&mut Known, PostgresError> {
        let known = self.known.as_mut();
        known.ok_or_else(|| PostgresError::protocol("the catalog has not been read"))
    }

    /// Reads parts of the catalog.
    async fn catalog_of(&mut self, parts: &Parts) -> Result<Partly, PostgresError> {
        metrics::counter!("cloudbft_voter_catalog_reads_total", "kind" => "changed").increment(1);
        let list: Vec<_> = parts.relations.iter().map(u32::to_string).collect();
        let list = list.join(",");
        let also = if parts.globals_if_domains { DOMAINS_QUERY } else { "" };
        let text = format!("{BY_INDEX}; EXECUTE relations_of ('{{{list}}}'); {also}; COMMIT");
        let mut answer = self.query(&text).await?;
        let domains = answer.pop_if(|row| row.len() == 1);
        let domains = domains.map(|row| row.into_iter().next().flatten());
        let answer = rows(answer)?;
        let known = self.known()?;
        let (found, types) = known.take_relations(&parts.relations, &answer)?;
        let Found::Change(mut change) = found else {
            return Ok(Partly::TooLittle);
        };
        let other_domains = domains.is_some_and(|now| std::mem::replace(&mut known.domains, now.clone()) != now);
        if parts.globals || other_domains || parts.types != types {
            let answer = rows(self.query(NUMBERED_GLOBALS_QUERY).await?)?;
            match self.known()?.take_globals(&answer) {
                Found::Change(globals) => change.then(&globals),
                Found::More => return Ok(Partly::TooLittle),
            }
        }
        self.known()?.take_change(change)
    }

    /// Reads everything, and finds out by itself what has changed.
    async fn catalog_anew(&mut self, rules: &PartitionRules) -> Result<Option<NewCatalog>, PostgresError> {
        metrics::counter!("cloudbft_voter_catalog_reads_total", "kind" => "whole").increment(1);
        let before = Arc::clone(&self.known()?.schema);
        let (rows_of_all, domains) = self.whole().await?;
        let texts = || rows_of_all.iter().map(|row| row.json.as_str());
        let change = before.change_to(texts()).map_err(unfit)?;
        let schema = match change.is_empty() {
            true => before,
            false => Arc::new(Schema::parse(texts(), rules).map_err(unfit)?),
        };
        self.known = Some(Known::new(Arc::clone(&schema), &rows_of_all, domains)?);
        Ok((!change.is_empty()).then_some(NewCatalog { schema, change }))
    }

    async fn whole(&mut self) -> Result<(Vec<Row>, Option<String>), PostgresError> {
        let rows = rows(self.query(NUMBERED_CATALOG_QUERY).await?)?;
        let domains = self.query(DOMAINS_QUERY).await?;
        Ok((rows, domains.into_iter().flatten().next().flatten()))
    }
}

impl Known {
    fn new(schema: Arc<Schema>, rows: &[Row], domains: Option<String>) -> Result<Self, PostgresError> {
        let (mut relations, mut globals) = (BTreeMap::new(), Globals::default());
        for row in rows {
            match (relation(row)?, row.number) {
                (Some(relation), Some(number)) => drop(relations.insert(number, relation)),
                (Some(_), None) => return Err(PostgresError::protocol("a relation without a number")),
                (None, _) => globals.note(row),
            }
        }
        Ok(Self {
            schema,
            relations,
            globals,
            domains,
        })
    }

    /// Takes in what has been read of relations that were locked. Also answers which rows of `pg_type` that accounts for.
    fn take_relations(&mut self, locked: &[u32], rows: &[Row]) -> Result<(Found, Rows), PostgresError> {
        let mut change = CatalogChange::default();
        let mut types = Rows::default();
        let mut present = BTreeMap::new();
        for row in rows {
            let number = row
                .number
                .ok_or_else(|| PostgresError::protocol("a relation without a number"))?;
            present.insert(number, row);
        }
        for number in locked.iter().filter(|number| !present.contains_key(number)) {
            if let Some(gone) = self.relations.remove(number) {
                change.remove_relation(&gone.schema, &gone.name);
                types.deleted += if gone.is_table { TYPES_OF_A_TABLE } else { 0 };
            }
        }
        // A name that has become free may belong to another relation now: what is there comes last.
        let mut is_seen_by_others = false;
        for (number, row) in present {
            let Some(now) = relation(row)? else {
                return Err(PostgresError::protocol("a relation that is none"));
            };
            change.set_relation(&row.json).map_err(unfit)?;
            match self.relations.get(&number) {
                None => types.inserted += if now.is_table { TYPES_OF_A_TABLE } else { 0 },
                Some(before) => is_seen_by_others |= self.is_renamed(before, &now, row)?,
            }
            self.relations.insert(number, now);
        }
        let found = match is_seen_by_others {
            true => Found::More,
            false => Found::Change(change),
        };
        Ok((found, types))
    }

    /// Whether a relation or one of its columns has another name: foreign keys, defaults and checks of others may tell of it.
    fn is_renamed(&self, before: &Relation, now: &Relation, row: &Row) -> Result<bool, PostgresError> {
        if (&before.schema, &before.name) != (&now.schema, &now.name) {
            return Ok(true);
        }
        let CatalogRow::Table { columns, .. } = CatalogRow::read(&row.json).map_err(unfit)? else {
            return Ok(false);
        };
        let Some(names_before) = self.schema.columns_of(&before.schema, &before.name) else {
            return Ok(true);
        };
        let names_before: BTreeMap<i16, &str> = before.columns.iter().copied().zip(names_before).collect();
        let mut names = now.columns.iter().zip(&columns);
        Ok(names.any(|(number, name)| names_before.get(number).is_some_and(|before| *before != name.as_str())))
    }

    /// Takes in what of a change is one.
    fn take_change(&mut self, mut change: CatalogChange) -> Result<Partly, PostgresError> {
        self.schema.leave_out_known(&mut change);
        if change.is_empty() {
            return Ok(Partly::Enough(None));
        }
        let schema = match self.schema.patched(&change) {
            Ok(schema) if !schema.has_coded_types() => Arc::new(schema),
            Ok(_) => return Ok(Partly::TooLittle),
            Err(error) => {
                tracing::warn!(%error, "what was read of the catalog does not fit what was known");
                return Ok(Partly::TooLittle);
            }
        };
        self.schema = Arc::clone(&schema);
        Ok(Partly::Enough(Some(NewCatalog { schema, change })))
    }

    fn take_globals(&mut self, rows: &[Row]) -> Found {
        let mut globals = Globals::default();
        rows.iter().for_each(|row| globals.note(row));
        let is_another = |(number, hash): (&u32, &Hash)| globals.numbered.get(number).is_some_and(|now| now != hash);
        // Relations tell of what has got another name, and depend on what it may do.
        if self.globals.numbered.iter().any(is_another) || !self.globals.others.is_subset(&globals.others) {
            return Found::More;
        }
        self.globals = globals;
        let texts = rows.iter().map(|row| row.json.as_str());
        Found::Change(self.schema.change_of_globals(texts))
    }
}

impl Globals {
    fn note(&mut self, row: &Row) {
        let hash = *blake3::hash(row.json.as_bytes()).as_bytes();
        match row.number {
            Some(number) => drop(self.numbered.insert(number, hash)),
            None => drop(self.others.insert(hash)),
        }
    }
}

/// A table comes with its row type, and the type of arrays of that.
const TYPES_OF_A_TABLE: u64 = 2;

fn relation(row: &Row) -> Result<Option<Relation>, PostgresError> {
    Ok(match CatalogRow::read(&row.json).map_err(unfit)? {
        CatalogRow::Table { schema, name, .. } => Some(Relation {
            schema,
            name,
            is_table: true,
            columns: row.columns.clone(),
        }),
        CatalogRow::Sequence { schema, name } => Some(Relation {
            schema,
            name,
            is_table: false,
            columns: Vec::new(),
        }),
        CatalogRow::Global => None,
    })
}

fn rows(answer: Vec<Vec<Option<String>>>) -> Result<Vec<Row>, PostgresError> {
    let malformed = || PostgresError::protocol("a row of the catalog cannot be read");
    let read = |row: Vec<Option<String>>| {
        let Ok::<[_; 3], _>([Some(json), number, columns]) = row.try_into() else {
            return Err(malformed());
        };
        let number = number
            .map(|number| number.parse().map_err(|_| malformed()))
            .transpose()?;
        let columns = columns.as_deref().unwrap_or_default();
        let columns = columns
            .trim_matches(['{', '}'])
            .split(',')
            .filter(|number| !number.is_empty());
        let columns = columns
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|_| malformed())?;
        Ok(Row { json, number, columns })
    };
    answer.into_iter().map(read).collect()
}

fn unfit(error: SchemaError) -> PostgresError {
    PostgresError::Unfit(error.to_string())
}
