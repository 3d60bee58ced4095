//! Ranges that differ, and what f+1 others hold in them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::quiet::Watch;
use super::{Sources, named};
use crate::Failure;
use crate::databases::members::Member;
use crate::databases::ranges::{Answer, Content, Range, all_hashes, contents, first_content, hashes_of, next_keys};
use crate::databases::tables::{Table, constant};
use crate::databases::vote::agreed;

/// When more than one part of so many differs, all is copied.
const SHARE: i64 = 3;
/// Below so many bytes, whatever differs is replaced.
const BYTES_MIN: i64 = 64 << 20;
/// How often something that takes long says how far it is.
const PROGRESS: Duration = Duration::from_secs(2);

/// A range that is to be replaced.
pub(super) struct Replacement {
    pub(super) range: Range,
    /// The content that the range must have.
    pub(super) content: Content,
    /// The places of the sources that hold that.
    pub(super) holders: Vec<usize>,
}

/// The work in one table.
pub(super) struct Work {
    pub(super) table: Table,
    pub(super) replacements: Vec<Replacement>,
}

/// Numbers of what was compared, and of what differs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) ranges: u64,
    pub(super) differing: u64,
    pub(super) rows: i64,
}

/// All that is to be replaced.
pub(super) struct Plan {
    pub(super) works: Vec<Work>,
    pub(super) counts: Counts,
}

/// A range: what the sources say of it, and what the database to repair holds.
struct Both {
    range: Range,
    answers: Vec<Answer>,
    here: Content,
}

impl Plan {
    /// Compares everything. An error when no f+1 sources hold the same of something, or too much differs.
    pub(super) async fn make(sources: &Sources, own: &Member, watch: &Watch, name: &str) -> Result<Self, Failure> {
        println!("{name}: comparing its rows with {} ...", named(&sources.members));
        let mut plan = Self {
            works: Vec::new(),
            counts: Counts::default(),
        };
        let total = bytes_of(sources, "pg_database_size(current_database())").await?;
        let (mut bytes, mut told, mut rows) = (0_i64, Instant::now(), 0);
        for table in &sources.tables {
            let (mut replacements, mut after) = (Vec::new(), None);
            let (mut all, mut differing) = (0_i64, 0_i64);
            loop {
                watch.look().await?;
                let (both, next) = step(sources, own, table, after).await?;
                for Both { range, answers, here } in both {
                    plan.counts.ranges += 1;
                    let (content, holders) = truth(answers, sources.needed)
                        .ok_or_else(|| format!("no f+1 others hold the same of {}", table.shown()))?;
                    all += content.rows;
                    if here != content {
                        differing += content.rows.max(here.rows);
                        replacements.push(Replacement {
                            range,
                            content,
                            holders,
                        });
                    }
                }
                after = next;
                if told.elapsed() > PROGRESS {
                    told = Instant::now();
                    println!("{name}: {} rows compared", rows + all);
                }
                if after.is_none() {
                    break;
                }
            }
            rows += all;
            if replacements.is_empty() {
                continue;
            }
            let size = format!("pg_table_size({}::regclass)", constant(&table.quoted()));
            let row_bytes = bytes_of(sources, &size).await? / all.max(1);
            bytes = bytes.saturating_add(row_bytes.saturating_mul(differing));
            if bytes > BYTES_MIN && bytes > total / SHARE {
                return Err(format!("too much differs: more than {} MiB of {}", bytes >> 20, total >> 20).into());
            }
            println!("{name}: {} differs in {} ranges", table.shown(), replacements.len());
            plan.counts.differing += replacements.len() as u64;
            plan.counts.rows += replacements.iter().map(|one| one.content.rows).sum::<i64>();
            plan.works.push(Work {
                table: table.clone(),
                replacements,
            });
        }
        Ok(plan)
    }
}

/// The next ranges of a table, and from where to go on.
async fn step(
    sources: &Sources,
    own: &Member,
    table: &Table,
    after: Option<Vec<String>>,
) -> Result<(Vec<Both>, Option<Vec<String>>), Failure> {
    if table.key.is_empty() {
        let compared = all_hashes(&sources.members, table, sources.needed).await?;
        let mut known: Option<BTreeMap<i32, Content>> = None;
        let mut both = Vec::new();
        for compared in compared {
            let here = match compared.range {
                Range::Hashes { bits, begin } => {
                    let known = match &mut known {
                        Some(known) => known,
                        None => known.insert(hashes_of(own, table, bits).await?),
                    };
                    known.remove(&begin).unwrap_or_else(Content::nothing)
                }
                Range::Keys { .. } => Content::nothing(),
            };
            both.push(Both {
                range: compared.range,
                answers: compared.answers,
                here,
            });
        }
        return Ok((both, None));
    }
    let (compared, here) = tokio::join!(
        next_keys(&sources.members, table, after.clone(), sources.needed),
        first_content(own, table, &after)
    );
    let (compared, (here, last)) = (compared?, here?);
    let next = match &compared.range {
        Range::Keys { up_to, .. } => up_to.clone(),
        Range::Hashes { .. } => None,
    };
    let here = match last == next {
        true => here,
        false => content_of(own, table, &compared.range).await?,
    };
    let both = Both {
        range: compared.range,
        answers: compared.answers,
        here,
    };
    Ok((vec![both], next))
}

/// The content of a range in one database.
pub(super) async fn content_of(member: &Member, table: &Table, range: &Range) -> Result<Content, Failure> {
    let answers = contents(std::slice::from_ref(member), table, range).await?;
    Ok(answers.into_iter().next().ok_or("no answer")??)
}

/// The content that f+1 sources hold, and the places of those.
fn truth(answers: Vec<Answer>, needed: usize) -> Option<(Content, Vec<usize>)> {
    let answers: Vec<_> = answers.into_iter().map(Result::ok).collect();
    let content = answers.get(agreed(&answers, needed)?)?.clone()?;
    let holders = answers.iter().enumerate();
    let holders = holders.filter(|(_, answer)| answer.as_ref() == Some(&content));
    let holders = holders.map(|(place, _)| place).collect();
    Some((content, holders))
}

/// A number that the first source says.
async fn bytes_of(sources: &Sources, what: &str) -> Result<i64, Failure> {
    let first = sources.members.first().ok_or("no sources")?;
    Ok(first.client.query_one(&format!("select {what}"), &[]).await?.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(digest: &str) -> Answer {
        Ok(Content {
            rows: 1,
            digest: digest.to_owned(),
        })
    }

    #[test]
    fn nobody_holds_the_truth_but_those_that_f_others_agree_with() {
        let said = || vec![holding("lie"), holding("a"), holding("a")];
        assert_eq!(truth(said(), 2).map(|(_, holders)| holders), Some(vec![1, 2]));
        assert_eq!(truth(said(), 3), None);
        assert_eq!(truth(vec![holding("a"), holding("b")], 2), None);
    }
}
