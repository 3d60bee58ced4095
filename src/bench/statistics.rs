//! The arithmetic of figures that were measured several times.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What several rounds gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// The smallest.
    pub(crate) min: f64,
    /// The middle one, or the mean of the middle two.
    pub(crate) median: f64,
    /// The largest.
    pub(crate) max: f64,
}

impl Spread {
    /// Of some values; `None` when there are none. Values that are not numbers are left out.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let upper = sorted.get(sorted.len() / 2)?;
        let lower = sorted.get((sorted.len() - 1) / 2)?;
        Some(Self {
            min: *sorted.first()?,
            median: f64::midpoint(*lower, *upper),
            max: *sorted.last()?,
        })
    }

    /// Of the ratios of values measured in the same round; rounds whose denominator is zero are left out.
    pub(crate) fn of_ratios(numerators: &[f64], denominators: &[f64]) -> Option<Self> {
        let pairs = numerators.iter().zip(denominators);
        Self::of(
            pairs
                .filter(|(_, denominator)| **denominator > 0.0)
                .map(|(numerator, denominator)| numerator / denominator),
        )
    }
}

/// Response times of a closed loop, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Percentiles {
    /// How many were measured.
    pub(crate) count: usize,
    /// Mean.
    pub(crate) mean_ms: f64,
    /// Median.
    pub(crate) p50_ms: f64,
    /// 95th percentile.
    pub(crate) p95_ms: f64,
    /// 99th percentile.
    pub(crate) p99_ms: f64,
}

impl Percentiles {
    /// Of response times in any order (nearest rank).
    pub(crate) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let count = times.len();
        let at = |percent: usize| {
            let rank = (count * percent).div_ceil(100).max(1);
            times.get(rank - 1).map_or(0.0, |time| milliseconds(*time))
        };
        let sum: Duration = times.iter().sum();
        Self {
            count,
            mean_ms: per(milliseconds(sum), count as u64),
            p50_ms: at(50),
            p95_ms: at(95),
            p99_ms: at(99),
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// An amount for each of `count`; nothing when there are none.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn per(amount: f64, count: u64) -> f64 {
    if count == 0 { 0.0 } else { amount / count as f64 }
}

/// One count for each of another; nothing when there are none.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn ratio(amount: u64, count: u64) -> f64 {
    per(amount as f64, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 2.5, 4.0));
        assert_eq!(Spread::of([7.0]).unwrap().median, 7.0);
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([f64::NAN, 1.0]).unwrap().max, 1.0);
    }

    #[test]
    fn ratios_pair_the_rounds_before_they_are_spread() {
        let spread = Spread::of_ratios(&[50.0, 90.0, 30.0], &[100.0, 100.0, 50.0]).unwrap();
        assert_eq!((spread.min, spread.median, spread.max), (0.5, 0.6, 0.9));
        assert_eq!(
            Spread::of_ratios(&[1.0], &[0.0]),
            None,
            "a round that did nothing has no ratio"
        );
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let times = (1..=200).rev().map(Duration::from_millis).collect();
        let all = Percentiles::of(times);
        assert_eq!(
            (all.count, all.p50_ms, all.p95_ms, all.p99_ms),
            (200, 100.0, 190.0, 198.0)
        );
        assert!((all.mean_ms - 100.5).abs() < 1e-9);
        assert_eq!(Percentiles::of(Vec::new()), Percentiles::default());
        assert_eq!(Percentiles::of(vec![Duration::from_millis(3)]).p99_ms, 3.0);
    }
}
