//! A voter that alters a value in every result: a test build of the binary.

use tests::cluster::{Cluster, lying_binary};

#[test]
fn a_value_that_one_voter_made_up_never_reaches_an_application() {
    let binary = lying_binary();
    for liar in ["m1", "m2", "m3"] {
        let cluster = Cluster::up(&["--node-program", &format!("{liar}={}", binary.display())]);
        cluster.psql("CREATE TABLE truth (id int PRIMARY KEY, value text);");
        cluster.psql("INSERT INTO truth SELECT i, 'value ' || i FROM generate_series(1, 50) AS i;");
        for id in 1..=20 {
            let value = cluster.psql(&format!("SELECT value FROM truth WHERE id = {id};"));
            assert_eq!(value, format!("value {id}\n"), "liar {liar}");
        }
        let returned = cluster.psql("BEGIN; UPDATE truth SET value = 'new' WHERE id = 1 RETURNING value; COMMIT;");
        assert_eq!(returned, "new\n", "liar {liar}");
        // The lie did happen: results of the liar lost votes.
        assert!(cluster.mismatches() > 0, "nobody lied");
    }
}
