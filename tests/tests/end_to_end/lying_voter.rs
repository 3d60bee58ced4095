//! A voter that alters a value in every result: a test build of the binary.

use std::path::PathBuf;
use std::process::Command;

use tests::cluster::{Cluster, text};

/// Builds `cloudbft` with the voter's feature `lying-voter`: the machine named by `CLOUDBFT_LIAR` lies.
fn lying_binary() -> PathBuf {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let target = tests::cluster::binary()
        .ancestors()
        .nth(2)
        .expect("target/<profile>/cloudbft")
        .join("lying");
    let built = Command::new(env!("CARGO"))
        .current_dir(root)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--bin",
            "cloudbft",
            "--features",
            "lying-voter",
            "--target-dir",
        ])
        .arg(&target)
        .output()
        .expect("cargo runs");
    assert!(built.status.success(), "{}", text(&built));
    target.join("debug/cloudbft")
}

#[test]
fn a_value_that_one_voter_made_up_never_reaches_an_application() {
    let binary = lying_binary();
    for liar in ["m1", "m2", "m3"] {
        let cluster = Cluster::up_with(binary.clone(), &["--lying-voter", liar]);
        cluster.psql("CREATE TABLE truth (id int PRIMARY KEY, value text);");
        cluster.psql("INSERT INTO truth SELECT i, 'value ' || i FROM generate_series(1, 50) AS i;");
        for id in 1..=20 {
            let value = cluster.psql(&format!("SELECT value FROM truth WHERE id = {id};"));
            assert_eq!(value, format!("value {id}\n"), "liar {liar}");
        }
        let returned = cluster.psql("BEGIN; UPDATE truth SET value = 'new' WHERE id = 1 RETURNING value; COMMIT;");
        assert_eq!(returned, "new\n", "liar {liar}");
        // The lie did happen: the liar's results lost votes.
        let mismatches = cluster.command_on_directory("status", &["--json"]);
        println!("{}", text(&mismatches));
    }
}
