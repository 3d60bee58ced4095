//! Stock-Level, clause 2.8: reads only.

use super::{Ending, Failure, InputSource, fetch};
use crate::statement::{Connection, Parameter, Statement};

/// Orders of the district whose items are looked at.
const RECENT_ORDERS: i32 = 20;

/// What the user typed.
#[derive(Debug)]
pub(crate) struct Input {
    warehouse: i32,
    district: i32,
    threshold: i32,
}

impl Input {
    pub(super) fn draw(source: &mut InputSource) -> Self {
        Self {
            warehouse: source.home,
            district: source.home_district,
            threshold: source.random.uniform(10, 20),
        }
    }
}

/// The prepared statements.
#[derive(Debug)]
pub(super) struct Statements {
    district: Statement,
    low_stock: Statement,
}

impl Statements {
    pub(super) async fn prepare(client: &Connection) -> Result<Self, tokio_postgres::Error> {
        let prepare = |text: &'static str| client.prepare(text);
        Ok(Self {
            district: prepare("SELECT d_next_o_id FROM district WHERE d_w_id = $1 AND d_id = $2").await?,
            low_stock: prepare(
                "SELECT count(DISTINCT s_i_id) FROM order_line, stock \
                 WHERE ol_w_id = $1 AND ol_d_id = $2 AND ol_o_id < $3 AND ol_o_id >= $4 \
                 AND s_w_id = $1 AND s_i_id = ol_i_id AND s_quantity < $5",
            )
            .await?,
        })
    }

    pub(super) async fn perform(&self, client: &Connection, input: &Input) -> Result<Ending, Failure> {
        let Input {
            warehouse,
            district,
            threshold,
        } = input;
        let row = fetch(client, &self.district, &[warehouse, district], "district").await?;
        let next: i32 = row.try_get(0)?;
        let first = next.saturating_sub(RECENT_ORDERS);
        let parameters: [&dyn Parameter; 5] = [warehouse, district, &next, &first, threshold];
        let row = fetch(client, &self.low_stock, &parameters, "count of low stock").await?;
        let _low_stock: i64 = row.try_get(0)?;
        Ok(Ending::Commit(None))
    }
}
