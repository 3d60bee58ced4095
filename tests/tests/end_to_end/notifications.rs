//! LISTEN and NOTIFY while machines die (`docs/decisions/0050`).

use std::time::{Duration, Instant};

use tests::cluster::Cluster;
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client, NoTls};

/// How long something may take that needs a second or two.
const WITHIN: Duration = Duration::from_secs(60);

/// A client, and what it is told.
async fn connect(dsn: &str) -> (Client, mpsc::UnboundedReceiver<(i32, String, String)>) {
    let (client, mut connection) = tokio_postgres::connect(dsn, NoTls).await.expect("connects");
    let (sender, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(told) = message {
                let _ = sender.send((told.process_id(), told.channel().to_owned(), told.payload().to_owned()));
            }
        }
    });
    (client, told)
}

#[test]
fn each_notification_comes_once_while_machines_die_one_after_the_other() {
    let cluster = Cluster::up(&[]);
    cluster.psql(
        "CREATE TABLE job (id int PRIMARY KEY, v text);
         CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM pg_notify('jobs', 'job ' || new.id); RETURN new; END $$;
         CREATE TRIGGER tell AFTER INSERT ON job FOR EACH ROW EXECUTE FUNCTION tell();",
    );
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut expected = Vec::new();
    let (mut ears, mouth) = runtime.block_on(async {
        let mut ears = Vec::new();
        for _ in 0..2 {
            let (client, told) = connect(cluster.dsn()).await;
            client.batch_execute("LISTEN jobs").await.expect("LISTEN");
            ears.push((client, told));
        }
        (ears, connect(cluster.dsn()).await.0)
    });
    let mut number = 0;
    let mut notify = |expected: &mut Vec<String>| {
        runtime.block_on(async {
            for _ in 0..6 {
                number += 1;
                let text = match number % 3 {
                    0 => format!("INSERT INTO job VALUES ({number}, 'x')"),
                    1 => format!("NOTIFY jobs, 'job {number}'"),
                    _ => format!("BEGIN; SELECT pg_notify('jobs', 'job {number}'); COMMIT"),
                };
                let deadline = Instant::now() + WITHIN;
                while let Err(error) = mouth.batch_execute(&text).await {
                    // Only a transaction whose voters were lost is to be run again.
                    let code = error.code().map(|code| code.code().to_owned()).unwrap_or_default();
                    assert!(code == "40001" && Instant::now() < deadline, "{text}: {error:?}");
                    let _ = mouth.batch_execute("ROLLBACK").await;
                }
                expected.push(format!("job {number}"));
            }
        });
    };
    notify(&mut expected);
    for machine in ["m1", "m2"] {
        cluster.kill_node(machine);
        notify(&mut expected);
        cluster.wait_all_up(WITHIN);
        notify(&mut expected);
    }
    cluster.kill_postgres("m3");
    notify(&mut expected);
    cluster.wait_all_up(WITHIN);
    notify(&mut expected);
    runtime.block_on(async {
        for (_, told) in &mut ears {
            for expected in &expected {
                let heard = tokio::time::timeout(WITHIN, told.recv()).await;
                let (process, channel, payload) = heard
                    .unwrap_or_else(|_| panic!("{expected} does not come"))
                    .expect("told");
                assert_eq!((channel.as_str(), payload.as_str()), ("jobs", expected.as_str()));
                assert!(process > 0);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert!(told.try_recv().is_err(), "nothing comes twice");
        }
    });
    cluster.assert_equal();
}
