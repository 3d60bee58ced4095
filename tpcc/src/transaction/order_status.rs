//! Order-Status, clause 2.6: reads only.

use super::customer::{Lookup, Selection};
use super::{Ending, Failure, InputSource, fetch};
use crate::statement::{Connection, Statement};

/// What the user typed.
#[derive(Debug)]
pub(crate) struct Input {
    warehouse: i32,
    district: i32,
    customer: Selection,
}

impl Input {
    pub(super) fn draw(source: &mut InputSource) -> Self {
        let district = source.district();
        Self {
            warehouse: source.home,
            district,
            customer: Selection::draw(source),
        }
    }
}

/// The prepared statements.
#[derive(Debug)]
pub(super) struct Statements {
    lookup: Lookup,
    customer: Statement,
    last_order: Statement,
    lines: Statement,
}

impl Statements {
    pub(super) async fn prepare(client: &Connection) -> Result<Self, tokio_postgres::Error> {
        let prepare = |text: &'static str| client.prepare(text);
        Ok(Self {
            lookup: Lookup::prepare(client).await?,
            customer: prepare(
                "SELECT c_balance, c_first, c_middle, c_last FROM customer \
                 WHERE c_w_id = $1 AND c_d_id = $2 AND c_id = $3",
            )
            .await?,
            last_order: prepare(
                "SELECT o_id, o_entry_d, o_carrier_id FROM orders \
                 WHERE o_w_id = $1 AND o_d_id = $2 AND o_c_id = $3 ORDER BY o_id DESC LIMIT 1",
            )
            .await?,
            lines: prepare(
                "SELECT ol_i_id, ol_supply_w_id, ol_quantity, ol_amount, ol_delivery_d \
                 FROM order_line WHERE ol_w_id = $1 AND ol_d_id = $2 AND ol_o_id = $3 \
                 ORDER BY ol_number",
            )
            .await?,
        })
    }

    pub(super) async fn perform(&self, client: &Connection, input: &Input) -> Result<Ending, Failure> {
        let Input {
            warehouse,
            district,
            customer,
        } = input;
        let customer = self.lookup.find(client, *warehouse, *district, customer).await?;
        fetch(client, &self.customer, &[warehouse, district, &customer], "customer").await?;
        let row = fetch(
            client,
            &self.last_order,
            &[warehouse, district, &customer],
            "last order",
        )
        .await?;
        let order: i32 = row.try_get(0)?;
        let lines = client.query(&self.lines, &[warehouse, district, &order]).await?;
        if lines.is_empty() {
            return Err(Failure::Missing("lines of the last order"));
        }
        Ok(Ending::Commit(None))
    }
}
