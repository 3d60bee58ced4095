//! Deferred triggers run before a voter gives its word, also those that defer themselves again
//! (`docs/protocol.md`, rule `NothingAfterTheWord`).

use std::time::{Duration, Instant};

use bytes::Bytes;
use ordering::identifiers::Digest;
use ordering::message::{DirectKind, Outcome, ResultKey};
use sql::footprint::Footprint;
use sql::operation::{Exchange, Isolation, Work};
use voter::VoterState;

use crate::rig::{Rig, Transaction, simple, sqlstate, tags};

/// Table `queue(id, round)` with a deferred trigger: what its function does with `NEW`.
async fn with_trigger(body: &str) -> Rig {
    let mut rig = Rig::start().await;
    rig.run("CREATE TABLE queue (id int PRIMARY KEY, round int NOT NULL)")
        .await;
    rig.run(&format!(
        "CREATE FUNCTION deferred() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body} RETURN NULL; END$$"
    ))
    .await;
    rig.run(TRIGGER).await;
    rig
}

const TRIGGER: &str = "CREATE CONSTRAINT TRIGGER deferred AFTER INSERT OR UPDATE ON queue DEFERRABLE INITIALLY DEFERRED \
                       FOR EACH ROW EXECUTE FUNCTION deferred()";

/// Fires the trigger again when everything that is deferred now has been run.
const AGAIN: &str = "EXECUTE 'SET CONSTRAINTS ALL DEFERRED'; UPDATE queue SET round = round + 1 WHERE id = NEW.id;";

async fn begin(rig: &mut Rig, exchange: &Exchange) -> Transaction {
    let mut transaction = rig.new_transaction(Footprint::everything());
    let order = rig.begin(&mut transaction, Isolation::ReadCommitted, exchange).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(order)).await), "C", "{exchange:?}");
    transaction
}

async fn ask_word(rig: &mut Rig, transaction: &Transaction) -> ResultKey {
    rig.send_place(Some(transaction), Bytes::new(), DirectKind::Word).await
}

/// What asks for everything is answered in time, so nothing that ended is still running.
async fn assert_goes_on(rig: &mut Rig) {
    let started = Instant::now();
    rig.run("CREATE TABLE other (id int PRIMARY KEY)").await;
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert!(matches!(rig.state(), VoterState::Serving { .. }), "{:?}", rig.state());
}

/// A trigger that defers itself for ever gets no word, and its transaction a clear error.
#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_defers_itself_for_ever_gets_no_word() {
    let mut rig = with_trigger(AGAIN).await;
    let transaction = begin(&mut rig, &simple("INSERT INTO queue VALUES (1, 0)")).await;
    let word = ask_word(&mut rig, &transaction).await;
    let Outcome::Refused { sqlstate, hint, .. } = rig.direct_outcome(word).await else {
        panic!("not refused");
    };
    assert_eq!(sqlstate, "BF004");
    assert!(hint.contains("defer"), "{hint}");
    let abort = rig.abort(&transaction).await;
    rig.result(abort).await;
    assert_goes_on(&mut rig).await;
    assert_eq!(rig.psql("SELECT count(*) FROM queue").await, "0");
}

/// What is deferred again and then does not end is stopped by an ordered Abort.
#[tokio::test(flavor = "multi_thread")]
async fn what_never_ends_after_it_deferred_itself_ends_with_its_abort() {
    let body = format!("IF NEW.round < 3 THEN {AGAIN} ELSE LOOP NULL; END LOOP; END IF;");
    let mut rig = with_trigger(&body).await;
    let transaction = begin(&mut rig, &simple("INSERT INTO queue VALUES (1, 0)")).await;
    let word = ask_word(&mut rig, &transaction).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let insert = simple("INSERT INTO queue VALUES (2, 9)").encode();
    let behind = rig
        .order(Footprint::everything(), Work::OneShot { exchange: insert })
        .await;
    let abort = rig.abort(&transaction).await;
    assert_eq!(rig.direct_outcome(word).await, Outcome::Unavailable);
    rig.result(abort).await;
    // It is no one-shot; what counts is that it has its turn.
    assert!(matches!(rig.result(behind).await.outcome, Outcome::Refused { .. }));
    assert_goes_on(&mut rig).await;
}

