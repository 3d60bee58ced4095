//! The initial population of clause 4.3.3.

mod rows;
mod table_writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use indicatif::ProgressBar;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::connection::connect;
use crate::error::describe;
use crate::options::{LoadMethod, LoadOptions};
use crate::random::Random;
use crate::schema::{self, FOREIGN_KEYS, INDEXES, ITEM, TABLES};
use crate::{Error, clock};
use rows::Population;
use table_writer::{Transport, copy_nothing};

/// SQLSTATEs by which a server says that it has no COPY: "feature not supported", and CloudBFT's own.
const NO_COPY: [&str; 2] = ["0A000", "BF004"];
/// The stream of random values of the item table; warehouses have their own numbers.
const ITEM_STREAM: u64 = 0;

/// Creates the tables, fills them, and makes the indexes. `progress` counts rows.
///
/// # Errors
/// Tables exist already and `drop` was not asked for, or the server refuses a statement.
pub async fn load(options: &LoadOptions, progress: ProgressBar) -> Result<(), Error> {
    let scale = options.scale();
    progress.set_length(scale.rows());
    let client = connect(&options.dsn).await?;
    progress.set_message("tables");
    create_tables(&client, options.drop).await?;
    let transport = choose_transport(options, &progress).await?;

    progress.set_message("items");
    let population = Population {
        scale,
        transport,
        now: clock::unique_now(),
        progress,
    };
    population
        .load_items(&client, &mut Random::new(options.seed, ITEM_STREAM))
        .await?;
    load_warehouses(options, &population).await?;

    population.progress.set_message("indexes");
    finish(&client, options.foreign_keys, &population.progress).await
}

async fn create_tables(client: &Client, drop: bool) -> Result<(), Error> {
    if drop {
        for statement in schema::drop_statements() {
            client.batch_execute(&statement).await?;
        }
    }
    for table in TABLES {
        client.batch_execute(&table.create_statement()).await?;
    }
    Ok(())
}

async fn choose_transport(options: &LoadOptions, progress: &ProgressBar) -> Result<Transport, Error> {
    match options.method {
        LoadMethod::Copy => return Ok(Transport::Copy),
        LoadMethod::Insert => return Ok(Transport::Insert),
        LoadMethod::Auto => {}
    }
    // On a connection of its own: after a refused COPY tokio-postgres takes later answers for the wrong statement.
    let client = connect(&options.dsn).await?;
    let Err(error) = copy_nothing(&client, &ITEM).await else {
        return Ok(Transport::Copy);
    };
    match error.code() {
        Some(code) if NO_COPY.contains(&code.code()) => {
            let refusal = describe(&error);
            progress.suspend(|| eprintln!("loading by INSERT, for the server refuses COPY: {refusal}"));
            Ok(Transport::Insert)
        }
        _ => Err(error.into()),
    }
}

/// Warehouses are taken one by one by as many tasks as there are connections.
async fn load_warehouses(options: &LoadOptions, population: &Population) -> Result<(), Error> {
    let next = Arc::new(AtomicI32::new(1));
    let mut tasks = JoinSet::new();
    for _ in 0..options.connections.min(options.warehouses.unsigned_abs()) {
        let (next, population, dsn) = (Arc::clone(&next), population.clone(), options.dsn.clone());
        let seed = options.seed;
        tasks.spawn(async move {
            let client = connect(&dsn).await?;
            loop {
                let warehouse = next.fetch_add(1, Ordering::Relaxed);
                if warehouse > population.scale.warehouses {
                    return Ok::<(), Error>(());
                }
                population.progress.set_message(format!("warehouse {warehouse}"));
                let stream = u64::from(warehouse.unsigned_abs());
                population
                    .load_warehouse(&client, warehouse, &mut Random::new(seed, stream))
                    .await?;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

async fn finish(client: &Client, foreign_keys: bool, progress: &ProgressBar) -> Result<(), Error> {
    for statement in INDEXES {
        client.batch_execute(statement).await?;
    }
    if foreign_keys {
        for statement in FOREIGN_KEYS {
            client.batch_execute(statement).await?;
        }
    }
    progress.set_message("statistics");
    for table in TABLES {
        // Statistics only help the planner: a server that does not know ANALYZE still works.
        if let Err(error) = client.batch_execute(&format!("ANALYZE {}", table.name)).await {
            let refusal = describe(&error);
            progress.suspend(|| eprintln!("no statistics: {refusal}"));
            break;
        }
    }
    progress.finish_with_message("loaded");
    Ok(())
}
