//! Where a held cursor stands, and which rows FETCH and MOVE take: what PostgreSQL's `DoPortalRunFetch` and `PortalRunSelect`
//! (`src/backend/tcop/pquery.c`) do with a portal whose rows are stored.

use std::ops::Range;

use sql::statement::Direction;

/// The cursor is NO SCROLL, and was asked to go backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ForwardOnly;

/// Rows that are taken, by their place among those that are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) rows: Range<u64>,
    /// The last one comes first.
    pub(super) backward: bool,
    /// The number in the tag.
    pub(super) count: u64,
}

impl Taken {
    fn of(rows: Range<u64>, backward: bool) -> Self {
        let count = rows.end - rows.start;
        Self { rows, backward, count }
    }
}

/// A position before, on, or after the rows of a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) scrolls: bool,
    /// Before the first row. An empty result can be before its first and after its last row at once.
    pub(super) at_start: bool,
    /// After the last row.
    pub(super) at_end: bool,
    /// Rows up to and with the present one.
    pub(super) at: u64,
    /// Rows that are not kept, because a cursor that cannot go backward had taken them already.
    pub(super) before: u64,
    /// Rows that are kept.
    pub(super) kept: u64,
}

impl Position {
    /// Takes rows; for MOVE (`moves`) only their number counts.
    ///
    /// # Errors
    /// When that needs to go backward and the cursor cannot. It may have moved all the same.
    pub(super) fn take(&mut self, direction: Direction, moves: bool) -> Result<Taken, ForwardOnly> {
        let opposite = |rows: i64| Some(rows.unsigned_abs());
        match direction {
            Direction::Absolute(number) => self.absolute(number),
            Direction::Relative(0) => self.straight(true, Some(0), moves),
            Direction::Relative(rows) if rows > 0 => {
                self.forward(Some(rows.unsigned_abs() - 1));
                Ok(self.forward(Some(1)))
            }
            Direction::Relative(rows) => {
                if rows < -1 {
                    self.backward(Some(rows.unsigned_abs() - 1))?;
                }
                self.backward(Some(1))
            }
            Direction::Forward(Some(rows)) if rows < 0 => self.straight(false, opposite(rows), moves),
            Direction::Backward(Some(rows)) if rows < 0 => self.straight(true, opposite(rows), moves),
            Direction::Forward(rows) => self.straight(true, rows.map(i64::unsigned_abs), moves),
            Direction::Backward(rows) => self.straight(false, rows.map(i64::unsigned_abs), moves),
        }
    }

    /// Without a number: all.
    fn straight(&mut self, mut forward: bool, mut rows: Option<u64>, moves: bool) -> Result<Taken, ForwardOnly> {
        if rows == Some(0) {
            // The present row, once more.
            let on_row = !self.at_start && !self.at_end;
            if moves {
                let count = u64::from(on_row);
                return Ok(Taken {
                    count,
                    ..Taken::default()
                });
            }
            if on_row {
                self.backward(Some(1))?;
                (forward, rows) = (true, Some(1));
            }
        }
        if !forward && rows.is_none() && moves {
            let count = self.at.saturating_sub(u64::from(!self.at_end));
            self.rewind()?;
            return Ok(Taken {
                count,
                ..Taken::default()
            });
        }
        match forward {
            true => Ok(self.forward(rows)),
            false => self.backward(rows),
        }
    }

    fn absolute(&mut self, number: i64) -> Result<Taken, ForwardOnly> {
        let wanted = number.unsigned_abs();
        if number == 0 {
            self.rewind()?;
            return Ok(Taken::default());
        }
        if number < 0 {
            self.forward(None);
            if wanted > 1 {
                self.backward(Some(wanted - 1))?;
            }
            return self.backward(Some(1));
        }
        if wanted - 1 <= self.at / 2 {
            self.rewind()?;
            self.forward(Some(wanted - 1));
        } else {
            let at = self.at + u64::from(self.at_end);
            if wanted <= at {
                self.backward(Some(at - wanted + 1))?;
            } else {
                self.forward(Some(wanted - at - 1));
            }
        }
        Ok(self.forward(Some(1)))
    }

