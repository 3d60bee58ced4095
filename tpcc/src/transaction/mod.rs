//! The five transactions, one file each: inputs, prepared statements, and the statements' order.
//!
//! A transaction's body runs between a BEGIN and a COMMIT that [`crate::terminal`] sends.

mod customer;
mod delivery;
mod new_order;
mod order_status;
mod payment;
mod stock_level;

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::error::describe;
use crate::ledger::Claim;
use crate::random::{Constants, LAST_NAMES, Random};
use crate::scale::{DISTRICTS, Scale};
use crate::statement::{Connection, Parameter, Row, Statement};

/// The five kinds of transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransactionKind {
    /// Clause 2.4.
    NewOrder,
    /// Clause 2.5.
    Payment,
    /// Clause 2.6.
    OrderStatus,
    /// Clause 2.7.
    Delivery,
    /// Clause 2.8.
    StockLevel,
}

impl TransactionKind {
    /// All of them, in the order of the specification.
    pub const ALL: [Self; 5] = [
        Self::NewOrder,
        Self::Payment,
        Self::OrderStatus,
        Self::Delivery,
        Self::StockLevel,
    ];

    /// The name, as the specification writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NewOrder => "New-Order",
            Self::Payment => "Payment",
            Self::OrderStatus => "Order-Status",
            Self::Delivery => "Delivery",
            Self::StockLevel => "Stock-Level",
        }
    }

    /// Cards of this kind in a deck of 100: the mix of clause 5.2.3.
    pub(crate) fn cards(self) -> usize {
        match self {
            Self::NewOrder => 45,
            Self::Payment => 43,
            Self::OrderStatus | Self::Delivery | Self::StockLevel => 4,
        }
    }

    /// Time to type the inputs, clause 5.2.5.2.
    pub(crate) fn keying_time(self) -> Duration {
        Duration::from_secs(match self {
            Self::NewOrder => 18,
            Self::Payment => 3,
            Self::OrderStatus | Self::Delivery | Self::StockLevel => 2,
        })
    }

    /// Mean time to read the outputs, clause 5.2.5.4.
    pub(crate) fn mean_think_time(self) -> Duration {
        Duration::from_secs(match self {
            Self::NewOrder | Self::Payment => 12,
            Self::OrderStatus => 10,
            Self::Delivery | Self::StockLevel => 5,
        })
    }
}

/// Where inputs come from: a terminal's random values and its surroundings.
#[derive(Debug)]
pub(crate) struct InputSource {
    pub(crate) random: Random,
    pub(crate) constants: Constants,
    pub(crate) scale: Scale,
    /// The terminal's own warehouse.
    pub(crate) home: i32,
    /// The terminal's own district, of which Stock-Level reads.
    pub(crate) home_district: i32,
}

impl InputSource {
    fn district(&mut self) -> i32 {
        self.random.uniform(1, DISTRICTS)
    }

    fn customer(&mut self) -> i32 {
        self.random.customer(&self.constants, self.scale.customers)
    }

    fn last_name_number(&mut self) -> i32 {
        self.random
            .last_name_number(&self.constants, LAST_NAMES.min(self.scale.customers))
    }

    /// A warehouse that is not the own one, if there is any.
    fn remote_warehouse(&mut self) -> i32 {
        if self.scale.warehouses < 2 {
            return self.home;
        }
        let other = self.random.uniform(1, self.scale.warehouses - 1);
        if other < self.home { other } else { other + 1 }
    }
}

/// What a terminal's user typed.
#[derive(Debug)]
pub(crate) enum Input {
    NewOrder(new_order::Input),
    Payment(payment::Input),
    OrderStatus(order_status::Input),
    Delivery(delivery::Input),
    StockLevel(stock_level::Input),
}

impl Input {
    /// Draws the inputs of a transaction of this kind.
    pub(crate) fn draw(kind: TransactionKind, source: &mut InputSource) -> Self {
        match kind {
            TransactionKind::NewOrder => Self::NewOrder(new_order::Input::draw(source)),
            TransactionKind::Payment => Self::Payment(payment::Input::draw(source)),
            TransactionKind::OrderStatus => Self::OrderStatus(order_status::Input::draw(source)),
            TransactionKind::Delivery => Self::Delivery(delivery::Input::draw(source)),
            TransactionKind::StockLevel => Self::StockLevel(stock_level::Input::draw(source)),
        }
    }
}

/// What tells one attempt of a transaction apart from all others.
#[derive(Debug, Clone)]
pub(crate) struct Stamp {
    /// The time of the attempt, unique within this process.
    pub(crate) now: SystemTime,
    /// What a Payment writes as H_DATA instead of the names of clause 2.5.2.2, if a ledger is kept.
    pub(crate) marker: Option<String>,
}

/// How the body of a transaction ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// It is to be committed; what the database must hold then.
    Commit(Option<Claim>),
    /// It is to be rolled back, for an item number was not valid (clause 2.4.1.4); what the database must not hold.
    Rollback(Option<Claim>),
}

/// Why the body of a transaction failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server refused a statement, or the connection failed.
    Postgres(tokio_postgres::Error),
    /// A row that must exist was not found.
    Missing(&'static str),
    /// A text is not what its column holds.
    Malformed,
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl Failure {
    /// The SQLSTATE, or a word for what has none.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Postgres(error) => error.code().map_or("connection", |code| code.code()),
            Self::Missing(_) => "missing row",
            Self::Malformed => "malformed value",
        }
    }

    /// The whole of it.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Postgres(error) => describe(error),
            Self::Missing(what) => format!("not found: {what}"),
            Self::Malformed => String::from("a value is not of its column's type"),
        }
    }
}

/// The statements of one connection.
#[derive(Debug)]
pub(crate) struct Statements {
    new_order: new_order::Statements,
    payment: payment::Statements,
    order_status: order_status::Statements,
    delivery: delivery::Statements,
    stock_level: stock_level::Statements,
}

impl Statements {
    /// Prepares all statements.
    pub(crate) async fn prepare(client: &Connection) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            new_order: new_order::Statements::prepare(client).await?,
            payment: payment::Statements::prepare(client).await?,
            order_status: order_status::Statements::prepare(client).await?,
            delivery: delivery::Statements::prepare(client).await?,
            stock_level: stock_level::Statements::prepare(client).await?,
        })
    }

    /// Runs the body of a transaction.
    pub(crate) async fn perform(&self, client: &Connection, input: &Input, stamp: &Stamp) -> Result<Ending, Failure> {
        match input {
            Input::NewOrder(input) => self.new_order.perform(client, input, stamp).await,
            Input::Payment(input) => self.payment.perform(client, input, stamp).await,
            Input::OrderStatus(input) => self.order_status.perform(client, input).await,
            Input::Delivery(input) => self.delivery.perform(client, input, stamp).await,
            Input::StockLevel(input) => self.stock_level.perform(client, input).await,
        }
    }
}

/// The one row that a statement must return.
async fn fetch(
    client: &Connection,
    statement: &Statement,
    parameters: &[&dyn Parameter],
    what: &'static str,
) -> Result<Row, Failure> {
    client
        .query_opt(statement, parameters)
        .await?
        .ok_or(Failure::Missing(what))
}

/// Runs a statement that must change at least one row.
async fn change(
    client: &Connection,
    statement: &Statement,
    parameters: &[&dyn Parameter],
    what: &'static str,
) -> Result<(), Failure> {
    match client.execute(statement, parameters).await? {
        0 => Err(Failure::Missing(what)),
        _ => Ok(()),
    }
}
