//! How a view begins, computed from the VIEW-CHANGEs in its NEW-VIEW alone: the same on every machine.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::configuration::{Configuration, Mutant};
use crate::ledger::StableCheckpoint;
use crate::pbft::window::{End, point_of};
use crate::pbft::wire::change::ViewChange;
use crate::pbft::wire::ordered::{Batch, Certificate};

/// How a view begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The highest stable checkpoint; none: genesis.
    pub(crate) stable: Option<StableCheckpoint>,
    /// Batches above it that are proposed again; numbers without gap.
    pub(crate) batches: Vec<Arc<Batch>>,
}

/// Computes how a view begins from **all** its VIEW-CHANGEs (2f+1 or more).
///
/// 1. The base is the highest stable checkpoint.
/// 2. For each number above it, the certificate of the highest view counts, whoever has it. (Two certificates of one
///    view have one batch: their quorums share a correct replica.)
/// 3. The first number without a certificate, or whose batch does not continue the one before it, ends the outcome.
///
/// Nothing that was decided is lost. If number n was decided in view v, 2f+1 replicas have sent COMMIT for it, and
/// before that COMMIT for every number between the base and n; any 2f+1 VIEW-CHANGEs have a correct one of them, with
/// certificates for all these numbers. So a gap is above everything that was decided, and no null batch is needed.
pub(crate) fn compute<'a>(
    view_changes: impl Iterator<Item = &'a Arc<ViewChange>> + Clone,
    configuration: &Configuration,
) -> Outcome {
    let is_lowest = configuration.is(Mutant::PbftLowestView);
    let stable = view_changes
        .clone()
        .filter_map(|view_change| view_change.stable.as_ref())
        .max_by_key(|stable| stable.point.order)
        .cloned();
    let base = point_of(&stable);
    let mut highest: BTreeMap<u64, &Certificate> = BTreeMap::new();
    for certificate in view_changes.flat_map(|view_change| &view_change.prepared) {
        let known = highest.entry(certificate.batch.number).or_insert(certificate);
        let is_higher = known.view < certificate.view;
        if is_higher != is_lowest {
            *known = certificate;
        }
    }
    let mut end = End::after(&base);
    let mut batches = Vec::new();
    while let Some(certificate) = highest.get(&end.number) {
        if !end.continues(&certificate.batch) {
            break;
        }
        end = End::of(&certificate.batch, end.assignment);
        batches.push(Arc::clone(&certificate.batch));
    }
    Outcome { stable, batches }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identifiers::{GroupId, MachineId, Order, View};
    use crate::ledger::{HistoryPoint, PrepareEntry};

    /// A batch of two entries; `mark` tells it from others.
    fn certificate(view: u64, number: u64, mark: u8) -> Arc<Certificate> {
        let entry = PrepareEntry {
            group: GroupId(0),
            digest: [mark; 32],
        };
        Arc::new(Certificate {
            view: View(view),
            batch: Arc::new(Batch {
                number,
                first: Order(2 * number - 1),
                time_us: 10 * number,
                entries: vec![entry; 2],
            }),
            signatures: Vec::new(),
        })
    }

    fn view_change(machine: u8, stable: u64, prepared: Vec<Arc<Certificate>>) -> Arc<ViewChange> {
        let point = HistoryPoint {
            order: Order(2 * stable),
            time_us: 10 * stable + 1,
            value: stable,
            ..HistoryPoint::GENESIS
        };
        let signatures = Vec::new();
        Arc::new(ViewChange {
            machine: MachineId(machine),
            view: View(9),
            requests: Vec::new(),
            stable: (stable > 0).then_some(StableCheckpoint {
                point,
                clients: [0; 32],
                signatures,
            }),
            prepared,
            signature: [0; 64],
        })
    }

    /// Base and the marks of the batches, in whatever order the view changes stand.
    fn outcome(mut view_changes: Vec<Arc<ViewChange>>) -> (u64, Vec<u8>) {
        #[cfg_attr(not(feature = "mutants"), expect(unused_mut, reason = "only a mutant changes it"))]
        let mut configuration = Configuration::pbft(MachineId(0), crate::configuration::Faults(1), 1);
        #[cfg(feature = "mutants")]
        if let Ok(name) = std::env::var("MUTANT") {
            configuration.mutant = Mutant::from_name(&name);
        }
        let outcome = compute(view_changes.iter(), &configuration);
        view_changes.reverse();
        assert_eq!(
            compute(view_changes.iter(), &configuration),
            outcome,
            "the order does not matter"
        );
        let marks = outcome.batches.iter().map(|batch| batch.entries[0].digest[0]);
        (point_of(&outcome.stable).value, marks.collect())
    }

    #[test]
    fn all_view_changes_count_and_the_highest_view_wins() {
        let all = vec![
            view_change(0, 0, vec![certificate(1, 1, 1), certificate(1, 2, 2)]),
            view_change(1, 0, vec![certificate(3, 2, 5)]),
            view_change(2, 0, vec![certificate(2, 2, 4), certificate(2, 3, 6)]),
        ];
        assert_eq!(outcome(all), (0, vec![1, 5, 6]));
    }

    #[test]
    fn the_highest_checkpoint_is_the_base() {
        let all = vec![
            view_change(0, 0, vec![certificate(1, 1, 1), certificate(1, 3, 3)]),
            view_change(1, 2, vec![]),
            view_change(2, 1, vec![certificate(1, 2, 2), certificate(1, 4, 4)]),
        ];
        assert_eq!(outcome(all), (2, vec![3, 4]));
    }

    #[test]
    fn a_gap_or_a_batch_that_does_not_continue_ends_it() {
        let gap = vec![view_change(0, 0, vec![certificate(1, 1, 1), certificate(1, 3, 3)])];
        assert_eq!(outcome(gap), (0, vec![1]));
        let mut other = (*certificate(1, 2, 2)).clone();
        Arc::make_mut(&mut other.batch).first = Order(4);
        let prepared = vec![certificate(1, 1, 1), Arc::new(other), certificate(1, 3, 3)];
        assert_eq!(outcome(vec![view_change(0, 0, prepared)]), (0, vec![1]));
        assert_eq!(outcome(vec![view_change(0, 0, vec![])]), (0, vec![]));
    }
}
