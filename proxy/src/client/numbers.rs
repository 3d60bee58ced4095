//! Numbers of requests and direct statements: unique for ever, and bounded in how many are outstanding.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ordering::message::REQUEST_WINDOW;
use tokio::sync::Notify;

/// The first number of a run of the proxy: its incarnation is in the high half.
pub(super) fn first_number(incarnation: u32) -> u64 {
    u64::from(incarnation) << 32 | 1
}

/// The outstanding request numbers.
#[derive(Debug)]
pub(super) struct Numbers {
    window: Mutex<Window>,
    freed: Notify,
}

#[derive(Debug)]
struct Window {
    next: u64,
    outstanding: BTreeSet<u64>,
}

impl Window {
    fn floor(&self) -> u64 {
        self.outstanding.first().copied().unwrap_or(self.next)
    }
}

/// A number in use; dropping it gives it up.
#[derive(Debug)]
pub(super) struct Number<'numbers> {
    pub(super) number: u64,
    /// The lowest number that was outstanding when this one was taken.
    pub(super) floor: u64,
    numbers: &'numbers Numbers,
}

impl Numbers {
    pub(super) fn new(incarnation: u32) -> Self {
        let window = Window {
            next: first_number(incarnation),
            outstanding: BTreeSet::new(),
        };
        Self {
            window: Mutex::new(window),
            freed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_take(&self) -> Option<Number<'_>> {
        let mut window = self.lock();
        let (number, floor) = (window.next, window.floor());
        if number - floor >= REQUEST_WINDOW {
            return None;
        }
        window.next += 1;
        window.outstanding.insert(number);
        Some(Number {
            number,
            floor,
            numbers: self,
        })
    }

    /// The next number, as soon as the window has room for it.
    pub(super) async fn take(&self) -> Number<'_> {
        loop {
            let freed = self.freed.notified();
            if let Some(number) = self.try_take() {
                return number;
            }
            freed.await;
        }
    }

    /// How many requests are outstanding.
    pub(super) fn outstanding(&self) -> usize {
        self.lock().outstanding.len()
    }
}

impl Drop for Number<'_> {
    fn drop(&mut self) {
        let mut window = self.numbers.lock();
        let was_floor = window.floor() == self.number;
        window.outstanding.remove(&self.number);
        drop(window);
        if was_floor {
            self.numbers.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_run_starts_above_an_earlier_one() {
        let earlier = Numbers::new(7);
        assert!(earlier.try_take().unwrap().number < first_number(8));
    }

    #[test]
    fn the_window_is_bounded_by_the_oldest() {
        let numbers = Numbers::new(1);
        let oldest = numbers.try_take().unwrap();
        for _ in 1..REQUEST_WINDOW {
            assert_eq!(numbers.try_take().unwrap().floor, oldest.number);
        }
        assert!(numbers.try_take().is_none());
        drop(oldest);
        let next = numbers.try_take().unwrap();
        assert_eq!(next.floor, next.number);
    }
}
