//! Random values of clauses 2.1 and 4.3.2. A seed gives the same values again on every platform.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// The syllables of last names, clause 4.3.2.3.
const SYLLABLES: [&str; 10] = [
    "BAR", "OUGHT", "ABLE", "PRI", "PRES", "ESE", "ANTI", "CALLY", "ATION", "EING",
];
const ALPHANUMERIC: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Width of NURand's first draw for last names, customers and items, clause 2.1.6.
const LAST_NAME_WIDTH: i32 = 255;
const CUSTOMER_WIDTH: i32 = 1023;
const ITEM_WIDTH: i32 = 8191;
/// The constant C of last names while loading. A run must know it to choose its own (clause 2.1.6.1).
const LAST_NAME_LOAD_CONSTANT: i32 = 157;
/// Last names are numbers below this one.
pub(crate) const LAST_NAMES: i32 = 1_000;

/// The constants C of NURand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Constants {
    last_name: i32,
    customer: i32,
    item: i32,
}

impl Constants {
    /// The constants of the loader.
    pub(crate) fn for_load() -> Self {
        Self {
            last_name: LAST_NAME_LOAD_CONSTANT,
            customer: 0,
            item: 0,
        }
    }

    /// The constants of a run, one set for all its terminals: the one for last names differs from the loader's by
    /// 65 to 119, but not by 96 or 112 (clause 2.1.6.1).
    pub(crate) fn for_run(random: &mut Random) -> Self {
        let last_name = loop {
            let candidate = random.uniform(0, LAST_NAME_WIDTH);
            if is_valid_last_name_delta((candidate - LAST_NAME_LOAD_CONSTANT).abs()) {
                break candidate;
            }
        };
        Self {
            last_name,
            customer: random.uniform(0, CUSTOMER_WIDTH),
            item: random.uniform(0, ITEM_WIDTH),
        }
    }
}

fn is_valid_last_name_delta(delta: i32) -> bool {
    (65..=119).contains(&delta) && delta != 96 && delta != 112
}

/// A seeded source of TPC-C's random values.
#[derive(Debug, Clone)]
pub(crate) struct Random {
    generator: Xoshiro256PlusPlus,
}

impl Random {
    /// The source with this seed, for this stream of values (a warehouse, a terminal).
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mixed = seed ^ stream.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Self {
            generator: Xoshiro256PlusPlus::seed_from_u64(mixed),
        }
    }

    /// random(low .. high), both inclusive.
    pub(crate) fn uniform(&mut self, low: i32, high: i32) -> i32 {
        self.generator.random_range(low..=high)
    }

    /// Like [`Self::uniform`], for amounts.
    pub(crate) fn units(&mut self, low: i64, high: i64) -> i64 {
        self.generator.random_range(low..=high)
    }

    /// True in so many of a hundred cases.
    pub(crate) fn percent(&mut self, percent: i32) -> bool {
        self.uniform(1, 100) <= percent
    }

    /// A number from (0, 1], never zero: its logarithm is finite.
    pub(crate) fn fraction(&mut self) -> f64 {
        1.0 - self.generator.random::<f64>()
    }

    /// NURand(A, x, y) of clause 2.1.6.
    fn non_uniform(&mut self, width: i32, constant: i32, low: i32, high: i32) -> i32 {
        let mixed = self.uniform(0, width) | self.uniform(low, high);
        (mixed + constant) % (high - low + 1) + low
    }

    /// The number of a last name, below `names` (1,000 by the specification).
    pub(crate) fn last_name_number(&mut self, constants: &Constants, names: i32) -> i32 {
        self.non_uniform(LAST_NAME_WIDTH, constants.last_name, 0, names - 1)
    }

    /// A customer of a district.
    pub(crate) fn customer(&mut self, constants: &Constants, customers: i32) -> i32 {
        self.non_uniform(CUSTOMER_WIDTH, constants.customer, 1, customers)
    }

    /// An item.
    pub(crate) fn item(&mut self, constants: &Constants, items: i32) -> i32 {
        self.non_uniform(ITEM_WIDTH, constants.item, 1, items)
    }

    /// A random a-string [low .. high].
    pub(crate) fn text(&mut self, low: i32, high: i32) -> String {
        let length = self.uniform(low, high);
        (0..length)
            .filter_map(|_| ALPHANUMERIC.get(self.generator.random_range(0..ALPHANUMERIC.len())))
            .map(|byte| char::from(*byte))
            .collect()
    }

    /// A random n-string of this length.
    pub(crate) fn digits(&mut self, length: i32) -> String {
        (0..length)
            .filter_map(|_| char::from_digit(self.generator.random_range(0..10), 10))
            .collect()
    }

    /// Four random digits and "11111", clause 4.3.2.7.
    pub(crate) fn zip(&mut self) -> String {
        self.digits(4) + "11111"
    }

    /// A text [26 .. 50] that holds "ORIGINAL" in a tenth of all cases, clause 4.3.3.1.
    pub(crate) fn data(&mut self) -> String {
        let mut text = self.text(26, 50);
        if self.percent(10) {
            let length = i32::try_from(text.len()).unwrap_or_default();
            let start = usize::try_from(self.uniform(0, length - 8)).unwrap_or_default();
            text.replace_range(start..start + 8, "ORIGINAL");
        }
        text
    }

    /// The numbers 1 to `count` in random order.
    pub(crate) fn permutation(&mut self, count: i32) -> Vec<i32> {
        let mut numbers: Vec<i32> = (1..=count).collect();
        self.shuffle(&mut numbers);
        numbers
    }

    /// Puts a slice into random order.
    pub(crate) fn shuffle<T>(&mut self, slice: &mut [T]) {
        for end in (1..slice.len()).rev() {
            slice.swap(end, self.generator.random_range(0..=end));
        }
    }
}

