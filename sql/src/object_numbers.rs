//! The numbers of objects (OIDs), as a server gives them: one after the other, and after the highest from the beginning again.
//! Pure arithmetic, the same for proxies and voters (`docs/decisions/0047-servers-number-objects-alike.md`).

/// The first number that a server gives to an object of an application's (PostgreSQL's `FirstNormalObjectId`).
pub const FIRST: u32 = 16_384;

/// How many numbers there are.
const COUNT: u64 = (1 << 32) - FIRST as u64;

/// The number that a server gives `count` numbers after this one. What is below [`FIRST`] counts as that.
#[must_use]
pub fn after(number: u32, count: u32) -> u32 {
    let place = (place(number) + u64::from(count)) % COUNT;
    u32::try_from(place + u64::from(FIRST)).unwrap_or(FIRST)
}

/// How far `number` is ahead of `reference`, the shorter way round; negative: how far behind.
#[must_use]
pub fn ahead(number: u32, reference: u32) -> i64 {
    let distance = (place(number) + COUNT - place(reference)) % COUNT;
    let (distance, count) = (distance.cast_signed(), COUNT.cast_signed());
    if distance > count / 2 {
        distance - count
    } else {
        distance
    }
}

fn place(number: u32) -> u64 {
    u64::from(number.saturating_sub(FIRST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_highest_number_comes_the_first_one_again() {
        assert_eq!(after(FIRST, 1), FIRST + 1);
        assert_eq!(after(u32::MAX, 1), FIRST);
        assert_eq!(after(u32::MAX - 1, 5), FIRST + 3);
        assert_eq!(after(0, 0), FIRST, "a server gives none below");
    }

    #[test]
    fn the_shorter_way_tells_who_is_ahead() {
        for (number, reference, expected) in [
            (20_000, 20_000, 0),
            (20_008, 20_000, 8),
            (20_000, 20_008, -8),
            (FIRST, u32::MAX, 1),
            (u32::MAX, FIRST, -1),
            (FIRST + 2_000_000_000, FIRST, 2_000_000_000),
            (FIRST + 3_000_000_000, FIRST, 3_000_000_000 - 4_294_950_912),
        ] {
            assert_eq!(ahead(number, reference), expected, "{number} {reference}");
        }
    }
}
