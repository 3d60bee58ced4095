//! psql through the proxy.

use std::process::Command;

use tests::cluster::{Cluster, binary, text};

#[test]
fn psql_runs_ddl_dml_transactions_and_backslash_commands() {
    let cluster = Cluster::up(&[]);
    cluster.psql("CREATE TABLE account (id int PRIMARY KEY, owner text NOT NULL, balance numeric(12,2) NOT NULL);");
    cluster.psql("INSERT INTO account VALUES (1, 'ada', 100), (2, 'bob', 50);");
    assert_eq!(
        cluster.psql("SELECT owner, balance FROM account ORDER BY id;"),
        "ada|100.00\nbob|50.00\n"
    );

    cluster.psql(
        "BEGIN;
         UPDATE account SET balance = balance - 30 WHERE id = 1;
         SAVEPOINT before;
         UPDATE account SET balance = balance + 999 WHERE id = 2;
         ROLLBACK TO before;
         UPDATE account SET balance = balance + 30 WHERE id = 2;
         COMMIT;",
    );
    assert_eq!(
        cluster.psql("SELECT balance FROM account ORDER BY id;"),
        "70.00\n80.00\n"
    );

    cluster.psql("BEGIN; DELETE FROM account; ROLLBACK;");
    assert_eq!(cluster.psql("SELECT count(*) FROM account;"), "2\n");

    // Without headings and footers psql leaves the indexes out.
    let described = cluster.psql("\\t off\n\\d account");
    assert!(described.contains("balance|numeric(12,2)||not null|"), "{described}");
    assert!(
        described.contains("\"account_pkey\" PRIMARY KEY, btree (id)"),
        "{described}"
    );
    let tables = cluster.psql("\\dt");
    assert!(tables.contains("public|account|table|"), "{tables}");
    assert!(cluster.psql("\\timing on\nSELECT 1;").contains("Time: "));
    cluster.assert_equal();

    // A command whose reader has left ends without a word.
    let (program, directory) = (binary(), cluster.directory());
    let status = format!("{} status --dir {} | true", program.display(), directory.display());
    let output = Command::new("sh").args(["-c", &status]).output().expect("sh");
    assert!(output.stderr.is_empty(), "{}", text(&output));
}

#[test]
fn errors_reach_psql_as_postgres_gives_them() {
    let cluster = Cluster::up(&[]);
    let error = |statement: &str| {
        let output = cluster.psql_output(&format!("\\set VERBOSITY verbose\n{statement}\n"));
        assert!(!output.status.success(), "{statement} succeeded: {}", text(&output));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let missing = error("SELECT missing_column FROM pg_class;");
    assert!(
        missing.contains("ERROR:  42703: column \"missing_column\" does not exist"),
        "{missing}"
    );
    assert!(
        missing.contains("LINE 1: SELECT missing_column FROM pg_class;"),
        "{missing}"
    );
    assert!(missing.contains("               ^"), "{missing}");
    let syntax = error("SELEKT 1;");
    assert!(
        syntax.contains("ERROR:  42601: syntax error at or near \"SELEKT\""),
        "{syntax}"
    );

    cluster.psql("CREATE TABLE unique_value (id int PRIMARY KEY); INSERT INTO unique_value VALUES (7);");
    let duplicate = error("INSERT INTO unique_value VALUES (7);");
    assert!(duplicate.contains("ERROR:  23505"), "{duplicate}");
    assert!(
        duplicate.contains("DETAIL:  Key (id)=(7) already exists."),
        "{duplicate}"
    );
    assert!(duplicate.contains("CONSTRAINT NAME:  unique_value_pkey"), "{duplicate}");

    let failed = error("BEGIN; SELECT 1/0;\n\\unset ON_ERROR_STOP\nSELECT 1;");
    assert!(failed.contains("22012: division by zero"), "{failed}");
    cluster.assert_equal();
}

#[test]
fn a_stopped_cluster_resumes_with_its_data() {
    let mut cluster = Cluster::up(&[]);
    cluster.psql("CREATE TABLE kept (id int PRIMARY KEY, at timestamptz DEFAULT now());");
    cluster.psql("INSERT INTO kept (id) VALUES (1), (2);");
    cluster.stop();
    cluster.resume();
    cluster.psql("INSERT INTO kept (id) VALUES (3);");
    assert_eq!(cluster.psql("SELECT count(*), count(at) FROM kept;"), "3|3\n");
    cluster.assert_equal();
}

#[test]
fn verify_finds_a_row_that_was_changed_behind_the_clusters_back() {
    let cluster = Cluster::up(&[]);
    cluster.psql("CREATE TABLE money (id int PRIMARY KEY, amount int); INSERT INTO money VALUES (1, 10), (2, 20);");
    cluster.assert_equal();
    cluster.behind_the_back("m2", "UPDATE money SET amount = 21 WHERE id = 2");
    let output = cluster.command_on_directory("verify", &[]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("money"),
        "{}",
        text(&output)
    );
    // The application still gets the majority's answer.
    assert_eq!(cluster.psql("SELECT amount FROM money ORDER BY id;"), "10\n20\n");
}
