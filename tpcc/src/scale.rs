//! Cardinalities: those of clause 4.3.3, or fewer for quick tests. A run reads them from the database.

use tokio_postgres::Client;

use crate::Error;

/// Districts of a warehouse.
pub(crate) const DISTRICTS: i32 = 10;

/// How much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    /// Warehouses, numbered from 1.
    pub warehouses: i32,
    /// Customers of each district, and its orders after the load.
    pub customers: i32,
    /// Items, and stock entries of each warehouse.
    pub items: i32,
}

impl Scale {
    /// The cardinalities of the specification.
    pub fn standard(warehouses: i32) -> Self {
        Self {
            warehouses,
            customers: 3_000,
            items: 100_000,
        }
    }

    /// A tenth of the customers and a hundredth of the items, for tests.
    pub fn small(warehouses: i32) -> Self {
        Self {
            warehouses,
            customers: 300,
            items: 1_000,
        }
    }

    /// The cardinalities of a loaded database.
    pub(crate) async fn of_database(client: &Client) -> Result<Self, Error> {
        let warehouses = client.query_one("SELECT max(w_id) FROM warehouse", &[]).await?;
        let items = client.query_one("SELECT max(i_id) FROM item", &[]).await?;
        let customers = client
            .query_one("SELECT max(c_id) FROM customer WHERE c_w_id = 1 AND c_d_id = 1", &[])
            .await?;
        let maximum = |row: &tokio_postgres::Row| -> Result<i32, Error> {
            row.try_get::<_, Option<i32>>(0)?
                .ok_or_else(|| Error::Database("the tables are empty: run the load first".to_owned()))
        };
        Ok(Self {
            warehouses: maximum(&warehouses)?,
            customers: maximum(&customers)?,
            items: maximum(&items)?,
        })
    }

    /// Orders of each district that the load marks as delivered (2,100 of 3,000), clause 4.3.3.1.
    pub(crate) fn delivered_orders(&self) -> i32 {
        self.customers / 10 * 7
    }

    /// Rows that a load makes; order lines are an average.
    pub(crate) fn rows(&self) -> u64 {
        let number = |value: i32| u64::try_from(value).unwrap_or_default();
        let undelivered = number(self.customers - self.delivered_orders());
        // Customer, history, order, and 5 to 15 order lines.
        let district = 1 + number(self.customers) * (3 + 10) + undelivered;
        let warehouse = 1 + number(self.items) + number(DISTRICTS) * district;
        number(self.items) + number(self.warehouses) * warehouse
    }
}
