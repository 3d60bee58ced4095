//! Fixed-point numbers, carried in Postgres's `numeric`: money must not pass through floating point.

use std::error::Error;
use std::fmt;

use bytes::{Buf, BufMut, BytesMut};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

/// Decimal digits in one digit of Postgres's binary format.
const GROUP_DIGITS: u32 = 4;
const GROUP_BASE: i128 = 10_000;
const SIGN_POSITIVE: u16 = 0x0000;
const SIGN_NEGATIVE: u16 = 0x4000;

/// A number in units of 10^-`SCALE`; `SCALE` is at most 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fixed<const SCALE: u32>(pub(crate) i64);

/// An amount in hundredths: `numeric(12, 2)` and the like.
pub(crate) type Money = Fixed<2>;
/// A tax or a discount in ten-thousandths: `numeric(4, 4)`.
pub(crate) type Rate = Fixed<4>;

impl<const SCALE: u32> Fixed<SCALE> {
    /// What one unit is worth in the fraction group of the binary format.
    const GROUP_UNITS: i128 = 10_i128.pow(GROUP_DIGITS - SCALE);
}

impl<const SCALE: u32> Fixed<SCALE> {
    /// From the text that Postgres gives for a `numeric` of at most this scale.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, text),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let missing = usize::try_from(SCALE).ok()?.checked_sub(fraction.len())?;
        let units: String = [whole, fraction, &"0".repeat(missing)].concat();
        let is_number = !whole.is_empty() && units.bytes().all(|byte| byte.is_ascii_digit());
        let units: i64 = units.parse().ok().filter(|_| is_number)?;
        Some(Self(sign * units))
    }
}

impl<const SCALE: u32> fmt::Display for Fixed<SCALE> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let base = 10_u64.pow(SCALE);
        let units = self.0.unsigned_abs();
        let width = usize::try_from(SCALE).unwrap_or_default();
        write!(formatter, "{sign}{}.{:0width$}", units / base, units % base)
    }
}

impl<const SCALE: u32> ToSql for Fixed<SCALE> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let mut rest = i128::from(self.0).abs() * Self::GROUP_UNITS;
        let mut groups = Vec::new();
        while rest > 0 {
            groups.push(i16::try_from(rest % GROUP_BASE)?);
            rest /= GROUP_BASE;
        }
        let count = i16::try_from(groups.len())?;
        out.put_i16(count);
        out.put_i16(if count == 0 { 0 } else { count - 2 });
        out.put_u16(if self.0 < 0 { SIGN_NEGATIVE } else { SIGN_POSITIVE });
        out.put_u16(u16::try_from(SCALE)?);
        groups.iter().rev().for_each(|group| out.put_i16(*group));
        Ok(IsNull::No)
    }

    accepts!(NUMERIC);
    to_sql_checked!();
}

impl<'a, const SCALE: u32> FromSql<'a> for Fixed<SCALE> {
    fn from_sql(_: &Type, mut raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        let count = raw.try_get_i16()?;
        let weight = raw.try_get_i16()?;
        let sign = raw.try_get_u16()?;
        let _display_scale = raw.try_get_u16()?;
        let mut value: i128 = 0;
        for index in 0..count {
            let group = i128::from(raw.try_get_i16()?);
            match u32::try_from(i32::from(weight) - i32::from(index) + 1) {
                Ok(power) => {
                    let worth = GROUP_BASE.checked_pow(power).ok_or("numeric too large")?;
                    value += group * worth;
                }
                Err(_) if group == 0 => {}
                Err(_) => return Err("numeric has more digits than its column".into()),
            }
        }
        if value % Self::GROUP_UNITS != 0 {
            return Err("numeric has more digits than its column".into());
        }
        let units = i64::try_from(value / Self::GROUP_UNITS)?;
        match sign {
            SIGN_POSITIVE => Ok(Self(units)),
            SIGN_NEGATIVE => Ok(Self(-units)),
            _ => Err("numeric is not a finite number".into()),
        }
    }

    accepts!(NUMERIC);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<const SCALE: u32>(units: i64) -> i64 {
        let mut wire = BytesMut::new();
        Fixed::<SCALE>(units).to_sql(&Type::NUMERIC, &mut wire).unwrap();
        Fixed::<SCALE>::from_sql(&Type::NUMERIC, &wire).unwrap().0
    }

    #[test]
    fn numbers_survive_the_wire() {
        for units in [0, 1, -1, 99, 100, 10_000, -1_000_000, 123_456_789, i64::MAX / 4] {
            assert_eq!(round_trip::<2>(units), units);
            assert_eq!(round_trip::<4>(units), units);
        }
    }

    #[test]
    fn numbers_survive_as_text() {
        for units in [0, 1, -1, 99, 100, -10_000, 123_456_789] {
            assert_eq!(Fixed::<2>::parse(&Fixed::<2>(units).to_string()), Some(Fixed(units)));
        }
        assert_eq!(Fixed::<4>::parse("0.1"), Some(Fixed(1_000)));
        assert_eq!(Fixed::<2>::parse("-7"), Some(Fixed(-700)));
        for damaged in ["", "-", "0.001", "1.+1", "--1", "NaN", "1e2"] {
            assert_eq!(Fixed::<2>::parse(damaged), None, "{damaged}");
        }
    }

    #[test]
    fn digits_beyond_the_scale_are_refused() {
        let mut wire = BytesMut::new();
        Fixed::<4>(12_345).to_sql(&Type::NUMERIC, &mut wire).unwrap();
        assert!(Fixed::<2>::from_sql(&Type::NUMERIC, &wire).is_err());
    }

    #[test]
    fn numbers_are_shown_with_their_scale() {
        assert_eq!(Fixed::<2>(-1_005).to_string(), "-10.05");
        assert_eq!(Fixed::<4>(37).to_string(), "0.0037");
    }
}
