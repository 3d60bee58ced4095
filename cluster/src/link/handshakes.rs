//! Connections whose peer has not shown yet who it is: bounded, and never in the way of those who do.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use tokio::task::AbortHandle;

/// Handshakes in progress at once: strangers cannot pile up connections.
pub(super) const HANDSHAKES_MAX: usize = 256;

/// Handshakes in progress, oldest first.
///
/// When there are too many, the oldest one of the address that has most is given up. A peer's own handshake takes some
/// milliseconds, so it is done before strangers at the same address can have it given up, and those at other addresses
/// never can.
#[derive(Default)]
pub(super) struct Handshakes {
    running: VecDeque<(IpAddr, AbortHandle)>,
}

impl Handshakes {
    /// Takes a new one.
    pub(super) fn add(&mut self, address: IpAddr, task: AbortHandle) {
        self.running.retain(|(_, task)| !task.is_finished());
        if self.running.len() >= HANDSHAKES_MAX
            && let Some((_, oldest)) = self.crowded().and_then(|at| self.running.remove(at))
        {
            metrics::counter!("cloudbft_link_refused_total").increment(1);
            oldest.abort();
        }
        self.running.push_back((address, task));
    }

    /// The oldest of the address that has most.
    fn crowded(&self) -> Option<usize> {
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        self.running
            .iter()
            .for_each(|(address, _)| *counts.entry(*address).or_default() += 1);
        let (most, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        self.running.iter().position(|(address, _)| *address == most)
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        self.running.iter().for_each(|(_, task)| task.abort());
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn running() -> tokio::task::JoinHandle<()> {
        tokio::spawn(std::future::pending())
    }

    #[tokio::test]
    async fn the_oldest_of_the_address_that_has_most_goes() {
        let (peer, stranger) = (Ipv4Addr::new(10, 0, 0, 1).into(), Ipv4Addr::new(10, 0, 0, 2).into());
        let mut handshakes = Handshakes::default();
        let own = running();
        handshakes.add(peer, own.abort_handle());
        let first = running();
        handshakes.add(stranger, first.abort_handle());
        for _ in 0..3 * HANDSHAKES_MAX {
            handshakes.add(stranger, running().abort_handle());
        }
        let first = tokio::time::timeout(std::time::Duration::from_secs(5), first).await;
        assert!(first.unwrap().unwrap_err().is_cancelled());
        assert!(!own.is_finished());
        assert_eq!(handshakes.running.len(), HANDSHAKES_MAX);
        drop(handshakes);
        assert!(own.await.unwrap_err().is_cancelled());
    }

    #[tokio::test]
    async fn one_that_has_ended_takes_no_place() {
        let mut handshakes = Handshakes::default();
        let waiting = running();
        handshakes.add(Ipv4Addr::LOCALHOST.into(), waiting.abort_handle());
        for _ in 0..2 * HANDSHAKES_MAX {
            let ended = tokio::spawn(async {});
            handshakes.add(Ipv4Addr::LOCALHOST.into(), ended.abort_handle());
            ended.await.unwrap();
        }
        assert!(!waiting.is_finished());
    }
}