/// What fails after it was deferred again fails before the word: f+1 voters have to agree on it.
#[tokio::test(flavor = "multi_thread")]
async fn what_fails_after_it_deferred_itself_gets_no_word() {
    let body = format!("IF NEW.round < 2 THEN {AGAIN} ELSE RAISE EXCEPTION 'no'; END IF;");
    let mut rig = with_trigger(&body).await;
    let transaction = begin(&mut rig, &simple("INSERT INTO queue VALUES (1, 0)")).await;
    let word = ask_word(&mut rig, &transaction).await;
    let outcome = rig.direct_outcome(word).await;
    assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
    assert_eq!(sqlstate(&rig.whole(word).await).as_deref(), Some("P0001"));
    let abort = rig.abort(&transaction).await;
    rig.result(abort).await;
    assert_goes_on(&mut rig).await;
}

/// What defers itself a few times commits, where it ran as where the list runs at the Commit.
#[tokio::test(flavor = "multi_thread")]
async fn what_defers_itself_a_few_times_commits() {
    let mut rig = with_trigger(&format!("IF NEW.round < 2 THEN {AGAIN} END IF;")).await;
    let live = begin(&mut rig, &simple("INSERT INTO queue VALUES (1, 0)")).await;
    let words = rig.words(&live).await;
    assert_eq!(words.len(), 2, "a word");
    assert_eq!(rig.psql("SELECT count(*) FROM queue").await, "0");
    let answers = words[0].answers;
    let commit = rig.commit_with(&live, words).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");

    let mut lazy = rig.new_transaction(Footprint::everything());
    rig.begin_live(&mut lazy, 0, &simple("INSERT INTO queue VALUES (2, 0)"))
        .await;
    let words = rig.words_with(&lazy, answers);
    let commit = rig.commit_with(&lazy, words).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    assert_eq!(
        rig.psql("SELECT string_agg(id || ':' || round, ' ' ORDER BY id) FROM queue")
            .await,
        "1:2 2:2"
    );
}

/// A trigger that is made in the transaction is in no catalog that the voter knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_of_the_same_transaction_is_settled_too() {
    let mut rig = with_trigger(AGAIN).await;
    rig.run("DROP TRIGGER deferred ON queue").await;
    let mut transaction = begin(&mut rig, &simple(TRIGGER)).await;
    rig.write(&mut transaction, &simple("INSERT INTO queue VALUES (1, 0)"))
        .await;
    let word = ask_word(&mut rig, &transaction).await;
    let outcome = rig.direct_outcome(word).await;
    assert!(matches!(outcome, Outcome::Refused { .. }), "{outcome:?}");
    let abort = rig.abort(&transaction).await;
    rig.result(abort).await;
    assert_goes_on(&mut rig).await;
}

/// Code that makes its transaction read-only keeps the voter from recording it: there is no word for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_code_made_read_only_gets_no_word() {
    let mut rig = with_trigger("").await;
    let hidden = simple("DO $$BEGIN EXECUTE 'SET LOCAL transaction_read_' || 'only = on'; END$$");
    let transaction = begin(&mut rig, &hidden).await;
    let word = ask_word(&mut rig, &transaction).await;
    let outcome = rig.direct_outcome(word).await;
    assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
    assert_eq!(sqlstate(&rig.whole(word).await).as_deref(), Some("25006"));
    let abort = rig.abort(&transaction).await;
    rig.result(abort).await;
    assert_goes_on(&mut rig).await;
}

/// Two tables with deferred triggers, one of which writes to the other; `log` tells in which order they ran.
async fn with_log() -> Rig {
    let mut rig = with_trigger("INSERT INTO second VALUES (NEW.id); INSERT INTO log (what) SELECT 'q' || NEW.id || '/' || count(*) FROM queue;").await;
    rig.run("CREATE TABLE second (id int PRIMARY KEY)").await;
    rig.run("CREATE TABLE log (place serial PRIMARY KEY, what text)").await;
    rig.run(
        "CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS \
         $$BEGIN INSERT INTO log (what) VALUES ('s' || NEW.id); RETURN NULL; END$$",
    )
    .await;
    rig.run(
        "CREATE CONSTRAINT TRIGGER noted AFTER INSERT ON second DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION noted()",
    )
    .await;
    rig
}

/// What the transactions left in the log, which is emptied.
async fn logged(rig: &mut Rig) -> String {
    let log = rig.psql("SELECT string_agg(what, ' ' ORDER BY place) FROM log").await;
    rig.run("DELETE FROM log").await;
    rig.run("DELETE FROM second").await;
    rig.run("DELETE FROM queue").await;
    log
}

