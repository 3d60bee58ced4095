//! Lower-case hexadecimal, as keys and digests are written in the cluster file.

/// The bytes as lower-case hexadecimal digits.
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of exactly `N * 2` hexadecimal digits; `None` for anything else.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != N * 2 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0_u8; N];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        assert_eq!(decode::<3>(&encode(&[0, 0xa5, 0xff])), Some([0, 0xa5, 0xff]));
    }

    #[test]
    fn wrong_lengths_and_digits_are_refused() {
        assert_eq!(decode::<2>("00"), None);
        assert_eq!(decode::<2>("00zz"), None);
        assert_eq!(decode::<2>("é0z"), None);
    }
}
