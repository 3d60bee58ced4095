//! The trusted counter of a machine in the simulation: true, or deliberately broken.

use std::cell::RefCell;
use std::rc::Rc;

use trusted_counter::{Certificate, CounterIdentity, SoftwareCounter, TrustedCounter, UniqueWarrant};

const SHARED_KEY: [u8; 32] = [42; 32];

/// Epochs of counters that are restarted without need begin here: far above those of ordinary lives.
const RESTARTED_EPOCHS: u64 = 1 << 32;

/// Whether a counter keeps its promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Never certifies two digests at one value.
    True,
    /// The canary: certifies whatever it is asked for at any value.
    Broken,
}

/// One machine's counter.
pub struct Counter {
    inner: SoftwareCounter,
    trust: Trust,
    /// In an epoch that no view admits: what its machine got when it last restarted it without need.
    restarted: Option<SoftwareCounter>,
}

/// A counter that twins share.
pub type SharedCounter = Rc<RefCell<Counter>>;

impl Counter {
    /// The counter of a machine in an epoch.
    pub fn new(machine: u8, epoch: u64, trust: Trust) -> Self {
        Counter {
            inner: SoftwareCounter::volatile_keyed(identity(machine), SHARED_KEY, epoch),
            trust,
            restarted: None,
        }
    }

    /// Whether it keeps its promise.
    pub fn trust(&self) -> Trust {
        self.trust
    }

    /// The epoch of this life.
    pub fn epoch(&self) -> u64 {
        self.inner.epoch()
    }

    /// The value of a slot's last warrant.
    pub fn position(&mut self, slot: u32) -> u64 {
        self.inner.position(slot).expect("few slots")
    }

    /// The next warrant of a slot.
    pub fn create(&mut self, slot: u32, digest: &[u8; 32]) -> UniqueWarrant {
        self.inner.create_uw(slot, digest).expect("few slots, few values")
    }

    /// A warrant at this very value: from a true counter only when it is the next one.
    pub fn create_at(&mut self, slot: u32, value: u64, digest: &[u8; 32]) -> Option<UniqueWarrant> {
        if value == self.position(slot) + 1 {
            return Some(self.create(slot, digest));
        }
        if self.trust == Trust::True || value == 0 {
            return None;
        }
        let mut again = SoftwareCounter::volatile_keyed(self.inner.identity(), SHARED_KEY, self.inner.epoch());
        for _ in 1..value {
            again.create_uw(slot, &[0; 32]).ok()?;
        }
        again.create_uw(slot, digest).ok()
    }

    /// A warrant at this very value in another epoch, which keeps its promise too: the counter is restarted when it is
    /// beyond that value already, and spent up to it.
    pub fn create_restarted(&mut self, slot: u32, value: u64, digest: &[u8; 32]) -> Option<UniqueWarrant> {
        let last = self.restarted.as_ref().map(SoftwareCounter::epoch);
        let fresh = last.map_or(RESTARTED_EPOCHS + (self.inner.epoch() << 16), |epoch| epoch + 1);
        let identity = self.inner.identity();
        let restarted = || SoftwareCounter::volatile_keyed(identity, SHARED_KEY, fresh);
        let mut counter = self.restarted.take().unwrap_or_else(restarted);
        if counter.position(slot).ok()? >= value {
            counter = restarted();
        }
        while counter.position(slot).ok()? + 1 < value {
            counter.create_uw(slot, &[0; 32]).ok()?;
        }
        let warrant = counter.create_uw(slot, digest).ok();
        self.restarted = Some(counter);
        warrant
    }

    /// What an adversary shows to its own production code in place of a warrant: it certifies nothing.
    pub fn pretend(&self, slot: u32, value: u64) -> UniqueWarrant {
        UniqueWarrant {
            epoch: self.inner.epoch(),
            value,
            slot,
            certificate: Certificate::Keyed([0; 32]),
        }
    }
}

/// The identity of a machine's counter.
pub fn identity(machine: u8) -> CounterIdentity {
    CounterIdentity([machine; 32])
}

/// Verifies the warrants of all machines.
pub fn verifier(machines: u8) -> std::sync::Arc<dyn trusted_counter::WarrantVerifier> {
    SoftwareCounter::volatile_keyed(identity(0), SHARED_KEY, 0).verifier((0..machines).map(identity))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restarted_counter_certifies_at_the_same_values_in_other_epochs() {
        let mut counter = Counter::new(1, 7, Trust::True);
        let admitted = counter.create(1, &[1; 32]);
        let mut restarted = |value: u64| counter.create_restarted(1, value, &[2; 32]).unwrap();
        let warrants = [restarted(1), restarted(3), restarted(3)];
        assert_eq!(warrants.map(|warrant| warrant.value), [1, 3, 3]);
        assert_eq!(warrants[0].epoch, warrants[1].epoch);
        assert!(warrants[2].epoch > warrants[1].epoch && warrants[0].epoch > admitted.epoch);
        let verifier = verifier(4);
        for warrant in &warrants {
            assert!(verifier.verify_uw(&identity(1), warrant, &[2; 32]).is_ok());
        }
        assert_eq!(counter.position(1), 1, "nothing of the admitted epoch was spent");
    }

    #[test]
    fn only_a_broken_counter_certifies_twice() {
        let mut counter = Counter::new(1, 1, Trust::True);
        assert!(counter.create_at(0, 1, &[1; 32]).is_some());
        assert!(counter.create_at(0, 1, &[2; 32]).is_none());
        let mut broken = Counter::new(1, 1, Trust::Broken);
        let first = broken.create_at(0, 1, &[1; 32]).unwrap();
        let second = broken.create_at(0, 1, &[2; 32]).unwrap();
        assert_eq!((first.epoch, first.value), (second.epoch, second.value));
        let verifier = verifier(4);
        assert!(verifier.verify_uw(&identity(1), &first, &[1; 32]).is_ok());
        assert!(verifier.verify_uw(&identity(1), &second, &[2; 32]).is_ok());
        assert!(verifier.verify_uw(&identity(1), &first, &[2; 32]).is_err());
        assert!(
            verifier
                .verify_uw(&identity(1), &broken.pretend(0, 2), &[2; 32])
                .is_err()
        );
    }
}
