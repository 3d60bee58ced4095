//! A small in-process cluster for the proxy's own tests: three voters that share one real PostgreSQL server, and a
//! sequencer that orders nothing but the sequence of arrival. Faults can be put in. It stands in for nodes only here;
//! what proves the whole system is in the workspace's `tests` crate.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

pub mod cluster;
pub mod faults;
pub mod postgres;
pub mod raw;
pub mod voters;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use ordering::identifiers::ClientId;
use proxy::{Proxy, ProxyConfig};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

pub use faults::Faults;
pub use postgres::Postgres;

/// The last server has done what f+1 have acknowledged after this long, also on a busy machine.
const LAST_WITHIN: Duration = Duration::from_secs(20);

/// A proxy in front of a test cluster.
pub struct World {
    /// One server, or one for each voter.
    pub servers: Vec<std::sync::Arc<Postgres>>,
    pub address: SocketAddr,
    pub faults: Faults,
    pub proxy: tokio::task::JoinHandle<()>,
    stop: Option<oneshot::Sender<()>>,
}

impl World {
    pub async fn start() -> World {
        Self::start_with(|_| {}).await
    }

    /// With three voters that share one server, and may be faulty.
    pub async fn start_with(change: impl FnOnce(&mut ProxyConfig)) -> World {
        let config = configured(change);
        let servers = vec![Postgres::start()];
        let key = config.signing_key.verifying_key();
        let (port, faults) = cluster::start(std::sync::Arc::clone(&servers[0]), key);
        Self::serve(servers, config, port, faults).await
    }

    /// With three real voters.
    pub async fn start_voters() -> World {
        Self::start_voters_with(sql::rules::PartitionRules::tpcc()).await
    }

    /// With three real voters under these partition rules.
    pub async fn start_voters_with(rules: sql::rules::PartitionRules) -> World {
        Self::start_voters_and(|config| config.rules = rules).await
    }

    /// With three real voters, and a proxy that is configured otherwise.
    pub async fn start_voters_and(change: impl FnOnce(&mut ProxyConfig)) -> World {
        let config = configured(|config| {
            config.rules = sql::rules::PartitionRules::tpcc();
            change(config);
        });
        let servers: Vec<_> = (0..3).map(|_| Postgres::start()).collect();
        let (port, faults) = voters::start(&servers, config.rules.clone()).await;
        Self::serve(servers, config, port, faults).await
    }

    async fn serve(
        servers: Vec<std::sync::Arc<Postgres>>,
        config: ProxyConfig,
        port: proxy::ClusterPort,
        faults: Faults,
    ) -> World {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let proxy = tokio::spawn(async move {
            let shutdown = async {
                let _ = stopped.await;
            };
            Proxy::run(listener, config, port, shutdown).await.unwrap();
        });
        World {
            servers,
            address,
            faults,
            proxy,
            stop: Some(stop),
        }
    }

    /// Asks every server behind the proxy; they must agree, at the latest when the last one has done what f+1 have acknowledged.
    pub async fn everywhere(&self, text: &str) -> String {
        let asked = Instant::now();
        loop {
            let mut answers = std::collections::BTreeSet::new();
            for server in &self.servers {
                let row = server.connect().await.query_one(text, &[]).await.unwrap();
                answers.insert(row.get::<_, Option<String>>(0).unwrap_or_default());
            }
            if answers.len() == 1 {
                return answers.pop_first().unwrap();
            }
            assert!(asked.elapsed() < LAST_WITHIN, "{answers:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// A tokio-postgres client of the proxy.
    pub async fn connect(&self) -> tokio_postgres::Client {
        self.try_connect("").await.unwrap()
    }

    pub async fn try_connect(&self, more: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let text = format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres {more}",
            self.address.port()
        );
        let (client, connection) = tokio_postgres::connect(&text, tokio_postgres::NoTls).await?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(client)
    }

    /// What psql prints.
    pub async fn psql(&self, arguments: &[&str]) -> String {
        self.run("psql", &[&["-X"], arguments].concat()).await
    }

    /// What a program of PostgreSQL's prints that is pointed at the proxy.
    pub async fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = tokio::process::Command::new(program)
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.address.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
            .args(arguments)
            .output()
            .await
            .unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    }
}

fn configured(change: impl FnOnce(&mut ProxyConfig)) -> ProxyConfig {
    let mut config = ProxyConfig::new(ClientId(0), SigningKey::from_bytes(&[3; 32]), 1, 1);
    config.statement_timeout = Duration::from_secs(10);
    config.voter_keys = config
        .voters
        .iter()
        .map(|machine| (*machine, cluster::machine_key(*machine).verifying_key()))
        .collect();
    change(&mut config);
    config
}
