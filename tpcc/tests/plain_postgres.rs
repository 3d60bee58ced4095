//! The kit against a plain PostgreSQL: load, run, check; and the checks must find what is broken.

mod postgres_server;

use std::path::PathBuf;
use std::time::Duration;

use indicatif::ProgressBar;
use postgres_server::PostgresServer;
use tokio_postgres::{Client, NoTls};
use tpcc::{
    CheckOptions, CheckReport, Isolation, LoadMethod, LoadOptions, Report, RunOptions,
    TransactionKind,
};

/// A loaded server, a connection to it, and a place for the ledger.
struct Fixture {
    server: PostgresServer,
    client: Client,
    ledger: PathBuf,
}

impl Fixture {
    async fn loaded(options: impl FnOnce(&mut LoadOptions)) -> Self {
        let server = PostgresServer::start();
        let mut load = LoadOptions {
            small: true,
            warehouses: 2,
            ..LoadOptions::new(server.dsn())
        };
        options(&mut load);
        tpcc::load(&load, ProgressBar::hidden()).await.unwrap();
        let (client, connection) = tokio_postgres::connect(server.dsn(), NoTls).await.unwrap();
        tokio::spawn(connection);
        let ledger = server.directory().join("ledger");
        Self {
            server,
            client,
            ledger,
        }
    }

    fn run_options(&self) -> RunOptions {
        let ledger = Some(self.ledger.clone());
        RunOptions {
            terminals: 4,
            seconds: 5,
            ledger,
            ..RunOptions::new(self.server.dsn())
        }
    }

    async fn check(&self) -> CheckReport {
        let ledger = self.ledger.exists().then(|| self.ledger.clone());
        tpcc::check(&CheckOptions {
            ledger,
            ..CheckOptions::new(self.server.dsn())
        })
        .await
        .unwrap()
    }

    async fn assert_sound(&self) {
        let report = self.check().await;
        assert!(report.passed(), "{report}");
        assert_eq!(report.conditions.len(), 12);
    }

    async fn sql(&self, statements: &str) {
        self.client.batch_execute(statements).await.unwrap();
    }

    /// Breaks the database, sees which conditions fail, and mends it again.
    async fn assert_breaks(&self, damage: &str, repair: &str, conditions: &[u32]) {
        self.sql(damage).await;
        let report = self.check().await;
        assert_eq!(report.broken_conditions(), conditions, "{damage}: {report}");
        assert!(!report.passed());
        self.sql(repair).await;
    }
}

