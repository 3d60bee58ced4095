//! Ranges that differ are replaced, in one transaction.

use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use tokio_postgres::Client;

use super::Sources;
use super::plan::{Plan, Replacement, Work, content_of};
use super::quiet::Watch;
use crate::Failure;
use crate::databases::members::{Member, Positions};
use crate::databases::tables::{Table, identifier};

/// Asks what would run when rows of a table are written: code of users must not run as superuser. Triggers and rules that fire for
/// replicas too, and functions and operators of users in constraints, computed columns and indexes of the table, in partitions and in types.
const CODE: &str = "
with written as (select $1::text::regclass::oid as oid)
select 'a trigger' from pg_trigger g, written w where g.tgrelid = w.oid and g.tgenabled in ('A', 'R')
union all
select 'a rule' from pg_rewrite r, written w where r.ev_class = w.oid and r.ev_enabled in ('A', 'R')
union all
select 'code of users' from pg_depend d, written w
 where d.refclassid in ('pg_proc'::regclass, 'pg_operator'::regclass) and d.refobjid >= 16384 and (
    d.classid = 'pg_constraint'::regclass
      and exists (select from pg_constraint k where k.oid = d.objid and (k.conrelid = w.oid or k.contypid <> 0))
    or d.classid = 'pg_attrdef'::regclass
      and exists (select from pg_attrdef f join pg_attribute a on a.attrelid = f.adrelid and a.attnum = f.adnum
        where f.oid = d.objid and f.adrelid = w.oid and a.attgenerated <> '')
    or d.classid = 'pg_class'::regclass
      and (exists (select from pg_index i where i.indexrelid = d.objid and i.indrelid = w.oid)
        or exists (select from pg_class p where p.oid = d.objid and p.relkind = 'p'))
    or d.classid = 'pg_type'::regclass
      and exists (select from pg_type t where t.oid = d.objid and t.typtype <> 'b'))
limit 1";

/// The columns that are written.
const COLUMNS: &str = "select attname::text from pg_attribute where attrelid = $1::text::regclass and attnum > 0 \
    and not attisdropped and attgenerated = '' order by attnum";

/// Fails when an index is broken: rows cannot be found by it, nor be written.
pub(super) async fn check_indexes(own: &Member) -> Result<(), Failure> {
    let checked = crate::scrub::check_indexes(Arc::clone(&own.client), 0).await;
    match checked.broken.into_iter().next() {
        Some(broken) => Err(broken.into()),
        None => Ok(()),
    }
}

/// Opens the transaction, which takes the note away that keeps the voter out. No trigger and no foreign key runs in it, and whoever compares
/// effects is told to begin anew behind it.
pub(super) async fn begin(own: &Member) -> Result<(), Failure> {
    // The plugin begins a transaction at its first change, which a message is not.
    let begin = "begin; set local session_replication_role to replica; set local synchronous_commit to on; \
                 delete from cloudbft.diverged; select pg_logical_emit_message(true, 'cloudbft', 'repair')";
    Ok(own.client.batch_execute(begin).await?)
}

/// Replaces the ranges that differ. Each must then hold what f+1 others do.
pub(super) async fn carry_out(plan: &Plan, sources: &Sources, own: &Member, watch: &Watch) -> Result<(), Failure> {
    for work in &plan.works {
        replace(work, sources, own, watch).await?;
    }
    Ok(())
}

/// Ends the transaction, after which the voter goes on: its positions are those of the sources.
pub(super) async fn commit(own: &Member, positions: &Positions) -> Result<(), Failure> {
    if positions.above_same(&own.client).await? != *positions {
        return Err("its positions are not those of the others".into());
    }
    Ok(own.client.batch_execute("commit").await?)
}

async fn replace(work: &Work, sources: &Sources, own: &Member, watch: &Watch) -> Result<(), Failure> {
    let table = &work.table;
    if table.is_view {
        return Err(format!("{} is a materialized view", table.shown()).into());
    }
    let quoted = table.quoted();
    if let Some(row) = own.client.query_opt(CODE, &[&quoted]).await? {
        let what: String = row.get(0);
        return Err(format!("{what} would run when rows of {} are written", table.shown()).into());
    }
    let columns = own.client.query(COLUMNS, &[&quoted]).await?;
    let columns: Vec<_> = columns.iter().map(|row| identifier(row.get(0))).collect();
    let columns = columns.join(", ");
    // All of them first: a row may have a unique value that a row of another range had.
    for replacement in &work.replacements {
        let condition = table.range_condition(&replacement.range);
        let delete = format!("delete from only {quoted} t where {condition}");
        own.client.batch_execute(&delete).await?;
    }
    for replacement in &work.replacements {
        watch.look().await?;
        fill(table, &columns, replacement, sources, own).await?;
    }
    Ok(())
}

/// Copies a range from one of those that hold the truth. One that says what f others say, and gives something else, is found by what
/// arrived; then another one is taken.
async fn fill(
    table: &Table,
    columns: &str,
    replacement: &Replacement,
    sources: &Sources,
    own: &Member,
) -> Result<(), Failure> {
    for holder in &replacement.holders {
        let Some(source) = sources.members.get(*holder) else {
            continue;
        };
        own.client.batch_execute("savepoint filled").await?;
        let copied = copy(&source.client, &own.client, table, columns, replacement).await;
        if copied.is_ok() && content_of(own, table, &replacement.range).await? == replacement.content {
            return Ok(own.client.batch_execute("release savepoint filled").await?);
        }
        println!("{} does not give what it says of {}", source.name, table.shown());
        own.client.batch_execute("rollback to savepoint filled").await?;
    }
    Err(format!("nobody gives what f+1 others say of {}", table.shown()).into())
}

/// Copies rows as text, which only the types' own functions write and read.
async fn copy(
    source: &Client,
    target: &Client,
    table: &Table,
    columns: &str,
    replacement: &Replacement,
) -> Result<(), Failure> {
    let (quoted, condition) = (table.quoted(), table.condition(&replacement.range));
    // More than there should be would not be right.
    let limit = replacement.content.rows;
    let query = format!("copy (select {columns} from only {quoted} t where {condition} limit {limit}) to stdout");
    let mut rows = Box::pin(source.copy_out(&query).await?);
    let statement = format!("copy {quoted} ({columns}) from stdin");
    let mut writer = Box::pin(target.copy_in(&statement).await?);
    while let Some(piece) = rows.next().await {
        writer.send(piece?).await?;
    }
    writer.as_mut().finish().await?;
    Ok(())
}