/// Deferred triggers run in one order, whether a voter gave its word, ran the list at the Commit, or was asked for its word
/// before the last statement.
#[tokio::test(flavor = "multi_thread")]
async fn deferred_triggers_run_alike_however_the_transaction_was_run() {
    let mut rig = with_log().await;
    let first = simple("INSERT INTO queue VALUES (1, 0), (2, 0)");
    let second = simple("INSERT INTO queue VALUES (3, 0)");
    let mut logs = Vec::new();
    let mut answers = None;
    for word_between in [false, true] {
        let mut live = begin(&mut rig, &first).await;
        if word_between {
            let word = ask_word(&mut rig, &live).await;
            assert!(matches!(rig.direct_outcome(word).await, Outcome::Word { .. }));
        }
        rig.write(&mut live, &second).await;
        let words = rig.words(&live).await;
        answers = Some(words[0].answers);
        let commit = rig.commit_with(&live, words).await;
        assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
        logs.push(logged(&mut rig).await);
    }
    // Live, but not asked for its word.
    let mut silent = begin(&mut rig, &first).await;
    rig.write(&mut silent, &second).await;
    let words = rig.words_with(&silent, answers.unwrap());
    let commit = rig.commit_with(&silent, words).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    logs.push(logged(&mut rig).await);

    let mut lazy = rig.new_transaction(Footprint::everything());
    rig.begin_live(&mut lazy, 0, &first).await;
    rig.missed_write(&mut lazy, &second);
    let words = rig.words_with(&lazy, answers.unwrap());
    let commit = rig.commit_with(&lazy, words).await;
    assert_eq!(tags(&rig.whole(ResultKey::Request(commit)).await), "C");
    logs.push(logged(&mut rig).await);
    assert_eq!(logs, vec![logs[0].clone(); 4]);
    assert_eq!(logs[0], "s1 q1/3 s2 q2/3 s3 q3/3");
}

/// The ordinary ones: a deferred foreign key that is broken for a while, and a deferred trigger of users.
#[tokio::test(flavor = "multi_thread")]
async fn ordinary_deferred_constraints_work() {
    let mut rig = with_log().await;
    rig.run("CREATE TABLE parent (id int PRIMARY KEY)").await;
    rig.run("CREATE TABLE child (id int PRIMARY KEY REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
        .await;
    rig.run("INSERT INTO child VALUES (1); INSERT INTO parent VALUES (1)")
        .await;
    let orphan = begin(
        &mut rig,
        &simple("INSERT INTO child SELECT i FROM generate_series(2, 3) i"),
    )
    .await;
    let word = ask_word(&mut rig, &orphan).await;
    assert_eq!(sqlstate(&rig.whole(word).await).as_deref(), Some("23503"));
    let abort = rig.abort(&orphan).await;
    rig.result(abort).await;
    assert_eq!(rig.psql("SELECT string_agg(id::text, ' ') FROM child").await, "1");

    let started = Instant::now();
    for id in 1..=50 {
        rig.run(&format!("INSERT INTO queue VALUES ({id}, 0)")).await;
    }
    eprintln!("a transaction with deferred triggers: {:?}", started.elapsed() / 50);
    assert_eq!(rig.psql("SELECT count(*) FROM log").await, "100");
    assert_eq!(rig.psql("SELECT count(*) FROM cloudbft.command").await, "0");
}

/// What deferred triggers say is the COMMIT's, on live voters as on others, also when it is more than travels at once.
#[tokio::test(flavor = "multi_thread")]
async fn notices_of_deferred_triggers_come_with_the_commit() {
    let again = format!("RAISE NOTICE '%', repeat('x', 100000); IF NEW.round < 1 THEN {AGAIN} END IF;");
    let mut rig = with_trigger(&again).await;
    for (rows, at_once) in [(1, true), (15, false)] {
        let insert = simple(&format!(
            "INSERT INTO queue SELECT i, 0 FROM generate_series(1, {rows}) i"
        ));
        let live = begin(&mut rig, &insert).await;
        let words = rig.words(&live).await;
        let answers = words[0].answers;
        let commit = rig.commit_with(&live, words).await;
        let first = rig.result(commit).await.outcome;
        assert_eq!(matches!(first, Outcome::Done { .. }), at_once);
        let notices = tags(&rig.whole(ResultKey::Request(commit)).await);
        assert_eq!(notices.matches('N').count(), 2 * rows, "{notices}");
        rig.run("DELETE FROM queue").await;

        let mut lazy = rig.new_transaction(Footprint::everything());
        rig.begin_live(&mut lazy, 0, &insert).await;
        let words = rig.words_with(&lazy, answers);
        let commit = rig.commit_with(&lazy, words).await;
        assert_eq!(digests(&rig.result(commit).await.outcome), digests(&first));
        rig.run("DELETE FROM queue").await;
    }
}

fn digests(outcome: &Outcome) -> (Digest, Digest) {
    match outcome {
        Outcome::Done { sequence, multiset, .. } | Outcome::Large { sequence, multiset, .. } => (*sequence, *multiset),
        other => panic!("no result: {other:?}"),
    }
}