fn assert_clean(report: &Report) {
    assert!(
        report.errors.is_empty() && report.unknown_outcomes == 0,
        "{report}"
    );
    assert_eq!(report.stuck_terminals, 0);
    for kind in TransactionKind::ALL {
        let line = report.transaction(kind).unwrap();
        assert!(line.committed > 0, "{report}");
        assert!(line.p50_ms > 0.0 && line.p50_ms <= line.p99_ms && line.p99_ms <= line.max_ms);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mix_keeps_the_database_consistent_and_damage_is_found() {
    let fixture = Fixture::loaded(|load| load.foreign_keys = true).await;
    fixture.assert_sound().await;
    let report = tpcc::run(&fixture.run_options()).await.unwrap();
    assert_clean(&report);
    fixture.assert_sound().await;
    let acknowledged = fixture.check().await.ledger.unwrap().acknowledged;
    let counted = [TransactionKind::NewOrder, TransactionKind::Payment]
        .map(|kind| report.transaction(kind).unwrap().committed);
    assert!(
        acknowledged >= counted.iter().sum(),
        "{acknowledged} in the ledger, {report}"
    );

    every_condition_fails_alone(&fixture).await;
    fixture.assert_sound().await;
    the_ledger_misses_what_is_gone(&fixture).await;
}

/// For every condition one change that breaks it, with no other condition broken than those that must be.
async fn every_condition_fails_alone(fixture: &Fixture) {
    let update =
        |table: &str, change: &str, key: &str| format!("UPDATE {table} SET {change} WHERE {key}");
    // The payments say what the warehouse and the districts must hold.
    let (raise, lower) = ("w_ytd = w_ytd + 0.01", "w_ytd = w_ytd - 0.01");
    let of = |change| update("warehouse", change, "w_id = 2");
    fixture.assert_breaks(&of(raise), &of(lower), &[1, 8]).await;

    let of = |change| update("district", change, "d_w_id = 1 AND d_id = 3");
    fixture
        .assert_breaks(
            &of("d_next_o_id = d_next_o_id + 1"),
            &of("d_next_o_id = d_next_o_id - 1"),
            &[2],
        )
        .await;
    let move_ytd = |from: &str, to: &str| {
        format!(
            "UPDATE district SET d_ytd = d_ytd + 1 WHERE d_w_id = 1 AND d_id = {to};
             UPDATE district SET d_ytd = d_ytd - 1 WHERE d_w_id = 1 AND d_id = {from}"
        )
    };
    fixture
        .assert_breaks(&move_ytd("1", "2"), &move_ytd("2", "1"), &[9])
        .await;

    // A gap between the oldest and the newest new order, whose order was not delivered.
    let gap = "FROM new_order WHERE no_w_id = 1 AND no_d_id = 5 AND no_o_id = 280";
    fixture
        .sql(&format!("CREATE TEMP TABLE gap AS SELECT * {gap}"))
        .await;
    let refill = "INSERT INTO new_order SELECT * FROM gap";
    fixture
        .assert_breaks(&format!("DELETE {gap}"), refill, &[3, 5, 11])
        .await;

    let of = |change| update("orders", change, "o_w_id = 2 AND o_d_id = 7 AND o_id = 11");
    fixture
        .assert_breaks(
            &of("o_ol_cnt = o_ol_cnt + 1"),
            &of("o_ol_cnt = o_ol_cnt - 1"),
            &[4, 6],
        )
        .await;
    let exchange = |by: &str| {
        format!(
            "UPDATE orders SET o_ol_cnt = o_ol_cnt + {by} WHERE o_w_id = 2 AND o_d_id = 7 AND o_id = 11;
             UPDATE orders SET o_ol_cnt = o_ol_cnt - {by} WHERE o_w_id = 2 AND o_d_id = 7 AND o_id = 12"
        )
    };
    fixture
        .assert_breaks(&exchange("1"), &exchange("-1"), &[6])
        .await;

    let of = |change| update("orders", change, "o_w_id = 1 AND o_d_id = 2 AND o_id = 20");
    fixture
        .assert_breaks(&of("o_carrier_id = NULL"), &of("o_carrier_id = 4"), &[5, 7])
        .await;
    let line = "ol_w_id = 1 AND ol_d_id = 9 AND ol_o_id = 1 AND ol_number = 1";
    let of = |change| update("order_line", change, line);
    fixture
        .assert_breaks(
            &of("ol_delivery_d = NULL"),
            &of("ol_delivery_d = '2024-01-01'"),
            &[7],
        )
        .await;

    let customer = "c_w_id = 2 AND c_d_id = 4 AND c_id = 5";
    let of = |change| update("customer", change, customer);
    fixture
        .assert_breaks(
            &of("c_balance = c_balance + 1, c_ytd_payment = c_ytd_payment - 1"),
            &of("c_balance = c_balance - 1, c_ytd_payment = c_ytd_payment + 1"),
            &[10],
        )
        .await;
    fixture
        .assert_breaks(
            &of("c_ytd_payment = c_ytd_payment - 1"),
            &of("c_ytd_payment = c_ytd_payment + 1"),
            &[12],
        )
        .await;
    fixture
        .assert_breaks(
            &of("c_delivery_cnt = c_delivery_cnt + 1"),
            &of("c_delivery_cnt = c_delivery_cnt - 1"),
            &[11],
        )
        .await;
}

async fn the_ledger_misses_what_is_gone(fixture: &Fixture) {
    // The last order of a district is one of the run, not of the load.
    fixture
        .sql(
            "CREATE TEMP TABLE victim AS SELECT max(o_id) AS id FROM orders WHERE o_w_id = 1 AND o_d_id = 1;
             DELETE FROM order_line USING victim WHERE ol_w_id = 1 AND ol_d_id = 1 AND ol_o_id = id;
             DELETE FROM new_order USING victim WHERE no_w_id = 1 AND no_d_id = 1 AND no_o_id = id;
             DELETE FROM orders USING victim WHERE o_w_id = 1 AND o_d_id = 1 AND o_id = id;
             UPDATE district SET d_next_o_id = d_next_o_id - 1 WHERE d_w_id = 1 AND d_id = 1",
        )
        .await;
    let report = fixture.check().await;
    assert!(
        report.broken_conditions().is_empty(),
        "the loss of an order is consistent: {report}"
    );
    assert_eq!(report.ledger.as_ref().unwrap().violations, 1, "{report}");
    assert!(!report.passed());

    fixture
        .sql("INSERT INTO history SELECT * FROM history WHERE h_data LIKE 'tpcc-%' LIMIT 1")
        .await;
    assert_eq!(
        fixture.check().await.ledger.unwrap().violations,
        2,
        "a payment that is there twice"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn inserts_load_what_copy_loads() {
    let copied = Fixture::loaded(|load| load.method = LoadMethod::Copy).await;
    let inserted = Fixture::loaded(|load| load.method = LoadMethod::Insert).await;
    inserted.assert_sound().await;
    for table in [
        "warehouse",
        "district",
        "customer",
        "orders",
        "new_order",
        "order_line",
        "item",
        "stock",
    ] {
        // All but the time of the load.
        let query = format!(
            "SELECT count(*), md5(string_agg(regexp_replace(t::text, '\"\\d{{4}}-[^\"]*\"', ''), ';' \
             ORDER BY t)) FROM {table} t"
        );
        let (one, other) = (
            copied.client.query_one(&query, &[]).await,
            inserted.client.query_one(&query, &[]).await,
        );
        let content = |row: &tokio_postgres::Row| (row.get::<_, i64>(0), row.get::<_, String>(1));
        assert_eq!(content(&one.unwrap()), content(&other.unwrap()), "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serialization_failures_are_retried_and_counted() {
    let fixture = Fixture::loaded(|load| load.warehouses = 1).await;
    let options = RunOptions {
        isolation: Isolation::Serializable,
        ..fixture.run_options()
    };
    let report = tpcc::run(&options).await.unwrap();
    assert!(
        report.aborts.contains_key("40001"),
        "four terminals on one warehouse must meet: {report}"
    );
    assert_clean(&report);
    fixture.assert_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_server_is_survived_and_reported() {
    let mut fixture = Fixture::loaded(|load| load.warehouses = 1).await;
    let options = fixture.run_options();
    let running = tokio::spawn(async move { tpcc::run(&options).await });
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    fixture.server.restart();
    let report = running.await.unwrap().unwrap();
    assert!(
        !report.errors.is_empty() && report.reconnects >= 4,
        "{report}"
    );
    assert!(!report.error_samples.is_empty());
    assert!(
        report
            .committed_each_second
            .last()
            .is_some_and(|count| *count > 0),
        "{report}"
    );
    let check = fixture.check().await;
    assert!(check.passed(), "{check}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_database_is_kept_unless_asked() {
    let fixture = Fixture::loaded(|load| load.warehouses = 1).await;
    let load = LoadOptions {
        small: true,
        ..LoadOptions::new(fixture.server.dsn())
    };
    assert!(tpcc::load(&load, ProgressBar::hidden()).await.is_err());
    let again = LoadOptions { drop: true, ..load };
    tpcc::load(&again, ProgressBar::hidden()).await.unwrap();
    fixture.assert_sound().await;
}
