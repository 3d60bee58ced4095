//! What a voter makes of its server's roles, privileges and settings when it starts: nothing that an application's role runs,
//! not even SQL that is built at run time, may tell servers or backends apart.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[allow(dead_code, reason = "other tests use more of it")]
#[path = "voter/server.rs"]
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output};

use ed25519_dalek::SigningKey;
use ordering::identifiers::{ClientId, MachineId};
use postgres_protocol::message::frontend;
use sql::rules::PartitionRules;
use voter::postgres::PostgresError;
use voter::postgres::bootstrap::Bookkeeper;
use voter::postgres::connection::{Connection, PINNED_SETTINGS};
use voter::{BodyLimits, BodyStore, VoterConfig, VoterLimits};

use server::{APPLICATION, Server};

const BINARIES: &str = "/usr/lib/postgresql/15/bin";

fn config(server: &Server) -> VoterConfig {
    VoterConfig {
        machine: MachineId(1),
        faults: 1,
        replicas: 1..4,
        groups: 1,
        rules: PartitionRules::default(),
        postgres: server.config(),
        signing_key: SigningKey::from_bytes(&[1; 32]),
        voter_keys: BTreeMap::new(),
        node_clients: BTreeMap::new(),
        client_roles: BTreeMap::from([(ClientId(0), BTreeSet::from([APPLICATION.to_owned()]))]),
        compare_effects: false,
        limits: VoterLimits::default(),
        spool: spool::SpoolDirectory::new(std::env::temp_dir(), 0),
        bodies: bodies(),
    }
}

/// A store that is not used.
fn bodies() -> BodyStore {
    let directory = tempfile::tempdir().unwrap();
    let limits = BodyLimits {
        client_bytes_max: 0,
        transaction_bytes_max: 0,
    };
    BodyStore::open(directory.path().join("bodies"), limits, [], 1).unwrap()
}

async fn start() -> Server {
    tokio::task::spawn_blocking(Server::start).await.unwrap()
}

async fn bootstrap(server: &Server) -> Result<(), PostgresError> {
    let config = config(server);
    let mut bookkeeper = Bookkeeper::open(&config).await?;
    bookkeeper.bootstrap(&config).await.map(|_| ())
}

/// Why a voter does not serve the server.
async fn unfit(server: &Server) -> String {
    match bootstrap(server).await {
        Err(PostgresError::Unfit(reason)) => reason,
        other => panic!("not unfit: {other:?}"),
    }
}

/// A program of PostgreSQL, as the application's role.
fn application(server: &Server, program: &str, arguments: &[&str]) -> Output {
    let config = server.config();
    Command::new(format!("{BINARIES}/{program}"))
        .arg("-h")
        .arg(&config.socket_directory)
        .args([
            "-p",
            &config.port.to_string(),
            "-U",
            APPLICATION,
            "-d",
            &config.database,
        ])
        .args(arguments)
        .output()
        .unwrap()
}

/// What psql prints, or the SQLSTATE.
fn run(server: &Server, text: &str) -> Result<String, String> {
    let output = application(
        server,
        "psql",
        &["-XqAt", "-v", "VERBOSITY=sqlstate", "-v", "ON_ERROR_STOP=1", "-c", text],
    );
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(words(&output.stdout))
    } else {
        Err(words(&output.stderr).rsplit(' ').next().unwrap_or_default().to_owned())
    }
}

fn refused(server: &Server, text: &str) {
    assert_eq!(run(server, text), Err("42501".into()), "{text}");
}

