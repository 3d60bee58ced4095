//! When what is due: one table, for the machines of both protocols.

use std::collections::BTreeMap;

/// The things that a machine may have to do at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// In a view: ask for bodies that were ordered and did not come.
    Bodies,
    /// In a view: a batch whose time is ahead of our clock may be near enough.
    Clock,
    /// In a view: look whether anything is stuck.
    Tick,
    /// In a view: nothing is decided any more, so sign a checkpoint although none is due.
    Idle,
    /// In a view, the primary: send again what a quorum does not get on with.
    Resend,
    /// Between views: the next one does not come, so want the one after it.
    NextView,
    /// Between views: say again what may have got lost.
    Repeat,
    /// The candidate of a view: do not wait for further VIEW-CHANGEs any more, or say NEW-VIEW again.
    Choose,
    /// Say again that another view is wanted.
    Wish,
    /// Without a view: announce this machine.
    Hello,
}

impl Timer {
    /// The timers of a machine that takes part in a view.
    pub(crate) const LIVE: [Timer; 5] = [Timer::Bodies, Timer::Clock, Timer::Tick, Timer::Idle, Timer::Resend];
}

/// The table: times in microseconds, monotonic.
#[derive(Debug, Default)]
pub(crate) struct Timers(BTreeMap<Timer, u64>);

impl Timers {
    pub(crate) fn set(&mut self, timer: Timer, at_us: u64) {
        self.0.insert(timer, at_us);
    }

    /// Sets a timer, unless it is set for an earlier time.
    pub(crate) fn set_earlier(&mut self, timer: Timer, at_us: u64) {
        let known_us = self.0.entry(timer).or_insert(at_us);
        *known_us = at_us.min(*known_us);
    }

    /// Sets a timer, or stops it.
    pub(crate) fn set_or_stop(&mut self, timer: Timer, at_us: Option<u64>) {
        match at_us {
            Some(at_us) => self.set(timer, at_us),
            None => self.stop(timer),
        }
    }

    pub(crate) fn stop(&mut self, timer: Timer) {
        self.0.remove(&timer);
    }

    pub(crate) fn stop_all(&mut self, timers: &[Timer]) {
        timers.iter().for_each(|timer| self.stop(*timer));
    }

    /// When it is due, if it is set.
    pub(crate) fn at_us(&self, timer: Timer) -> Option<u64> {
        self.0.get(&timer).copied()
    }

    pub(crate) fn is_set(&self, timer: Timer) -> bool {
        self.0.contains_key(&timer)
    }

    pub(crate) fn is_due(&self, timer: Timer, now_us: u64) -> bool {
        self.at_us(timer).is_some_and(|at_us| at_us <= now_us)
    }

    /// When the first one is due.
    pub(crate) fn next(&self) -> Option<u64> {
        self.0.values().copied().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_due_is_next_and_what_is_stopped_never_is() {
        let mut timers = Timers::default();
        assert_eq!(timers.next(), None);
        timers.set(Timer::Tick, 20);
        timers.set(Timer::Bodies, 10);
        timers.set_earlier(Timer::Bodies, 15);
        assert_eq!((timers.next(), timers.is_due(Timer::Bodies, 9)), (Some(10), false));
        assert!(timers.is_due(Timer::Bodies, 10) && !timers.is_due(Timer::Hello, 10));
        timers.set_or_stop(Timer::Bodies, None);
        assert_eq!((timers.next(), timers.is_set(Timer::Bodies)), (Some(20), false));
        timers.set_earlier(Timer::Tick, 5);
        assert_eq!(timers.next(), Some(5));
    }
}