/// The last name with this number, clause 4.3.2.3.
pub(crate) fn last_name(number: i32) -> String {
    [number / 100, number / 10, number]
        .into_iter()
        .filter_map(|digit| SYLLABLES.get(usize::try_from(digit % 10).ok()?))
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_names_follow_clause_4_3_2_3() {
        assert_eq!(last_name(0), "BARBARBAR");
        assert_eq!(last_name(371), "PRICALLYOUGHT");
        assert_eq!(last_name(40), "BARPRESBAR");
        assert_eq!(last_name(999), "EINGEINGEING");
    }

    #[test]
    fn non_uniform_values_stay_in_range_and_are_not_uniform() {
        let mut random = Random::new(1, 0);
        let constants = Constants::for_run(&mut random);
        let mut counts = vec![0_u32; 3_001];
        for _ in 0..300_000 {
            counts[usize::try_from(random.customer(&constants, 3_000)).unwrap()] += 1;
        }
        assert_eq!(counts[0], 0);
        // Uniform counts would lie within 100 ± 60; NURand's hottest customers are far above.
        assert!(counts.iter().any(|count| *count > 300));
        assert!(counts[1..].iter().filter(|count| **count < 60).count() > 300);
    }

    #[test]
    fn non_uniform_follows_a_smaller_cardinality() {
        let mut random = Random::new(2, 0);
        let constants = Constants::for_run(&mut random);
        for _ in 0..10_000 {
            assert!((1..=1_000).contains(&random.item(&constants, 1_000)));
            assert!((1..=300).contains(&random.customer(&constants, 300)));
            assert!((0..300).contains(&random.last_name_number(&constants, 300)));
        }
    }

    #[test]
    fn the_run_constant_keeps_the_distance_of_clause_2_1_6_1() {
        for seed in 0..500 {
            let constants = Constants::for_run(&mut Random::new(seed, 0));
            let delta = (constants.last_name - Constants::for_load().last_name).abs();
            assert!((65..=119).contains(&delta) && delta != 96 && delta != 112, "{delta}");
        }
    }

    #[test]
    fn a_seed_gives_the_same_values_again_and_streams_differ() {
        let values = |seed, stream| Random::new(seed, stream).text(20, 20);
        assert_eq!(values(7, 1), values(7, 1));
        assert_ne!(values(7, 1), values(7, 2));
        assert_ne!(values(7, 1), values(8, 1));
    }

    #[test]
    fn a_tenth_of_the_data_is_original() {
        let mut random = Random::new(3, 0);
        let texts: Vec<String> = (0..10_000).map(|_| random.data()).collect();
        let original = texts.iter().filter(|text| text.contains("ORIGINAL")).count();
        assert!((850..1_150).contains(&original), "{original}");
        assert!(texts.iter().all(|text| (26..=50).contains(&text.len())));
    }
}