/// The first column of what a query gives.
async fn ask(connection: &mut Connection, text: &str) -> Vec<String> {
    frontend::query(text, connection.outgoing()).unwrap();
    let mut answers = Vec::new();
    loop {
        let message = connection.message().await.unwrap();
        match message.tag {
            b'D' => answers.push(String::from_utf8_lossy(&message.body()[6..]).into_owned()),
            b'E' => panic!("{}", String::from_utf8_lossy(message.body())),
            b'Z' => return answers,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_that_is_built_at_run_time_reaches_no_facts_of_the_server_and_no_other_backend() {
    let server = start().await;
    bootstrap(&server).await.unwrap();
    for call in [
        "pg_terminate_backend(1)",
        "pg_cancel_backend(1)",
        "pg_advisory_lock(1)",
        "pg_advisory_lock(1, 2)",
        "pg_try_advisory_lock_shared(1)",
        "pg_export_snapshot()",
        "pg_backend_pid()",
        "pg_current_xact_id()",
        "txid_current()",
        "age('3'::xid)",
        "pg_postmaster_start_time()",
        "pg_conf_load_time()",
        "pg_current_wal_lsn()",
        "pg_relation_filenode('pg_class')",
        "pg_stat_get_live_tuples(1)",
        "(pg_control_system()).system_identifier",
    ] {
        refused(&server, &format!("DO $do$ BEGIN EXECUTE $$SELECT {call}$$; END $do$"));
        let quoted = call.replace('\'', "''");
        let function = format!(
            "CREATE OR REPLACE FUNCTION public.reach() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS \
             $f$ BEGIN EXECUTE 'SELECT {quoted}'; END $f$"
        );
        run(&server, &function).unwrap();
        refused(&server, "SELECT public.reach()");
    }
    for view in [
        "pg_stat_activity",
        "pg_locks",
        "pg_prepared_statements",
        "pg_stat_user_tables",
    ] {
        refused(
            &server,
            &format!("DO $do$ BEGIN EXECUTE 'SELECT count(v::text) FROM {view} v'; END $do$"),
        );
    }
    for harmless in [
        "SELECT pg_advisory_xact_lock(1), pg_advisory_unlock_all()",
        "SELECT version(), pg_is_in_recovery(), age(now(), now()), pg_table_size('pg_class')",
        "SELECT count(*) FROM pg_settings",
        "SELECT count(*) FROM information_schema.tables",
        "SELECT count(*) FROM pg_sequences",
    ] {
        run(&server, harmless).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_and_pg_dump_find_what_they_need_and_no_trace_of_the_voter() {
    let server = start().await;
    run(
        &server,
        "CREATE TABLE kept (id serial PRIMARY KEY, name text); CREATE VIEW seen AS SELECT name FROM kept",
    )
    .unwrap();
    let before = application(&server, "pg_dump", &["-s", "-N", "cloudbft"]);
    bootstrap(&server).await.unwrap();
    for command in [
        "\\d",
        "\\d+ kept",
        "\\dt+",
        "\\df",
        "\\dn+",
        "\\du",
        "\\l",
        "\\dp",
        "\\dx",
        "\\ds",
        "\\dv",
    ] {
        let output = application(&server, "psql", &["-X", "-v", "ON_ERROR_STOP=1", "-c", command]);
        assert!(
            output.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let after = application(&server, "pg_dump", &["-s", "-N", "cloudbft"]);
    // Each dump has a key of its own against hostile names.
    let text = |output: &Output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().filter(|line| !line.contains("restrict "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(after.status.success(), "{}", String::from_utf8_lossy(&after.stderr));
    assert_eq!(text(&after), text(&before));
    let whole = application(&server, "pg_dump", &["-N", "cloudbft"]);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_no_temporary_tables() {
    let server = start().await;
    server.psql(
        "test",
        "GRANT TEMPORARY ON DATABASE test TO application WITH GRANT OPTION",
    );
    run(&server, "CREATE TEMP TABLE shadow (id int)").unwrap();
    bootstrap(&server).await.unwrap();
    refused(&server, "CREATE TEMP TABLE shadow (id int)");
    refused(&server, "CREATE TABLE pg_temp.shadow (id int)");
    refused(
        &server,
        "DO $$ BEGIN EXECUTE 'CREATE TEMP TABLE shadow (id int)'; END $$",
    );
    let granted = "SELECT has_database_privilege('application', 'test', 'TEMPORARY')";
    let _ = run(&server, "GRANT TEMPORARY ON DATABASE test TO application");
    assert_eq!(server.psql("test", granted), "f");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_the_application_owned_is_taken_over_and_it_keeps_what_it_needs() {
    let server = start().await;
    server.psql("postgres", "ALTER DATABASE test OWNER TO application");
    server.psql("test", "REVOKE ALL ON SCHEMA public FROM application");
    run(&server, "CREATE TABLE kept (id int)").unwrap();
    for _ in 0..2 {
        bootstrap(&server).await.unwrap();
    }
    let owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'test'";
    assert_eq!(server.psql("test", owner), "postgres");
    run(
        &server,
        "CREATE TABLE public.more (id int); CREATE SCHEMA other; CREATE TABLE other.more (id int)",
    )
    .unwrap();
    run(&server, "CREATE EXTENSION citext").unwrap();
    run(
        &server,
        "INSERT INTO kept VALUES (1); ALTER TABLE kept ADD v int; GRANT USAGE, CREATE ON SCHEMA public TO PUBLIC",
    )
    .unwrap();
    // As tools for migrations begin anew.
    run(
        &server,
        "DROP SCHEMA public CASCADE; CREATE SCHEMA public; CREATE TABLE kept (id int)",
    )
    .unwrap();
    refused(&server, "ALTER DATABASE test SET search_path = other");
    refused(&server, "CREATE TEMP TABLE shadow (id int)");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_could_change_the_server_is_refused() {
    let server = start().await;
    server.psql("postgres", "CREATE ROLE boss SUPERUSER");
    for (power, less) in [
        ("ALTER ROLE application SUPERUSER", "ALTER ROLE application NOSUPERUSER"),
        (
            "ALTER ROLE application CREATEROLE",
            "ALTER ROLE application NOCREATEROLE",
        ),
        (
            "ALTER ROLE application REPLICATION",
            "ALTER ROLE application NOREPLICATION",
        ),
        ("ALTER ROLE application BYPASSRLS", "ALTER ROLE application NOBYPASSRLS"),
        ("GRANT boss TO application", "REVOKE boss FROM application"),
        (
            "GRANT pg_read_server_files TO application",
            "REVOKE pg_read_server_files FROM application",
        ),
    ] {
        server.psql("postgres", power);
        let reason = unfit(&server).await;
        assert!(reason.ends_with(&format!("run {less}")), "{reason}");
        server.psql("postgres", less);
        bootstrap(&server).await.unwrap();
    }
}

/// What a role can attach to itself, and would change what its statements mean, whether they run at all, or the order of
/// their rows.
const ATTACHED: &[(&str, &str)] = &[
    ("search_path", "other, public"),
    ("role", "'other'"),
    ("idle_session_timeout", "'1ms'"),
    ("idle_in_transaction_session_timeout", "'1ms'"),
    ("statement_timeout", "'1ms'"),
    ("lock_timeout", "'1ms'"),
    ("exit_on_error", "on"),
    ("local_preload_libraries", "'missing'"),
    ("standard_conforming_strings", "off"),
    ("escape_string_warning", "off"),
    ("backslash_quote", "'on'"),
    ("array_nulls", "off"),
    ("transform_null_equals", "on"),
    ("default_transaction_isolation", "'serializable'"),
    ("default_transaction_deferrable", "on"),
    ("row_security", "off"),
    ("check_function_bodies", "off"),
    ("gin_fuzzy_search_limit", "3"),
    ("client_min_messages", "'error'"),
    ("quote_all_identifiers", "on"),
    ("default_tablespace", "'pg_default'"),
    ("temp_tablespaces", "'pg_default'"),
    ("default_text_search_config", "'pg_catalog.german'"),
    ("TimeZone", "'Asia/Tokyo'"),
    ("timezone_abbreviations", "'India'"),
    ("DateStyle", "'German'"),
    ("IntervalStyle", "'iso_8601'"),
    ("extra_float_digits", "0"),
    ("bytea_output", "'escape'"),
    ("xmlbinary", "'hex'"),
    ("xmloption", "'document'"),
    ("lc_numeric", "'C.UTF-8'"),
    ("lc_time", "'C.UTF-8'"),
    ("lc_monetary", "'C.UTF-8'"),
    ("jit", "on"),
    ("synchronize_seqscans", "on"),
    ("max_parallel_workers_per_gather", "3"),
    ("enable_seqscan", "off"),
    ("enable_hashagg", "off"),
    ("enable_partitionwise_join", "on"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_a_role_attaches_to_itself_does_not_count() {
    let server = start().await;
    server.psql("postgres", "CREATE ROLE other; GRANT other TO application");
    bootstrap(&server).await.unwrap();
    let config = server.config();
    let shown = async || {
        let mut connection = Connection::open(&config, APPLICATION, &[], 1 << 20).await.unwrap();
        let mut shown = Vec::new();
        for change in ["", "SET search_path = other; SET role = other; RESET ROLE; RESET ALL"] {
            ask(&mut connection, change).await;
            shown.push(("current_user", ask(&mut connection, "SELECT current_user").await));
            for (name, _) in ATTACHED {
                shown.push((*name, ask(&mut connection, &format!("SHOW {name}")).await));
            }
        }
        shown
    };
    let before = shown().await;
    for (name, value) in ATTACHED {
        for whose in ["ROLE application", "DATABASE test", "ROLE application IN DATABASE test"] {
            server.psql("postgres", &format!("ALTER {whose} SET {name} = {value}"));
        }
    }
    bootstrap(&server).await.unwrap();
    assert_eq!(shown().await, before);
    for (name, value) in PINNED_SETTINGS {
        if let Some((_, shown)) = before.iter().find(|(shown, _)| shown == name) {
            assert_eq!(shown, &[*value], "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_beside_the_pins_count_more_than_they() {
    let server = start().await;
    let extra = [("search_path", "pg_catalog"), ("default_transaction_read_only", "on")];
    let mut connection = Connection::open(&server.config(), APPLICATION, &extra, 1 << 20)
        .await
        .unwrap();
    assert_eq!(ask(&mut connection, "SHOW search_path").await, ["pg_catalog"]);
    assert_eq!(ask(&mut connection, "SHOW default_transaction_read_only").await, ["on"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_pinned_must_not_be_attached() {
    let server = start().await;
    server.psql(
        "postgres",
        "ALTER ROLE application SET session_replication_role = replica",
    );
    let reason = unfit(&server).await;
    assert!(
        reason.contains("the role application") && reason.contains("session_replication_role"),
        "{reason}"
    );
    server.psql("postgres", "ALTER ROLE application RESET session_replication_role");
    server.psql("postgres", "ALTER ROLE application SET work_mem = '8MB'; CREATE ROLE other; ALTER ROLE other SET session_replication_role = replica");
    bootstrap(&server).await.unwrap();
}
