//! What a database node holds, in digests that do not depend on the order of rows or on OIDs.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Error, Row};

/// Everything that belongs to the application: not the catalog, and not CloudBFT's own schema.
pub(crate) const IS_USERS: &str = "n.nspname not in ('pg_catalog', 'information_schema', 'cloudbft') \
    and n.nspname not like 'pg\\_toast%' and n.nspname not like 'pg\\_temp%'";

/// The text forms of the schema: columns, constraints, indexes, views, functions, triggers, types and rights.
const SCHEMA_LINES: &str = "
select format('column %I.%I %s %I %s notnull=%s default=%s', n.nspname, c.relname, a.attnum, a.attname,
       format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid)) as line
  from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
  left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
 where a.attnum > 0 and not a.attisdropped and c.relkind in ('r','p','v','m','f') and USERS
union all
select format('constraint %I on %s %s', k.conname, k.conrelid::regclass, pg_get_constraintdef(k.oid))
  from pg_constraint k join pg_namespace n on n.oid = k.connamespace where USERS
union all
select format('index %s valid=%s', pg_get_indexdef(i.indexrelid), i.indisvalid)
  from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace where USERS
union all
select format('view %I.%I %s', n.nspname, c.relname, pg_get_viewdef(c.oid))
  from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind in ('v','m') and USERS
union all
select format('rule %s', pg_get_ruledef(r.oid))
  from pg_rewrite r join pg_class c on c.oid = r.ev_class join pg_namespace n on n.oid = c.relnamespace
 where r.rulename <> '_RETURN' and USERS
union all
select format('policy %I on %s %s %s %s using=%s check=%s', p.polname, p.polrelid::regclass, p.polcmd, p.polpermissive,
       array(select r.rolname from pg_roles r where r.oid = any (p.polroles) order by 1)::text,
       pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
  from pg_policy p join pg_class c on c.oid = p.polrelid join pg_namespace n on n.oid = c.relnamespace where USERS
union all
select format('temporary %I.%I %s', n.nspname, c.relname, t.at_commit)
  from cloudbft.temporary t join pg_class c on c.oid = t.relation join pg_namespace n on n.oid = c.relnamespace where USERS
union all
select 'function ' || pg_get_functiondef(p.oid)
  from pg_proc p join pg_namespace n on n.oid = p.pronamespace where p.prokind in ('f','p') and USERS
union all
select format('trigger %s enabled=%s', pg_get_triggerdef(t.oid), t.tgenabled)
  from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
 where not t.tgisinternal and USERS
union all
select format('relation %I.%I kind=%s owner=%s rights=%s security=%s', n.nspname, c.relname, c.relkind,
       pg_get_userbyid(c.relowner), c.relacl, c.relrowsecurity)
  from pg_class c join pg_namespace n on n.oid = c.relnamespace where USERS
union all
select format('schema %I owner=%s', n.nspname, pg_get_userbyid(n.nspowner)) from pg_namespace n where USERS
union all
select format('enum %I.%I %s %s', n.nspname, t.typname, e.enumsortorder, e.enumlabel)
  from pg_enum e join pg_type t on t.oid = e.enumtypid join pg_namespace n on n.oid = t.typnamespace where USERS";

/// Asks for the objects whose number (OID) applications may see, with the number.
const NUMBERS: &str = "
select format('relation %I.%I', n.nspname, c.relname), c.oid
  from pg_class c join pg_namespace n on n.oid = c.relnamespace where USERS
union all
select format('type %I.%I', n.nspname, t.typname), t.oid
  from pg_type t join pg_namespace n on n.oid = t.typnamespace where USERS
union all
select format('label %L of %I.%I', e.enumlabel, n.nspname, t.typname), e.oid
  from pg_enum e join pg_type t on t.oid = e.enumtypid join pg_namespace n on n.oid = t.typnamespace where USERS
union all
select format('function %s', p.oid::regprocedure), p.oid
  from pg_proc p join pg_namespace n on n.oid = p.pronamespace where USERS
union all
select format('constraint %I on %s', k.conname, k.conrelid::regclass), k.oid
  from pg_constraint k join pg_namespace n on n.oid = k.connamespace where USERS and k.conrelid <> 0";

/// The name under which the schema as a whole is compared.
pub(crate) const SCHEMA_PART: &str = "(schema)";

/// The name under which the committed positions of all sequences are compared.
const SEQUENCES_PART: &str = "(sequences)";

/// Where the last commit left the sequences that there are.
const COMMITTED_SEQUENCES: &str = "
select format('%I last_value=%s is_called=%s', s.name, s.last_value, s.is_called) as line
  from cloudbft.sequence s join pg_class c on c.relkind = 'S' join pg_namespace n on n.oid = c.relnamespace
 where s.name = n.nspname || '.' || c.relname and USERS";

/// The name under which large objects are compared.
const LARGE_OBJECTS_PART: &str = "(large objects)";

/// Large objects, with their numbers: applications store these.
const LARGE_OBJECTS: &str = "
select format('object %s owner=%s rights=%s comment=%s', m.oid, pg_get_userbyid(m.lomowner), m.lomacl,
       obj_description(m.oid, 'pg_largeobject')) as line from pg_largeobject_metadata m
union all
select format('page %s of object %s %s', l.pageno, l.loid, encode(sha256(l.data), 'hex')) from pg_largeobject l";

/// One thing that is compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Part {
    /// How many rows there are, of tables.
    pub(crate) rows: Option<i64>,
    /// Over all rows.
    pub(crate) digest: String,
    /// The query that yields the rows as text, for showing a difference.
    rows_query: String,
}

/// All that is compared of one node, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) parts: BTreeMap<String, Part>,
}

/// The numbers of objects, by what they are of. They are no part of the contents.
pub(crate) type Numbers = BTreeMap<String, u32>;

