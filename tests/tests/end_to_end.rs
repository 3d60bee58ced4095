//! A whole cluster as an operator and an application see it.

#![allow(missing_docs, reason = "tests")]

use tests::cluster::{Cluster, Directory};

async fn sum(cluster: &Cluster) -> i64 {
    let client = cluster.connect().await.unwrap();
    client
        .query_one("select coalesce(sum(x), 0)::bigint from numbers", &[])
        .await
        .unwrap()
        .get(0)
}

#[tokio::test]
async fn data_survives_down_and_a_power_cut() {
    let directory = Directory::new().unwrap();
    let cluster = Cluster::up(&directory, &[]).unwrap();
    let client = cluster.connect().await.unwrap();
    client
        .batch_execute("create table numbers (x int primary key)")
        .await
        .unwrap();
    for x in 1..=10 {
        client.execute("insert into numbers values ($1)", &[&x]).await.unwrap();
    }
    assert_eq!(sum(&cluster).await, 55);
    let verified = directory.run("verify", &[]).unwrap();
    assert!(verified.status.success(), "{verified:?}");
    drop(client);
    cluster.stop().unwrap();

    let cluster = Cluster::up(&directory, &[]).unwrap();
    assert_eq!(sum(&cluster).await, 55);
    let client = cluster.connect().await.unwrap();
    client.execute("insert into numbers values (100)", &[]).await.unwrap();
    cluster.power_cut(&directory).unwrap();

    let cluster = Cluster::up(&directory, &[]).unwrap();
    assert_eq!(sum(&cluster).await, 155);
    assert!(directory.run("verify", &[]).unwrap().status.success());
    cluster.stop().unwrap();
}
