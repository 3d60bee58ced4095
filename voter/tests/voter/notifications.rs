use sql::footprint::Footprint;
use sql::operation::{Isolation, Work, says_nothing_written};

use crate::rig::{Rig, simple, sqlstate};

async fn listen(rig: &mut Rig, channels: &[&str]) -> u64 {
    let channels = channels.iter().map(ToString::to_string).collect();
    let order = rig.order(Footprint::empty(), Work::Listen { channels }).await;
    rig.result(order).await;
    order
}

/// What the voter has told since it was asked last: of each transaction its place, and what it notified.
fn told(rig: &Rig) -> Vec<(u64, u64, String)> {
    let told = rig.take_notifications().into_iter().map(|said| {
        let texts = said
            .notifications
            .iter()
            .map(|one| format!("{}={}", one.channel, one.payload));
        (said.granted.0, said.order.0, texts.collect::<Vec<_>>().join(" "))
    });
    told.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_tells_what_transactions_notify_on_channels_that_are_listened_to() {
    let mut rig = Rig::start().await;
    rig.run("NOTIFY a, 'unheard'").await;
    assert_eq!(told(&rig), []);
    listen(&mut rig, &["a", "b \" c"]).await;
    let ran = rig.one_shot(Footprint::empty(), &simple("NOTIFY a, 'one'")).await;
    assert_eq!(sqlstate(&ran), None);
    let order = rig.last_order();
    assert_eq!(told(&rig), [(order, order, "a=one".into())], "before the answer");
    rig.run("SELECT pg_notify('b \" c', '2'), pg_notify('other', '3'); NOTIFY a; NOTIFY a")
        .await;
    let order = rig.last_order();
    assert_eq!(told(&rig), [(order, order, "b \" c=2 a=".into())]);
    // Of code of users too; what fails is told of no more than what is rolled back.
    rig.run("DO $$ BEGIN PERFORM pg_notify('a', 'in code'); END $$").await;
    let order = rig.last_order();
    assert_eq!(told(&rig), [(order, order, "a=in code".into())]);
    rig.one_shot(Footprint::empty(), &simple("NOTIFY a, 'undone'; SELECT 1/0"))
        .await;
    assert_eq!(told(&rig), []);
    // The list of a client takes the place of the one before.
    listen(&mut rig, &["b"]).await;
    rig.one_shot(Footprint::empty(), &simple("NOTIFY a, 'one'")).await;
    assert_eq!(told(&rig), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_notifies_has_an_effect_all_the_same() {
    let mut rig = Rig::start().await;
    for (text, nothing) in [
        ("NOTIFY a", false),
        ("SELECT pg_notify('a', '')", false),
        ("SELECT 1", true),
    ] {
        let mut transaction = rig.new_transaction(Footprint::everything());
        rig.begin(&mut transaction, Isolation::ReadCommitted, &simple(text))
            .await;
        let words = rig.words(&transaction).await;
        assert_eq!(says_nothing_written(&words[0].answers), nothing, "{text}");
        let commit = rig.commit_with(&transaction, words).await;
        rig.result(commit).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_listens_survives_a_restart_of_the_voter() {
    let mut rig = Rig::start().await;
    let order = listen(&mut rig, &["a"]).await;
    // Once from the floor, and once from the replicas' logs.
    rig.wait_until_flushed(order).await;
    for restart in ["from the floor", "again"] {
        rig.stop_voter().await;
        rig.forget_results();
        rig.start_voter();
        rig.wait_until_serving().await;
        rig.take_notifications();
        rig.one_shot(Footprint::empty(), &simple("NOTIFY a, 'x'")).await;
        let order = rig.last_order();
        let told = told(&rig);
        assert!(told.contains(&(order, order, "a=x".into())), "{restart}: {told:?}");
        listen(&mut rig, &["a", "b"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_notifies_too_much_is_cut_off_and_says_so() {
    let mut rig = Rig::start().await;
    listen(&mut rig, &["a"]).await;
    rig.run("DO $$ BEGIN FOR i IN 1..300 LOOP PERFORM pg_notify('a', lpad(i::text, 7999, ' ')); END LOOP; END $$")
        .await;
    let told = rig.take_notifications();
    let [said] = told.as_slice() else {
        panic!("{}", told.len())
    };
    assert_eq!(said.notifications.len() as u64 + said.dropped, 300);
    assert!(said.dropped > 100 && said.notifications[0].payload.trim() == "1");
    // A client cannot make voters keep channels without end.
    let channels = (0..2000).map(|number| number.to_string()).collect();
    let order = rig.order(Footprint::empty(), Work::Listen { channels }).await;
    assert!(format!("{:?}", rig.result(order).await.outcome).contains("54000"));
    rig.one_shot(Footprint::empty(), &simple("NOTIFY a, 'still'")).await;
    assert_eq!(rig.take_notifications().len(), 1);
}