/// Where positions of sequences are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sequences {
    /// In the sequences: where they stand now, whatever the snapshot is.
    Themselves,
    /// Where the last commit of the snapshot left them.
    Committed,
}

/// Reads everything in the open snapshot, and ends it.
pub(crate) async fn read(client: &Client, sequences: Sequences) -> Result<(Contents, Numbers), Error> {
    let mut contents = Contents::default();
    let relations = client
        .query(
            &format!(
                "select format('%I.%I', n.nspname, c.relname), c.relkind::text from pg_class c \
                 join pg_namespace n on n.oid = c.relnamespace \
                 where c.relkind in ('r', 'm', 'S') and {IS_USERS} order by 1"
            ),
            &[],
        )
        .await?;
    for relation in relations {
        let (name, kind): (String, String) = (relation.get(0), relation.get(1));
        let rows_query = match (kind.as_str(), sequences) {
            ("S", Sequences::Themselves) => position_of(&name),
            ("S", Sequences::Committed) => continue,
            // As text by the output functions of types: a cast to text may be an application's function.
            _ => format!("select textin(record_out(t.*)) as line from only {name} t"),
        };
        contents.parts.insert(name, part(client, rows_query).await?);
    }
    if sequences == Sequences::Committed {
        contents.parts.insert(
            SEQUENCES_PART.to_owned(),
            part(client, COMMITTED_SEQUENCES.replace("USERS", IS_USERS)).await?,
        );
    }
    let objects = part(client, LARGE_OBJECTS.to_owned()).await?;
    contents.parts.insert(LARGE_OBJECTS_PART.to_owned(), objects);
    contents.parts.extend(schema(client).await?.parts);
    let numbers = numbers(client).await?;
    client.batch_execute("commit").await?;
    Ok((contents, numbers))
}

/// The schema alone. Parts of it are read as they are now, whatever the snapshot is.
pub(crate) async fn schema(client: &Client) -> Result<Contents, Error> {
    let schema = part(client, SCHEMA_LINES.replace("USERS", IS_USERS)).await?;
    let parts = BTreeMap::from([(SCHEMA_PART.to_owned(), schema)]);
    Ok(Contents { parts })
}

/// Where the last commit of the open snapshot left the sequences.
pub(crate) async fn committed_sequences(client: &Client) -> Result<String, Error> {
    let part = part(client, COMMITTED_SEQUENCES.replace("USERS", IS_USERS)).await?;
    Ok(part.digest)
}

/// A digest of the large objects in the open snapshot.
pub(crate) async fn large_objects(client: &Client) -> Result<String, Error> {
    Ok(part(client, LARGE_OBJECTS.to_owned()).await?.digest)
}

/// The numbers of objects.
pub(crate) async fn numbers(client: &Client) -> Result<Numbers, Error> {
    let numbered = client.query(&NUMBERS.replace("USERS", IS_USERS), &[]).await?;
    Ok(numbered.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn position_of(sequence: &str) -> String {
    format!("select format('last_value=%s is_called=%s', last_value, is_called) as line from {sequence}")
}

/// The sum of the rows' hashes does not depend on their order, and counts equal rows as often as they are.
async fn part(client: &Client, rows_query: String) -> Result<Part, Error> {
    // Two halves of the hash, each summed modulo 2^60, so that nothing overflows.
    let sum = |half: &str| {
        format!("to_hex((coalesce(sum(('x' || {half}(h, 15))::bit(60)::bigint), 0) % 1152921504606846976)::bigint)")
    };
    let query = format!(
        "select count(*), {} || {} from (select md5(coalesce(line, '')) as h from ({rows_query}) l) hashes",
        sum("left"),
        sum("right")
    );
    let row = client.query_one(&query, &[]).await?;
    Ok(Part {
        rows: Some(row.get(0)),
        digest: row.get(1),
        rows_query,
    })
}

/// The first row, in byte order, that one node has and the other has not.
pub(crate) async fn first_difference(
    name: &str,
    one: (&Client, &Contents),
    other: (&Client, &Contents),
) -> Result<Option<(Option<String>, Option<String>)>, Error> {
    let (mut one, mut other) = (Rows::open(name, one).await?, Rows::open(name, other).await?);
    let (mut left, mut right) = (one.next().await?, other.next().await?);
    loop {
        match (&left, &right) {
            (None, None) => return Ok(None),
            (Some(a), Some(b)) if a == b => {
                left = one.next().await?;
                right = other.next().await?;
            }
            (Some(a), Some(b)) if a > b => return Ok(Some((None, right))),
            (None, Some(_)) => return Ok(Some((None, right))),
            (Some(_), _) => return Ok(Some((left, None))),
        }
    }
}

/// The rows of a part in byte order, fetched in pieces.
struct Rows<'a> {
    client: &'a Client,
    fetched: std::vec::IntoIter<Row>,
}

impl<'a> Rows<'a> {
    async fn open(name: &str, (client, contents): (&'a Client, &Contents)) -> Result<Self, Error> {
        let nothing = String::from("select null::text as line where false");
        let query = contents.parts.get(name).map_or(nothing, |part| part.rows_query.clone());
        let query = format!("select coalesce(line, '') from ({query}) l order by line collate \"C\"");
        client
            .batch_execute(&format!("begin read only; declare differences cursor for {query}"))
            .await?;
        Ok(Self {
            client,
            fetched: Vec::new().into_iter(),
        })
    }

    async fn next(&mut self) -> Result<Option<String>, Error> {
        if self.fetched.len() == 0 {
            self.fetched = self.client.query("fetch 1000 from differences", &[]).await?.into_iter();
        }
        Ok(self.fetched.next().map(|row| row.get(0)))
    }
}