    fn forward(&mut self, rows: Option<u64>) -> Taken {
        if self.at_end || rows == Some(0) {
            return Taken::default();
        }
        let first = self.at.saturating_sub(self.before);
        let left = self.kept.saturating_sub(first);
        let count = rows.map_or(left, |rows| rows.min(left));
        if count > 0 {
            self.at_start = false;
        }
        if rows.is_none_or(|rows| count < rows) {
            self.at_end = true;
        }
        self.at += count;
        Taken::of(first..first + count, false)
    }

    fn backward(&mut self, rows: Option<u64>) -> Result<Taken, ForwardOnly> {
        if !self.scrolls {
            return Err(ForwardOnly);
        }
        if self.at_start || rows == Some(0) {
            return Ok(Taken::default());
        }
        // The present row is not taken; after the last row there is none.
        let left = self.at.saturating_sub(u64::from(!self.at_end));
        let count = rows.map_or(left, |rows| rows.min(left));
        if count > 0 && self.at_end {
            self.at_end = false;
            self.at += 1;
        }
        if rows.is_none_or(|rows| count < rows) {
            self.at_start = true;
            self.at = 0;
        } else {
            self.at -= count;
        }
        Ok(Taken::of(left - count..left, true))
    }

    fn rewind(&mut self) -> Result<(), ForwardOnly> {
        if self.at_start && !self.at_end {
            return Ok(());
        }
        if !self.scrolls {
            return Err(ForwardOnly);
        }
        (self.at_start, self.at_end, self.at) = (true, false, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn start(kept: u64, scrolls: bool) -> Position {
        Position {
            scrolls,
            at_start: true,
            at_end: false,
            at: 0,
            before: 0,
            kept,
        }
    }

    fn directions() -> impl Strategy<Value = Direction> {
        let number = -7_i64..8;
        prop_oneof![
            proptest::option::of(number.clone()).prop_map(Direction::Forward),
            proptest::option::of(number.clone()).prop_map(Direction::Backward),
            number.clone().prop_map(Direction::Absolute),
            number.prop_map(Direction::Relative),
        ]
    }

    proptest! {
        /// Whatever is asked for, only rows that are kept are taken, and the position stays within them.
        #[test]
        fn only_kept_rows_are_taken(
            kept in 0_u64..6,
            scrolls: bool,
            asked in proptest::collection::vec((directions(), any::<bool>()), 0..20),
        ) {
            let mut position = start(kept, scrolls);
            for (direction, moves) in asked {
                if let Ok(taken) = position.take(direction, moves) {
                    prop_assert!(taken.rows.start <= taken.rows.end && taken.rows.end <= kept);
                    prop_assert!(taken.count <= kept);
                }
                prop_assert!(position.at <= kept);
            }
        }
    }

    #[test]
    fn positions_before_the_first_and_after_the_last_row_are_different() {
        let mut position = start(3, true);
        assert_eq!(position.take(Direction::Forward(None), false).unwrap().rows, 0..3);
        let back = position.take(Direction::Backward(Some(1)), false).unwrap();
        assert_eq!((back.rows, back.backward), (2..3, true));
        assert_eq!(position.take(Direction::Backward(None), true).unwrap().count, 2);
        assert_eq!(position.take(Direction::Forward(Some(1)), false).unwrap().rows, 0..1);
        assert_eq!(position.take(Direction::Relative(0), false).unwrap().rows, 0..1);
        assert_eq!(position.take(Direction::Absolute(-1), false).unwrap().rows, 2..3);
        assert_eq!(position.take(Direction::Forward(Some(1)), false).unwrap().count, 0);
    }

    #[test]
    fn no_scroll_goes_ahead_only() {
        let mut position = Position {
            at: 4,
            before: 4,
            at_start: false,
            ..start(3, false)
        };
        assert_eq!(position.take(Direction::Forward(Some(2)), false).unwrap().rows, 0..2);
        assert_eq!(position.take(Direction::Backward(Some(1)), false), Err(ForwardOnly));
        assert_eq!(position.take(Direction::Absolute(7), false).unwrap().rows, 2..3);
        assert_eq!(position.take(Direction::Absolute(0), true), Err(ForwardOnly));
    }
}
