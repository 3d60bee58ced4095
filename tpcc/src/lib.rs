//! The TPC-C kit: schema, loader, the five transactions, the twelve consistency conditions and a report.
//!
//! A stranger that speaks only Postgres wire: it knows nothing of CloudBFT and runs in the same way against a
//! plain PostgreSQL and against the proxy. Statements are sent one by one, prepared and with binary
//! parameters or as texts with literals ([`Protocol`]), as an ordinary application sends them. Clause numbers are those of the TPC-C Standard
//! Specification, revision 5.11.
//!
//! Invariant: every statement names the warehouse of every partitioned table as an equality (or an IN list) on
//! a parameter or a literal, and takes its time and its random values from the client.
//!
//! ```no_run
//! # async fn example() -> Result<(), tpcc::Error> {
//! let dsn = "host=localhost user=postgres dbname=tpcc";
//! tpcc::load(&tpcc::LoadOptions::new(dsn), indicatif::ProgressBar::hidden()).await?;
//! let report = tpcc::run(&tpcc::RunOptions::new(dsn)).await?;
//! println!("{report}");
//! assert!(tpcc::check(&tpcc::CheckOptions::new(dsn)).await?.passed());
//! # Ok(())
//! # }
//! ```

mod clock;
pub mod command;
mod connection;
pub mod consistency;
mod deck;
mod error;
mod fixed;
mod ledger;
mod loader;
mod options;
mod random;
pub mod report;
mod runner;
mod scale;
mod schema;
mod statement;
mod statistics;
mod terminal;
mod transaction;

pub use consistency::{CheckReport, check};
pub use error::Error;
pub use ledger::LedgerReport;
pub use loader::load;
pub use options::{CheckOptions, Isolation, LoadMethod, LoadOptions, Protocol, RunOptions};
pub use report::Report;
pub use runner::{run, run_until};
pub use scale::Scale;
pub use transaction::TransactionKind;
