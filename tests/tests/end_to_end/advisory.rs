//! Advisory locks while machines, the proxy and applications die (`docs/decisions/0054`).

use std::time::{Duration, Instant};

use tests::cluster::Cluster;
use tokio_postgres::{Client, NoTls};

/// How long something may take that needs a few seconds.
const WITHIN: Duration = Duration::from_secs(60);

async fn connect(dsn: &str) -> Client {
    let deadline = Instant::now() + WITHIN;
    loop {
        match tokio_postgres::connect(dsn, NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                return client;
            }
            Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn is_so(client: &Client, call: &str) -> bool {
    let row = client.query_one(&format!("SELECT {call}"), &[]).await;
    row.unwrap_or_else(|error| panic!("{call}: {error:?}")).get(0)
}

/// Waits until a session can take the lock.
async fn take(client: &Client, key: i64) {
    let deadline = Instant::now() + WITHIN;
    while !is_so(client, &format!("pg_try_advisory_lock({key})")).await {
        assert!(Instant::now() < deadline, "{key} is never free");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[test]
fn advisory_locks_survive_machines_and_go_with_their_sessions() {
    let cluster = Cluster::up(&[]);
    cluster.psql("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 0);");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (holder, other) = runtime.block_on(async {
        let (holder, other) = (connect(cluster.dsn()).await, connect(cluster.dsn()).await);
        assert!(is_so(&holder, "pg_try_advisory_lock(7)").await);
        assert!(!is_so(&other, "pg_try_advisory_lock(7)").await);
        (holder, other)
    });
    // Enough orders, and time, for floors: what is held then comes from there.
    let write = |count: u32| {
        for _ in 0..count {
            cluster.psql("UPDATE t SET v = v + 1;");
        }
        std::thread::sleep(Duration::from_secs(2));
    };
    write(20);
    for (machine, waits) in [("m1", true), ("m2", false), ("m3", true)] {
        // A request that is fed meanwhile is decided alike by the voter that comes back.
        cluster.kill_node(machine);
        runtime.block_on(async {
            assert!(!is_so(&other, "pg_try_advisory_lock(7)").await, "{machine}");
            if waits {
                assert!(
                    is_so(&holder, "pg_try_advisory_lock(8)").await && is_so(&holder, "pg_advisory_unlock(8)").await
                );
            }
        });
        cluster.wait_all_up(WITHIN);
        write(5);
    }
    // Two voters that were started anew, of three, decide from their floors.
    runtime.block_on(async {
        assert!(!is_so(&other, "pg_try_advisory_lock(7)").await);
        // A client that was killed: its session ends.
        drop(holder);
        take(&other, 7).await;
    });
    assert_eq!(cluster.mismatches(), 0);
    // A proxy that was killed: its sessions are abandoned, by the word of f+1 nodes.
    cluster.kill_proxy();
    runtime.block_on(async {
        let after = connect(cluster.dsn()).await;
        take(&after, 7).await;
    });
    cluster.assert_equal();
}
