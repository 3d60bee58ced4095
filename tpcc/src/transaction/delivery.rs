//! Delivery, clause 2.7: one database transaction for all districts of a warehouse.

use super::{Ending, Failure, InputSource, Stamp, change, fetch};
use crate::fixed::Money;
use crate::scale::DISTRICTS;
use crate::statement::{Connection, Statement};

/// How often the oldest new order of a district may be gone again before the server is thought to be wrong.
const TAKE_ATTEMPTS_MAX: u32 = 100;

/// What the user typed.
#[derive(Debug)]
pub(crate) struct Input {
    warehouse: i32,
    carrier: i32,
}

impl Input {
    pub(super) fn draw(source: &mut InputSource) -> Self {
        Self {
            warehouse: source.home,
            carrier: source.random.uniform(1, 10),
        }
    }
}

/// The prepared statements.
#[derive(Debug)]
pub(super) struct Statements {
    oldest: Statement,
    take: Statement,
    customer: Statement,
    set_carrier: Statement,
    set_delivery: Statement,
    amount: Statement,
    charge: Statement,
}

impl Statements {
    pub(super) async fn prepare(client: &Connection) -> Result<Self, tokio_postgres::Error> {
        let prepare = |text: &'static str| client.prepare(text);
        Ok(Self {
            oldest: prepare(
                "SELECT no_o_id FROM new_order WHERE no_w_id = $1 AND no_d_id = $2 \
                 ORDER BY no_o_id LIMIT 1",
            )
            .await?,
            take: prepare("DELETE FROM new_order WHERE no_w_id = $1 AND no_d_id = $2 AND no_o_id = $3").await?,
            customer: prepare("SELECT o_c_id FROM orders WHERE o_w_id = $1 AND o_d_id = $2 AND o_id = $3").await?,
            set_carrier: prepare("UPDATE orders SET o_carrier_id = $4 WHERE o_w_id = $1 AND o_d_id = $2 AND o_id = $3")
                .await?,
            set_delivery: prepare(
                "UPDATE order_line SET ol_delivery_d = $4 \
                 WHERE ol_w_id = $1 AND ol_d_id = $2 AND ol_o_id = $3",
            )
            .await?,
            amount: prepare(
                "SELECT sum(ol_amount) FROM order_line \
                 WHERE ol_w_id = $1 AND ol_d_id = $2 AND ol_o_id = $3",
            )
            .await?,
            charge: prepare(
                "UPDATE customer SET c_balance = c_balance + $4, c_delivery_cnt = c_delivery_cnt + 1 \
                 WHERE c_w_id = $1 AND c_d_id = $2 AND c_id = $3",
            )
            .await?,
        })
    }

    pub(super) async fn perform(&self, client: &Connection, input: &Input, stamp: &Stamp) -> Result<Ending, Failure> {
        for district in 1..=DISTRICTS {
            if let Some(order) = self.take_oldest(client, input.warehouse, district).await? {
                self.deliver(client, input, stamp, district, order).await?;
            }
        }
        Ok(Ending::Commit(None))
    }

    /// Removes the oldest new order of a district, if there is any.
    ///
    /// Under READ COMMITTED another delivery may take the same one between the two statements; then the DELETE
    /// finds nothing, and the next SELECT sees what is left.
    async fn take_oldest(&self, client: &Connection, warehouse: i32, district: i32) -> Result<Option<i32>, Failure> {
        for _ in 0..TAKE_ATTEMPTS_MAX {
            let Some(row) = client.query_opt(&self.oldest, &[&warehouse, &district]).await? else {
                return Ok(None);
            };
            let order: i32 = row.try_get(0)?;
            if client.execute(&self.take, &[&warehouse, &district, &order]).await? > 0 {
                return Ok(Some(order));
            }
        }
        Err(Failure::Missing("new order that can be deleted"))
    }

    async fn deliver(
        &self,
        client: &Connection,
        input: &Input,
        stamp: &Stamp,
        district: i32,
        order: i32,
    ) -> Result<(), Failure> {
        let Input { warehouse, carrier } = input;
        let district = &district;
        let row = fetch(client, &self.customer, &[warehouse, district, &order], "order").await?;
        let customer: i32 = row.try_get(0)?;
        change(
            client,
            &self.set_carrier,
            &[warehouse, district, &order, carrier],
            "order",
        )
        .await?;
        change(
            client,
            &self.set_delivery,
            &[warehouse, district, &order, &stamp.now],
            "order lines",
        )
        .await?;
        let row = fetch(client, &self.amount, &[warehouse, district, &order], "order lines").await?;
        let amount: Money = row.try_get(0)?;
        change(
            client,
            &self.charge,
            &[warehouse, district, &customer, &amount],
            "customer",
        )
        .await
    }
}
