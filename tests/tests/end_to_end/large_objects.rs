//! Large objects through a whole cluster (decision 0056): by libpq, and while machines die in the middle.

use std::time::Duration;

use tests::cluster::{Cluster, text};
use tokio_postgres::{Client, NoTls};

const WITHIN: Duration = Duration::from_secs(60);
/// The mode of `lo_open` for reading and writing.
const BOTH: i32 = 0x60000;

async fn connect(dsn: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await.expect("connects");
    tokio::spawn(connection);
    client
}

#[test]
fn large_objects_are_equal_on_all_machines_whoever_dies() {
    let cluster = Cluster::up(&[]);
    let file = cluster.directory().join("picture");
    let content: Vec<u8> = (0..100_000_u32).map(|number| (number % 251) as u8).collect();
    std::fs::write(&file, &content).expect("a file");
    let back = cluster.directory().join("back");
    let script = format!(
        "\\lo_import {} picture\n\\lo_export :LASTOID {}",
        file.display(),
        back.display()
    );
    cluster.psql(&script);
    assert_eq!(std::fs::read(&back).expect("exported"), content);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let mut client = connect(cluster.dsn()).await;
        for (round, victim) in ["m1", "m2", "m3"].into_iter().enumerate() {
            let transaction = client.transaction().await.expect("begins");
            let number: u32 = transaction
                .query_one("SELECT lo_create(0)", &[])
                .await
                .expect("made")
                .get(0);
            let opened = transaction.query_one("SELECT lo_open($1, $2)", &[&number, &BOTH]).await;
            assert_eq!(opened.expect("opened").get::<_, i32>(0), 0);
            for part in 0..10_u8 {
                let bytes = vec![part; 5_000];
                let written = transaction.query_one("SELECT lowrite(0, $1)", &[&bytes]).await;
                assert_eq!(written.expect("written").get::<_, i32>(0), 5_000);
                match (part, round) {
                    (4, 2) => cluster.kill_node(victim),
                    (4, _) => cluster.kill_postgres(victim),
                    _ => {}
                }
            }
            transaction
                .query_one("SELECT lo_lseek(0, 7000, 0)", &[])
                .await
                .expect("moved");
            let read = transaction.query_one("SELECT loread(0, 3)", &[]).await.expect("read");
            assert_eq!(read.get::<_, Vec<u8>>(0), [1, 1, 1]);
            transaction.commit().await.expect("commits");
            let got = client
                .query_one("SELECT length(lo_get($1))", &[&number])
                .await
                .expect("there");
            assert_eq!(got.get::<_, i32>(0), 50_000);
            cluster.wait_all_up(WITHIN);
        }
    });
    cluster.assert_equal();
    // A change that nobody ordered is found.
    cluster.behind_the_back(
        "m2",
        "SELECT lo_put(oid, 3, 'x') FROM pg_largeobject_metadata ORDER BY oid LIMIT 1",
    );
    let output = cluster.command_on_directory("verify", &[]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("large objects"), "{}", text(&output));
}
