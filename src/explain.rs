//! `cloudbft explain`: what a statement locks, and why.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use cluster::file::ClusterFile;
use cluster::postgres::DatabaseServer;
use sql::analysis::Analyzer;
use sql::operation::{Exchange, SessionContext};
use sql::schema::{CATALOG_QUERY, Schema};

use crate::status::{AssignmentStatus, ask_all};
use crate::{Failure, up};

/// `cloudbft explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct ExplainOptions {
    /// The directory of a running cluster
    #[arg(long, default_value = "cloudbft-data")]
    dir: PathBuf,
    /// The statement, or several
    statement: String,
}

/// How many groups are in charge, as f+1 machines say; when they do not, as at first.
async fn groups_in_charge(file: &ClusterFile) -> u16 {
    let stated = AssignmentStatus::stated_by(&ask_all(file).await, file.tunables.faults + 1);
    stated.map_or(file.tunables.groups, |stated| stated.groups).max(1)
}

/// Prints class, effect and footprint of each statement.
pub(crate) async fn run(options: &ExplainOptions) -> Result<ExitCode, Failure> {
    let directory = options
        .dir
        .canonicalize()
        .map_err(|error| format!("{}: {error}", options.dir.display()))?;
    let file = ClusterFile::read(&directory.join("cluster.toml"))?;
    let groups = groups_in_charge(&file).await;
    let analyzer = Analyzer::new(Arc::new(schema(&file).await?));
    let context = SessionContext {
        client: 0,
        session: 0,
        role: file
            .tunables
            .roles
            .first()
            .map(|role| role.name.clone())
            .unwrap_or_default(),
        database: file.tunables.database.clone(),
        settings: Vec::new(),
    };
    let text = analyzer.text(&options.statement);
    let mut refused = false;
    for statement in &text.statements {
        let source = options
            .statement
            .get(statement.range.clone())
            .unwrap_or_default()
            .trim();
        let exchange = Exchange::Simple {
            text: source.to_owned(),
        };
        println!("{source}");
        println!("  class      {:?}", statement.class);
        match analyzer.exchange(&exchange, &context) {
            Ok(analysis) => {
                println!("  effect     {:?}", analysis.effect);
                println!("  footprint  {}", analysis.footprint);
                let home = analysis.footprint.home();
                println!("  home       {home} (group {})", home.home_number() % u64::from(groups));
                if statement.executable != source {
                    println!("  runs as    {}", statement.executable.trim());
                }
            }
            Err(refusal) => {
                refused = true;
                println!("  refused    {}: {}", refusal.sqlstate, refusal.message);
                println!("  detail     {}", refusal.detail);
                println!("  hint       {}", refusal.hint);
            }
        }
    }
    Ok(if refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The catalog of the first database node that answers.
async fn schema(file: &ClusterFile) -> Result<Schema, Failure> {
    let mut failure: Failure = "there is no database node".into();
    for server in up::databases(file)? {
        match catalog(&server, file).await {
            Ok(schema) => return Ok(schema),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn catalog(server: &DatabaseServer, file: &ClusterFile) -> Result<Schema, Failure> {
    let client = server.connect(&file.tunables.database).await?;
    // As voters read it.
    client.batch_execute("SET search_path = pg_catalog").await?;
    let messages = client.simple_query(CATALOG_QUERY).await?;
    let rows: Vec<_> = messages
        .iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        })
        .collect();
    Ok(Schema::parse(rows.into_iter(), file.rules())?)
}
