//! Finding a customer by number or by last name, clauses 2.5.2.2 and 2.6.2.2.

use super::{Failure, InputSource};
use crate::random::last_name;
use crate::statement::{Connection, Statement};

/// Cases in a hundred in which a customer gives the last name.
const BY_LAST_NAME_PERCENT: i32 = 60;

/// How a customer is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Selection {
    Number(i32),
    LastName(String),
}

impl Selection {
    pub(super) fn draw(source: &mut InputSource) -> Self {
        if source.random.percent(BY_LAST_NAME_PERCENT) {
            Self::LastName(last_name(source.last_name_number()))
        } else {
            Self::Number(source.customer())
        }
    }
}

/// The statement that finds customers by last name.
#[derive(Debug)]
pub(super) struct Lookup {
    by_last_name: Statement,
}

impl Lookup {
    pub(super) async fn prepare(client: &Connection) -> Result<Self, tokio_postgres::Error> {
        let by_last_name = client
            .prepare(
                "SELECT c_id FROM customer WHERE c_w_id = $1 AND c_d_id = $2 AND c_last = $3 \
                 ORDER BY c_first, c_id",
            )
            .await?;
        Ok(Self { by_last_name })
    }

    /// The customer's number. Of n customers with one last name it is the one at n/2, rounded up.
    pub(super) async fn find(
        &self,
        client: &Connection,
        warehouse: i32,
        district: i32,
        selection: &Selection,
    ) -> Result<i32, Failure> {
        let name = match selection {
            Selection::Number(number) => return Ok(*number),
            Selection::LastName(name) => name,
        };
        let rows = client.query(&self.by_last_name, &[&warehouse, &district, name]).await?;
        let middle = rows.len().div_ceil(2).saturating_sub(1);
        let row = rows.get(middle).ok_or(Failure::Missing("customer of this last name"))?;
        row.try_get(0)
    }
}
