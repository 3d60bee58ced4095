//! Digests of what every request and every batch is hashed for: BLAKE3 in its key derivation mode.
//!
//! A context of its own for each purpose, so that nothing that was signed for one is ever taken for another. Its key is
//! derived once: that costs as much as hashing a COMMIT.

use std::sync::LazyLock;

use blake3::Hasher;
use blake3::hazmat::{ContextKey, HasherExt};
use borsh::BorshSerialize;

use crate::identifiers::Digest;

/// What is hashed for one purpose.
pub(crate) type Context = LazyLock<ContextKey>;

/// Begins a digest.
pub(crate) fn hasher(context: &Context) -> Hasher {
    Hasher::new_from_context_key(context)
}

/// The digest of these bytes; much faster than in many small pieces, where there are many.
pub(crate) fn digest(context: &Context, bytes: &[u8]) -> Digest {
    *hasher(context).update(bytes).finalize().as_bytes()
}

/// The digest of a value's encoding, for what is rare.
pub(crate) fn digest_of(context: &str, value: &impl BorshSerialize) -> Digest {
    let mut hasher = Hasher::new_derive_key(context);
    // Hashing cannot fail: the hasher takes every write.
    let _ = borsh::to_writer(&mut hasher, value);
    *hasher.finalize().as_bytes()
}

/// Makes a [`Context`].
macro_rules! context {
    ($text:literal) => {
        std::sync::LazyLock::new(|| blake3::hazmat::hash_derive_key_context($text))
    };
}

pub(crate) use context;

#[cfg(test)]
mod tests {
    use super::*;

    static CONTEXT: Context = context!("cloudbft prepare v1");

    #[test]
    fn it_is_the_ordinary_key_derivation() {
        for length in [0, 1, 64, 1024, 10_000] {
            let bytes = vec![7; length];
            assert_eq!(
                digest(&CONTEXT, &bytes),
                blake3::derive_key("cloudbft prepare v1", &bytes)
            );
        }
    }
}
