//! Cut links under load: bytes are held back between machines for a while, and pass again later.

use std::time::{Duration, Instant};

use tests::cluster::Cluster;
use tests::network::End;

use crate::crashes::survive_for;

/// How long links stay cut: shorter than a link's own patience, and longer.
const CUT_FOR: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(10)];
/// How soon a transaction must be answered while links are cut.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How soon all machines take part again.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// How soon a link that was given up is there again.
const LINK_BACK_WITHIN: Duration = Duration::from_secs(2);
/// A transaction of both groups that needs the primary.
const ORDERED: &str = "begin isolation level serializable; select count(*) from warehouse; commit;";

fn answers(cluster: &Cluster, what: &str) {
    let asked = Instant::now();
    cluster.psql(ORDERED);
    println!(
        "{what}: an answer after {} ms, view {}",
        asked.elapsed().as_millis(),
        cluster.view()
    );
    assert!(asked.elapsed() < ANSWER_WITHIN, "{what}: service resumes");
}

fn order(cluster: &Cluster, machine: &str) -> u64 {
    cluster.machine(machine, "last_order").as_u64().expect("an order")
}

#[test]
fn a_replica_that_was_cut_off_catches_up() {
    let cluster = Cluster::up_on_wires(2);
    survive_for(&cluster, 25, |cluster| {
        for cut_for in CUT_FOR {
            cluster.network().cut_off(2);
            answers(cluster, "m2 is cut off");
            // It hears nothing any more.
            std::thread::sleep(Duration::from_millis(300));
            let before = order(cluster, "m2");
            std::thread::sleep(cut_for);
            assert!(
                order(cluster, "m2") <= before && before < order(cluster, "m1"),
                "m2 was cut off"
            );
            cluster.network().heal();
            let healed = Instant::now();
            cluster.wait_all_up(BACK_WITHIN);
            keeps_up(cluster, "m2");
            println!("m2 has caught up {} ms after {cut_for:?}", healed.elapsed().as_millis());
        }
    });
}

#[test]
fn a_primary_that_was_cut_off_is_replaced_and_rejoins() {
    let cluster = Cluster::up_on_wires(2);
    survive_for(&cluster, 25, |cluster| {
        for cut_for in CUT_FOR {
            let (primary, view) = (cluster.primary(), cluster.view());
            let number = primary[1..].parse().expect("m and a number");
            cluster.network().cut_off(number);
            answers(cluster, &format!("{primary} is cut off"));
            assert!(cluster.view() > view, "the view has changed");
            std::thread::sleep(cut_for);
            cluster.network().heal();
            let healed = Instant::now();
            cluster.wait_all_up(BACK_WITHIN);
            println!(
                "{primary} is back {} ms after {cut_for:?}",
                healed.elapsed().as_millis()
            );
        }
    });
}

#[test]
fn a_primary_and_a_replica_that_do_not_reach_each_other_are_no_obstacle() {
    let cluster = Cluster::up_on_wires(2);
    survive_for(&cluster, 29, |cluster| {
        let network = cluster.network();
        let (primary, replica) = (End::Machine(0), End::Machine(2));
        // The others tell the replica what the primary says, also when the link is given up.
        network.cut_one_way(primary, replica);
        std::thread::sleep(Duration::from_secs(10));
        answers(cluster, "m2 does not hear m0");
        keeps_up(cluster, "m2");
        network.heal();
        std::thread::sleep(LINK_BACK_WITHIN);
        network.cut_one_way(replica, primary);
        std::thread::sleep(Duration::from_secs(4));
        answers(cluster, "m0 does not hear m2");
        keeps_up(cluster, "m2");
        network.heal();
        network.cut(primary, replica);
        network.cut(End::Proxy, replica);
        std::thread::sleep(Duration::from_secs(4));
        answers(cluster, "m0 and the proxy do not reach m2");
        keeps_up(cluster, "m2");
        network.heal();
        cluster.wait_all_up(BACK_WITHIN);
        for (from, to) in [
            (primary, replica),
            (replica, primary),
            (End::Proxy, replica),
            (replica, End::Proxy),
        ] {
            assert!(network.held(from, to) > 0, "{from:?} to {to:?} was never cut");
        }
    });
}

/// A machine is soon where another one is now.
fn keeps_up(cluster: &Cluster, machine: &str) {
    let (goal, asked) = (order(cluster, "m1"), Instant::now());
    while order(cluster, machine) < goal {
        assert!(asked.elapsed() < ANSWER_WITHIN, "{machine} is left behind");
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("{machine} is where m1 was {} ms ago", asked.elapsed().as_millis());
}
