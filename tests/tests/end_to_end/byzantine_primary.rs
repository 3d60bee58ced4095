//! A primary that lies with true warrants, as a hacked machine can: a test build of the binary on m0, told by a file
//! when to lie and how. It is replaced or harmless: nothing acknowledged is lost, and no application sees an error.

use std::path::Path;
use std::time::{Duration, Instant};

use tests::cluster::{Cluster, lying_binary};

use crate::crashes::survive_for;

/// For how long each behaviour that harms nobody is kept up under load.
const HARMLESS_FOR: Duration = Duration::from_secs(3);
/// A primary that harms the service must be replaced so soon.
const REPLACED_WITHIN: Duration = Duration::from_secs(10);
/// A transaction of both groups that needs the primary.
const ORDERED: &str = "begin isolation level serializable; select count(*) from warehouse; commit;";

/// m0, which may lie.
struct Liar {
    file: tempfile::NamedTempFile,
}

impl Liar {
    fn new() -> Liar {
        let file = tempfile::NamedTempFile::new().expect("a file");
        Liar { file }
    }

    fn cluster(&self) -> Cluster {
        let binary = lying_binary();
        let program = format!("m0={}", binary.display());
        let cluster = Cluster::up_with(
            &["--groups", "2", "--node-program", &program],
            &[("CLOUDBFT_BYZANTINE_FILE", self.file.path())],
        );
        assert_eq!(cluster.primary(), "m0");
        cluster
    }

    fn lies(&self, behaviour: &str) {
        write(self.file.path(), behaviour);
        // It looks every 100 ms.
        std::thread::sleep(Duration::from_millis(150));
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("the file of the behaviour");
}

fn lies_told(cluster: &Cluster, behaviour: &str) -> u64 {
    let behaviour = behaviour.split(' ').next().expect("a word").replace('-', "_");
    cluster.node_metric(0, &format!("cloudbft_lies_total{{behaviour=\"{behaviour}\"}}"))
}

/// Under load, the lies begin, and another primary takes over.
fn is_replaced(behaviour: &str) {
    let liar = Liar::new();
    survive_for(&liar.cluster(), 10, |cluster| replaces(cluster, &liar, behaviour));
}

fn replaces(cluster: &Cluster, liar: &Liar, behaviour: &str) {
    let (view, begun) = (cluster.view(), Instant::now());
    assert_eq!(
        cluster.primary(),
        "m0",
        "m0 was replaced before it lied: the machine is overloaded"
    );
    liar.lies(behaviour);
    while cluster.primary() == "m0" {
        assert!(begun.elapsed() < REPLACED_WITHIN, "{behaviour}: m0 still leads");
        std::thread::sleep(Duration::from_millis(20));
    }
    let replaced_ms = begun.elapsed().as_millis();
    cluster.psql(ORDERED);
    let answer_ms = begun.elapsed().as_millis();
    let lies = lies_told(cluster, behaviour);
    println!("{behaviour}: {lies} lies, replaced after {replaced_ms} ms, an answer after {answer_ms} ms");
    assert!(lies > 0, "nobody lied");
    assert!(cluster.view() > view);
}

#[test]
fn one_that_does_not_hear_a_group_is_replaced() {
    is_replaced("deaf");
}

#[test]
fn one_that_orders_requests_under_two_groups_is_replaced() {
    is_replaced("double-groups");
}

#[test]
fn one_that_tells_replicas_different_orders_is_replaced() {
    is_replaced("equivocate");
}

#[test]
fn one_that_delays_longer_than_the_timers_is_replaced() {
    is_replaced("delay 3000");
}

#[test]
fn one_that_reorders_doubles_or_delays_a_little_is_harmless_and_one_that_withholds_is_replaced() {
    let liar = Liar::new();
    let cluster = liar.cluster();
    survive_for(&cluster, 18, |cluster| {
        let view = cluster.view();
        for behaviour in ["reorder", "double", "delay 60"] {
            liar.lies(behaviour);
            std::thread::sleep(HARMLESS_FOR);
            let asked = Instant::now();
            cluster.psql(ORDERED);
            println!("{behaviour}: an answer after {} ms", asked.elapsed().as_millis());
            assert!(lies_told(cluster, behaviour) > 0, "{behaviour}: nobody lied");
            assert_eq!(cluster.view(), view, "{behaviour}");
        }
        replaces(cluster, &liar, "withhold");
    });
}
