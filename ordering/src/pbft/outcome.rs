//! How a view begins, computed from the VIEW-CHANGEs in its NEW-VIEW alone: the same on every machine.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::identifiers::Order;
use crate::minbft::{HistoryPoint, StableCheckpoint};
use crate::pbft::messages::{Batch, Certificate, ViewChange};

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
pub(crate) fn compute<'a>(view_changes: impl Iterator<Item = &'a Arc<ViewChange>> + Clone) -> Outcome {
    let stable = view_changes
        .clone()
        .filter_map(|view_change| view_change.stable.as_ref())
        .max_by_key(|stable| stable.point.order)
        .cloned();
    let base = point_of(&stable);
    let mut highest: BTreeMap<u64, &Certificate> = BTreeMap::new();
    for certificate in view_changes.flat_map(|view_change| &view_change.prepared) {
        let known = highest.entry(certificate.batch.number).or_insert(certificate);
        if known.view < certificate.view {
            *known = certificate;
        }
    }
    let mut end = End::after(&base);
    let mut batches = Vec::new();
    while let Some(certificate) = highest.get(&end.number) {
        if !end.continues(&certificate.batch) {
            break;
        }
        end = End::of(&certificate.batch);
        batches.push(Arc::clone(&certificate.batch));
    }
    Outcome { stable, batches }
}

/// Where a history goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// The number of the next batch.
    pub(crate) number: u64,
    /// The next order.
    pub(crate) order: Order,
    /// The time of the last order.
    pub(crate) time_us: u64,
}

impl End {
    pub(crate) fn after(point: &HistoryPoint) -> Self {
        End {
            number: point.value + 1,
            order: point.order.next(),
            time_us: point.time_us,
        }
    }

    pub(crate) fn of(batch: &Batch) -> Self {
        End {
            number: batch.number + 1,
            order: batch.last().next(),
            time_us: batch.last_us(),
        }
    }

    /// Whether a batch is the next one: number and orders without gap, times that rise.
    pub(crate) fn continues(&self, batch: &Batch) -> bool {
        batch.number == self.number && batch.first == self.order && batch.time_us > self.time_us
    }
}

/// The point of a stable checkpoint.
pub(crate) fn point_of(stable: &Option<StableCheckpoint>) -> HistoryPoint {
    stable.as_ref().map_or(HistoryPoint::GENESIS, |stable| stable.point)
}
