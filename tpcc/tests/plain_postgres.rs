//! The kit against a plain PostgreSQL: load, run, check; and the checks must find what is broken.

#![allow(clippy::unwrap_used)]

mod postgres_server;

use std::path::PathBuf;
use std::time::Duration;

use indicatif::ProgressBar;
use postgres_server::PostgresServer;
use tokio_postgres::{Client, NoTls};
use tpcc::{
    CheckOptions, CheckReport, Isolation, LoadMethod, LoadOptions, Protocol, Report, RunOptions, TransactionKind,
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
        Self { server, client, ledger }
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
    assert!(report.errors.is_empty() && report.unknown_outcomes == 0, "{report}");
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
    let counted =
        [TransactionKind::NewOrder, TransactionKind::Payment].map(|kind| report.transaction(kind).unwrap().committed);
    assert!(
        acknowledged >= counted.iter().sum(),
        "{acknowledged} in the ledger, {report}"
    );

    every_condition_notices_damage(&fixture).await;
    fixture.assert_sound().await;
    the_ledger_misses_what_is_gone(&fixture).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_with_literals_do_the_same() {
    let fixture = Fixture::loaded(|_| {}).await;
    let options = RunOptions {
        protocol: Protocol::Simple,
        ..fixture.run_options()
    };
    let report = tpcc::run(&options).await.unwrap();
    assert_clean(&report);
    fixture.assert_sound().await;
    assert!(report.statements > 10 * report.committed(), "{report}");
}

/// For every condition a change that breaks it, and no others than those that must break with it.
async fn every_condition_notices_damage(fixture: &Fixture) {
    // Damage, repair, and the conditions that are broken between the two.
    let cases: [(&str, &str, &[u32]); 11] = [
        (
            "UPDATE warehouse SET w_ytd = w_ytd + 0.01 WHERE w_id = 2",
            "UPDATE warehouse SET w_ytd = w_ytd - 0.01 WHERE w_id = 2",
            &[1, 8],
        ),
        (
            "UPDATE district SET d_ytd = d_ytd + (d_id - 1.5) WHERE d_w_id = 1 AND d_id IN (1, 2)",
            "UPDATE district SET d_ytd = d_ytd - (d_id - 1.5) WHERE d_w_id = 1 AND d_id IN (1, 2)",
            &[9],
        ),
        (
            "UPDATE district SET d_next_o_id = d_next_o_id + 1 WHERE d_w_id = 1 AND d_id = 3",
            "UPDATE district SET d_next_o_id = d_next_o_id - 1 WHERE d_w_id = 1 AND d_id = 3",
            &[2],
        ),
        (
            // Neither the first nor the last that is not delivered: how many are depends on how fast the machine is.
            "CREATE TEMPORARY TABLE gone AS SELECT * FROM new_order
             WHERE no_w_id = 1 AND no_d_id = 5 ORDER BY no_o_id OFFSET 1 LIMIT 1;
             DELETE FROM new_order USING gone
             WHERE (new_order.no_w_id, new_order.no_d_id, new_order.no_o_id) = (gone.no_w_id, gone.no_d_id, gone.no_o_id)",
            "INSERT INTO new_order SELECT * FROM gone; DROP TABLE gone",
            &[3, 5, 11],
        ),
        (
            "UPDATE orders SET o_ol_cnt = o_ol_cnt + 1 WHERE o_w_id = 2 AND o_d_id = 7 AND o_id = 11",
            "UPDATE orders SET o_ol_cnt = o_ol_cnt - 1 WHERE o_w_id = 2 AND o_d_id = 7 AND o_id = 11",
            &[4, 6],
        ),
        (
            "UPDATE orders SET o_ol_cnt = o_ol_cnt + 2 * o_id - 23
             WHERE o_w_id = 2 AND o_d_id = 7 AND o_id IN (11, 12)",
            "UPDATE orders SET o_ol_cnt = o_ol_cnt - 2 * o_id + 23
             WHERE o_w_id = 2 AND o_d_id = 7 AND o_id IN (11, 12)",
            &[6],
        ),
        (
            "UPDATE orders SET o_carrier_id = NULL WHERE o_w_id = 1 AND o_d_id = 2 AND o_id = 20",
            "UPDATE orders SET o_carrier_id = 4 WHERE o_w_id = 1 AND o_d_id = 2 AND o_id = 20",
            &[5, 7],
        ),
        (
            "UPDATE order_line SET ol_delivery_d = NULL
             WHERE ol_w_id = 1 AND ol_d_id = 9 AND ol_o_id = 1 AND ol_number = 1",
            "UPDATE order_line SET ol_delivery_d = '2024-01-01'
             WHERE ol_w_id = 1 AND ol_d_id = 9 AND ol_o_id = 1 AND ol_number = 1",
            &[7],
        ),
        (
            "UPDATE customer SET c_balance = c_balance + 1, c_ytd_payment = c_ytd_payment - 1
             WHERE c_w_id = 2 AND c_d_id = 4 AND c_id = 5",
            "UPDATE customer SET c_balance = c_balance - 1, c_ytd_payment = c_ytd_payment + 1
             WHERE c_w_id = 2 AND c_d_id = 4 AND c_id = 5",
            &[10],
        ),
        (
            "UPDATE customer SET c_delivery_cnt = c_delivery_cnt + 1
             WHERE c_w_id = 2 AND c_d_id = 4 AND c_id = 5",
            "UPDATE customer SET c_delivery_cnt = c_delivery_cnt - 1
             WHERE c_w_id = 2 AND c_d_id = 4 AND c_id = 5",
            &[11],
        ),
        (
            "UPDATE customer SET c_ytd_payment = c_ytd_payment - 1
             WHERE c_w_id = 2 AND c_d_id = 4 AND c_id = 5",
            "UPDATE customer SET c_ytd_payment = c_ytd_payment + 1
             WHERE c_w_id = 2 AND c_d_id = 4 AND c_id = 5",
            &[12],
        ),
    ];
    for (damage, repair, conditions) in cases {
        fixture.assert_breaks(damage, repair, conditions).await;
    }
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
    assert!(!report.errors.is_empty() && report.reconnects >= 4, "{report}");
    assert!(!report.error_samples.is_empty());
    assert!(
        report.committed_each_second.last().is_some_and(|count| *count > 0),
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

/// With row-level security a plain PostgreSQL refuses COPY with SQLSTATE 0A000.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_copy_is_loaded_by_inserts() {
    let server = PostgresServer::start();
    let (client, connection) = tokio_postgres::connect(server.dsn(), NoTls).await.unwrap();
    tokio::spawn(connection);
    let setup = "
        CREATE ROLE application LOGIN;
        GRANT ALL ON SCHEMA public TO application;
        CREATE FUNCTION secure_tables() RETURNS event_trigger LANGUAGE plpgsql AS $$
        DECLARE name text;
        BEGIN
            FOR name IN SELECT object_identity FROM pg_event_trigger_ddl_commands()
                WHERE command_tag = 'CREATE TABLE' AND object_type = 'table' LOOP
                EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', name);
                EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', name);
                EXECUTE format('CREATE POLICY everything ON %s USING (true)', name);
            END LOOP;
        END $$;
        CREATE EVENT TRIGGER secure_tables ON ddl_command_end WHEN TAG IN ('CREATE TABLE')
            EXECUTE FUNCTION secure_tables();";
    client.batch_execute(setup).await.unwrap();
    let dsn = server.dsn().replace("user=postgres", "user=application");

    let copy = LoadOptions {
        small: true,
        method: LoadMethod::Copy,
        ..LoadOptions::new(&dsn)
    };
    let refusal = tpcc::load(&copy, ProgressBar::hidden()).await.unwrap_err().to_string();
    assert!(refusal.contains("0A000"), "{refusal}");
    let auto = LoadOptions {
        method: LoadMethod::Auto,
        drop: true,
        ..copy
    };
    tpcc::load(&auto, ProgressBar::hidden()).await.unwrap();
    assert!(tpcc::check(&CheckOptions::new(&dsn)).await.unwrap().passed());
}
