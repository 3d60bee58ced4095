//! Against a real PostgreSQL: the catalog query, and the functions that stand in for clocks and random sources.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sql::analysis::Analyzer;
use sql::determinism::FUNCTIONS_SQL;
use sql::schema::{CATALOG_QUERY, Schema};

const BINARIES: &str = "/usr/lib/postgresql/15/bin";

/// A PostgreSQL server of its own, reached through a socket in a directory of its own.
struct Server {
    directory: PathBuf,
    process: Child,
}

impl Server {
    fn start(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("cbsql-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).expect("a directory");
        let account = account();
        if let Some((user, group)) = account {
            std::os::unix::fs::chown(&directory, Some(user), Some(group)).expect("chown");
        }
        let data = directory.join("data");
        let mut command = program("initdb", account);
        command
            .args([
                "--locale=C",
                "-E",
                "UTF8",
                "-A",
                "trust",
                "-U",
                "postgres",
                "--no-sync",
                "-D",
            ])
            .arg(&data);
        assert!(command.stdout(Stdio::null()).status().expect("initdb runs").success());
        let mut command = program("postgres", account);
        command
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-k"])
            .arg(&directory);
        let process = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("postgres runs");
        let server = Self { directory, process };
        server.wait();
        server
    }

    fn wait(&self) {
        for _ in 0..300 {
            let mut command = program("psql", None);
            let command = command
                .args(["-U", "postgres", "-c", ""])
                .arg("-h")
                .arg(&self.directory);
            if command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
            {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("PostgreSQL did not start");
    }

    /// Runs a script in one session; rows without headers, columns by `|`.
    fn run(&self, database: &str, options: &[&str], script: &str) -> String {
        let file = self.directory.join("script.sql");
        std::fs::write(&file, script).expect("a script");
        let mut command = program("psql", None);
        command.args([
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "postgres",
            "-d",
            database,
            "-h",
        ]);
        let output = command
            .arg(&self.directory)
            .args(options)
            .arg("-f")
            .arg(&file)
            .output()
            .expect("psql runs");
        assert!(
            output.status.success(),
            "{}\n{script}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("kill")
            .args(["-INT", &self.process.id().to_string()])
            .status();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// The account that PostgreSQL runs under: it refuses root.
fn account() -> Option<(u32, u32)> {
    let id = |option| {
        let output = Command::new("id").args([option, "postgres"]).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse::<u32>().ok()
    };
    let own = Command::new("id").arg("-u").output().ok()?;
    let is_root = own.stdout.starts_with(b"0\n");
    is_root.then(|| Some((id("-u")?, id("-g")?))).flatten()
}

fn program(name: &str, account: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(Path::new(BINARIES).join(name));
    if let Some((user, group)) = account {
        command.uid(user).gid(group);
    }
    command
}

const SETTINGS: &str =
    "SET TimeZone = 'Europe/Berlin'; SET cloudbft.time_us = '1732323961000001'; SET cloudbft.seed = 'ab12';\n";

#[test]
fn the_catalog_and_the_functions() {
    let server = Server::start("catalog");
    server.run("postgres", &[], "CREATE DATABASE one; CREATE DATABASE two;");
    let tables = include_str!("fixtures/schema.sql");
    server.run("one", &[], &format!("{FUNCTIONS_SQL}{tables}"));
    // Other OIDs, and functions made twice.
    let before = "CREATE TABLE gone (); DROP TABLE gone;";
    server.run("two", &[], &format!("{before}{FUNCTIONS_SQL}{FUNCTIONS_SQL}{tables}"));
    let rows = server.run("one", &["-At"], CATALOG_QUERY);
    assert_eq!(
        rows,
        server.run("two", &["-At"], CATALOG_QUERY),
        "no OID enters the catalog"
    );
    assert_eq!(
        rows,
        common::CATALOG,
        "the fixture is what PostgreSQL says; write it again when the query changes"
    );

    let schema = Schema::parse(rows.lines(), &common::rules()).expect("parses");
    let analyzer = Analyzer::new(std::sync::Arc::new(schema));
    columns_keep_names_and_types(&server, &analyzer);
    clocks_are_exact(&server);
    draws_repeat(&server);
    ddl_stores_the_replacements(&server, &analyzer);
}

/// Rows that the nodes of a plan produced or threw away.
fn work(plan: &serde_json::Value) -> f64 {
    let number = |name: &str| plan[name].as_f64().unwrap_or(0.0);
    let rows = ["Actual Rows", "Rows Removed by Filter", "Rows Removed by Join Filter"];
    let own = rows.into_iter().map(number).sum::<f64>() * number("Actual Loops");
    own + plan["Plans"]
        .as_array()
        .map_or(0.0, |plans| plans.iter().map(work).sum())
}

#[test]
fn the_cost_of_the_catalog_does_not_grow_with_the_square_of_the_tables() {
    let server = Server::start("growth");
    server.run("postgres", &[], "CREATE TABLE first (id int PRIMARY KEY)");
    let mut costs = Vec::new();
    for round in 0..2 {
        let tables: String = (0..200)
            .map(|n| {
                format!(
                    "CREATE TABLE t_{round}_{n} (id serial PRIMARY KEY, note text DEFAULT 'x', first int REFERENCES first, \
                     number int GENERATED ALWAYS AS IDENTITY, CHECK (number > 0));\n"
                )
            })
            .collect();
        server.run("postgres", &[], &tables);
        let explained = format!("EXPLAIN (ANALYZE, TIMING OFF, COSTS OFF, FORMAT JSON) {CATALOG_QUERY}");
        let plan = server.run("postgres", &["-At"], &explained);
        let plan: serde_json::Value = serde_json::from_str(&plan).expect("JSON");
        costs.push(work(&plan[0]["Plan"]));
    }
    assert!(costs[0] > 1000.0 && costs[1] < 2.5 * costs[0], "{costs:?} rows");
}

/// The executable text gives columns of the same names and types as the text itself.
fn columns_keep_names_and_types(server: &Server, analyzer: &Analyzer) {
    for expression in [
        "now()",
        "NOW ( )",
        "pg_catalog.now()",
        "transaction_timestamp()",
        "statement_timestamp()",
        "clock_timestamp()",
        "timeofday()",
        "CURRENT_TIMESTAMP",
        "current_timestamp(3)",
        "CURRENT_DATE",
        "current_time",
        "current_time(1)",
        "localtime",
        "localtime(2)",
        "LOCALTIMESTAMP",
        "localtimestamp(0)",
        "random()",
        "gen_random_uuid()",
        "age(timestamp '2020-01-01')",
        "age('2020-01-01'::timestamptz)",
        "'now'::timestamp",
        "'today'::date",
        "cast('yesterday' as timestamptz)",
        "timestamp(3) with time zone 'tomorrow'",
        "date 'today'",
        "time 'now'",
    ] {
        let text = format!("SELECT {expression}");
        let executable = analyzer.text(&text).executable().to_owned();
        assert_ne!(text, executable);
        let described = |query: &str| {
            let script = format!("{SETTINGS}{query} \\gdesc");
            server.run("one", &["-At"], &script)
        };
        assert_eq!(described(&text), described(&executable), "{executable}");
        // It runs.
        server.run("one", &["-At"], &format!("{SETTINGS}{executable}"));
    }
}

fn clocks_are_exact(server: &Server) {
    for time_us in [1_732_323_961_999_999_i64, 0, 1, 4_102_444_799_000_001] {
        let script =
            format!("SET cloudbft.time_us = '{time_us}'; SELECT extract(epoch FROM cloudbft.now()) * 1000000;");
        let found = server.run("one", &["-At"], &script);
        assert_eq!(found.trim(), format!("{time_us}.000000"));
    }
    let script = format!(
        "{SETTINGS} SELECT cloudbft.now(), cloudbft.\"current_date\"(), cloudbft.moment('tomorrow'), cloudbft.\"localtime\"()::time(0)"
    );
    let found = server.run("one", &["-At"], &script);
    assert_eq!(
        found.trim(),
        "2024-11-23 02:06:01.000001+01|2024-11-23|2024-11-24 00:00:00+01|02:06:01"
    );
}

fn draws_repeat(server: &Server) {
    let draws = "SELECT cloudbft.random(), cloudbft.random(), cloudbft.gen_random_uuid();";
    let seeded = |seed: &str, first: &str| {
        let script = format!("BEGIN; {first} SET LOCAL cloudbft.seed = '{seed}'; {draws} COMMIT;");
        server.run("one", &["-At"], &script)
    };
    let once = seeded("a1", "");
    assert_eq!(once, seeded("a1", ""));
    assert_ne!(once, seeded("a2", ""));
    let (numbers, uuid) = once.trim().rsplit_once('|').expect("three columns");
    let (first, second) = numbers.split_once('|').expect("two numbers");
    assert_ne!(first, second);
    assert!(first.parse::<f64>().is_ok_and(|number| (0.0..1.0).contains(&number)));
    assert_eq!(uuid.as_bytes()[14], b'4');
    // A read that only some servers ran, under a seed of its own, does not shift the draws.
    let other = "SET LOCAL cloudbft.seed = 'read'; DO 'BEGIN PERFORM cloudbft.random(); END';";
    assert_eq!(once, seeded("a1", other));
}

fn ddl_stores_the_replacements(server: &Server, analyzer: &Analyzer) {
    let text = "CREATE TABLE made (id int PRIMARY KEY, at timestamptz DEFAULT now(), on_day date DEFAULT CURRENT_DATE, key uuid DEFAULT gen_random_uuid());
        CREATE FUNCTION made_at() RETURNS timestamptz LANGUAGE sql AS 'SELECT ''now''::timestamptz';
        CREATE INDEX CONCURRENTLY made_on ON made (on_day);
        BEGIN; DROP INDEX CONCURRENTLY made_on; COMMIT";
    server.run("two", &[], analyzer.text(text).executable());
    let script = format!("{SETTINGS} INSERT INTO made VALUES (1); SELECT at, on_day, made_at() FROM made;");
    assert_eq!(
        server.run("two", &["-At"], &script).trim(),
        "2024-11-23 02:06:01.000001+01|2024-11-23|2024-11-23 02:06:01.000001+01"
    );
    let rows = server.run("two", &["-At"], CATALOG_QUERY);
    let schema = Schema::parse(rows.lines(), &common::rules()).expect("parses");
    let analyzer = Analyzer::new(std::sync::Arc::new(schema));
    let insert = common::simple(&analyzer, "INSERT INTO made VALUES (2)").expect("passes");
    assert!(insert.needs_clock);
    assert_eq!(
        insert.footprint.to_string(),
        common::buckets("{row:public.made#[2] exclusive}")
    );
}
