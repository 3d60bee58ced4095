//! The definitions of all objects. They are read as they are now, so servers are asked while none of them changes its definitions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::{Client, Error};

use super::pass::{Pass, Stop};
use crate::databases::contents::{self, Contents, SCHEMA_PART};
use crate::databases::members::on_all;
use crate::databases::tables::{Table, printable, tables};
use crate::databases::vote::{Verdict, agreed, vote};

/// How often is looked, and the pause between.
const LOOKS: usize = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// After so many looks, whoever is at another order than f+1 is left out: a liar must not hold all others up.
const LEAVE_OUT_AFTER: usize = 30;

/// The order of the last change of definitions: a change is granted everything, and says so in its transaction.
const DEFINED: &str =
    "select coalesce(max(format('%s %s', granted, \"order\")), '') from cloudbft.applied where home = 'everything'";

/// The definitions of one server, and the last order that may have changed them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Defined {
    pub(crate) order: String,
    pub(crate) contents: Contents,
    pub(crate) tables: Vec<Table>,
}

/// Reads the definitions; `None` when they change meanwhile.
pub(crate) async fn defined(client: Arc<Client>) -> Result<Option<Defined>, Error> {
    let before: String = client.query_one(DEFINED, &[]).await?.get(0);
    let contents = contents::schema(&client).await?;
    let tables = tables(&client).await?;
    let order: String = client.query_one(DEFINED, &[]).await?.get(0);
    let is_steady = before == order;
    Ok(is_steady.then_some(Defined {
        order,
        contents,
        tables,
    }))
}

/// Whether the definitions were last changed at this order, in the transaction that is open.
pub(crate) async fn is_at(client: &Client, order: &str) -> Result<bool, Error> {
    let here: String = client.query_one(DEFINED, &[]).await?.get(0);
    Ok(here == order)
}

impl Pass {
    /// Compares the definitions; the tables that f+1 databases have. Whoever has others takes no further part.
    pub(super) async fn schema(&mut self) -> Result<Vec<Table>, Stop> {
        let mut is_second = false;
        for look in 0..LOOKS {
            let looked = on_all(&self.members, defined).await?;
            let (looked, passing) = self.answered(looked)?;
            let looked: Vec<_> = looked.into_iter().map(Option::flatten).collect();
            let orders: Vec<_> = looked.iter().map(|look| Some(&look.as_ref()?.order)).collect();
            let is_steady =
                !passing && orders.iter().all(Option::is_some) && vote(&orders, self.needed) == Verdict::Equal;
            if !is_steady {
                if look == LEAVE_OUT_AFTER && !passing {
                    self.leave_out_apart(&orders);
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            self.report.ranges += 1;
            if let Some(truth) = agreed(&looked, self.needed) {
                let differs = vote(&looked, self.needed) != Verdict::Equal;
                if differs && !std::mem::replace(&mut is_second, true) {
                    // A difference is looked at again before it counts.
                    tokio::time::sleep(PAUSE * 5).await;
                    continue;
                }
                self.differing(&looked, truth).await?;
                let truth = looked.into_iter().nth(truth).flatten();
                return Ok(truth.map(|truth| truth.tables).unwrap_or_default());
            }
            self.report
                .dispute("the definitions of tables, functions and other objects");
            return Err(Stop::TooFew);
        }
        self.report
            .not_compared(String::from("the definitions: they change all the time"));
        Err("the definitions of objects change all the time".into())
    }

    /// Leaves out who is at another order than f+1 others, or at none.
    fn leave_out_apart(&mut self, orders: &[Option<&String>]) {
        let Some(truth) = agreed(orders, self.needed).and_then(|place| orders.get(place).copied()) else {
            return;
        };
        let apart = self.members.iter().zip(orders).filter(|(_, order)| **order != truth);
        let apart: Vec<_> = apart.map(|(member, _)| member.id).collect();
        for id in apart {
            self.leave_out(id, "its definitions do not come to the order of the others");
        }
    }

    async fn differing(&mut self, looked: &[Option<Defined>], truth: usize) -> Result<(), Stop> {
        let members = self.members.clone();
        let (Some(right), Some(Some(defined))) = (members.get(truth), looked.get(truth)) else {
            return Ok(());
        };
        for (member, look) in members.iter().zip(looked) {
            let Some(look) = look.as_ref().filter(|look| *look != defined) else {
                continue;
            };
            let both = ((&*right.client, &defined.contents), (&*member.client, &look.contents));
            let difference = contents::first_difference(SCHEMA_PART, both.0, both.1).await;
            let what = match difference {
                Ok(Some((Some(line), _))) => format!("the definitions: it lacks {line}"),
                Ok(Some((None, Some(line)))) => format!("the definitions: it alone has {line}"),
                _ => String::from("the definitions of objects"),
            };
            for client in [&right.client, &member.client] {
                let _ = client.batch_execute("rollback").await;
            }
            self.find(member.id, None, &printable(&what));
            self.convict_now(member.id).await?;
        }
        match self.members.len() < self.needed {
            true => Err(Stop::TooFew),
            false => Ok(()),
        }
    }

    /// Takes a machine out of service at once: since its tables are others, nothing more of that machine is compared.
    async fn convict_now(&mut self, id: ordering::identifiers::MachineId) -> Result<(), Stop> {
        self.convict().await?;
        self.members.retain(|member| member.id != id);
        Ok(())
    }
}

/// The rows of a range, by their keys, with a hash of each.
pub(super) type Rows = BTreeMap<Vec<String>, String>;
