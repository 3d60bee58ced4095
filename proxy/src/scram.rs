//! SCRAM-SHA-256, server side (RFC 5802, RFC 7677), against verifiers as Postgres stores them. No IO.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// The mechanism's name.
pub(crate) const MECHANISM: &str = "SCRAM-SHA-256";
/// Iterations that a made-up verifier claims when there is no real one: Postgres's default.
const ITERATIONS: u32 = 4096;
/// Bytes of a made-up verifier's salt when there is no real one: Postgres's default.
const SALT_BYTES: usize = 16;
/// Random bytes in the server's nonce.
const NONCE_BYTES: usize = 18;
/// The longest client nonce that is taken, in characters.
const CLIENT_NONCE_MAX: usize = 1024;

/// A stored verifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: [u8; 32],
    server_key: [u8; 32],
}

/// Why authentication failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ScramError {
    #[error("malformed SCRAM message")]
    Malformed,
    #[error("channel binding is not supported by the proxy")]
    ChannelBinding,
    #[error("client requires an unsupported SCRAM extension")]
    Extension,
    #[error("password authentication failed")]
    Refused,
}

impl Verifier {
    /// The verifier from `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("SCRAM-SHA-256$")?;
        let (parameters, keys) = rest.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let iterations = iterations.parse().ok().filter(|iterations| *iterations > 0)?;
        Some(Self {
            iterations,
            salt: STANDARD.decode(salt).ok()?,
            stored_key: STANDARD.decode(stored_key).ok()?.try_into().ok()?,
            server_key: STANDARD.decode(server_key).ok()?.try_into().ok()?,
        })
    }

    /// A verifier that no password satisfies, the same at each attempt and after each start with the same secret. It
    /// looks like one of the real ones, always the same for a role, so that a stranger cannot tell a role that does not
    /// exist from one that does.
    pub(crate) fn made_up(role: &str, secret: &[u8; 32], real: &BTreeMap<String, Verifier>) -> Self {
        let mut hash = blake3::Hasher::new_keyed(secret).update(role.as_bytes()).finalize_xof();
        let mut pick = [0; 8];
        hash.fill(&mut pick);
        let at = u64::from_le_bytes(pick).checked_rem(real.len() as u64).unwrap_or(0);
        let like = real.values().nth(usize::try_from(at).unwrap_or(0));
        let mut salt = vec![0; like.map_or(SALT_BYTES, |like| like.salt.len())];
        hash.fill(&mut salt);
        Self {
            iterations: like.map_or(ITERATIONS, |like| like.iterations),
            salt,
            stored_key: [0; 32],
            server_key: [0; 32],
        }
    }
}

/// An exchange after the client's first message.
#[derive(Debug)]
pub(crate) struct Scram {
    verifier: Verifier,
    /// Whether the verifier is a real one.
    known: bool,
    channel_header: String,
    nonce: String,
    client_first_bare: String,
    server_first: String,
}

impl Scram {
    /// Takes the client's first message; the answer is [`Scram::server_first`].
    pub(crate) fn start(
        verifier: Option<Verifier>,
        made_up: Verifier,
        client_first: &[u8],
    ) -> Result<Self, ScramError> {
        let text = std::str::from_utf8(client_first).map_err(|_| ScramError::Malformed)?;
        let (channel_header, bare) = split_header(text)?;
        // A mandatory extension that the server does not know must fail (RFC 5802, section 5.1).
        if bare.split(',').any(|part| part.starts_with("m=")) {
            return Err(ScramError::Extension);
        }
        let client_nonce = bare.split(',').find_map(|part| part.strip_prefix("r="));
        let client_nonce = client_nonce
            .filter(|nonce| !nonce.is_empty() && nonce.len() <= CLIENT_NONCE_MAX)
            .filter(|nonce| nonce.bytes().all(|byte| byte.is_ascii_graphic() && byte != b','))
            .ok_or(ScramError::Malformed)?;
        let nonce = format!("{client_nonce}{}", STANDARD.encode(rand::random::<[u8; NONCE_BYTES]>()));
        let known = verifier.is_some();
        let verifier = verifier.unwrap_or(made_up);
        let server_first = format!(
            "r={nonce},s={},i={}",
            STANDARD.encode(&verifier.salt),
            verifier.iterations
        );
        Ok(Self {
            verifier,
            known,
            channel_header: channel_header.to_owned(),
            nonce,
            client_first_bare: bare.to_owned(),
            server_first,
        })
    }

    /// The server's first message.
    pub(crate) fn server_first(&self) -> &str {
        &self.server_first
    }

    /// Takes the client's final message; gives the server's final one.
    pub(crate) fn finish(&self, client_final: &[u8]) -> Result<String, ScramError> {
        let text = std::str::from_utf8(client_final).map_err(|_| ScramError::Malformed)?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(ScramError::Malformed)?;
        let mut parts = without_proof.split(',');
        let binding = parts
            .next()
            .and_then(|part| part.strip_prefix("c="))
            .ok_or(ScramError::Malformed)?;
        let nonce = parts
            .next()
            .and_then(|part| part.strip_prefix("r="))
            .ok_or(ScramError::Malformed)?;
        if binding != STANDARD.encode(&self.channel_header) || nonce != self.nonce {
            return Err(ScramError::Malformed);
        }
        let proof: [u8; 32] = STANDARD
            .decode(proof)
            .ok()
            .and_then(|proof| proof.try_into().ok())
            .ok_or(ScramError::Malformed)?;
        let message = format!("{},{},{without_proof}", self.client_first_bare, self.server_first);
        let signature = hmac(&self.verifier.stored_key, message.as_bytes());
        let client_key: Vec<u8> = proof.iter().zip(signature).map(|(proof, byte)| proof ^ byte).collect();
        let stored_key: [u8; 32] = Sha256::digest(&client_key).into();
        if !equal(&stored_key, &self.verifier.stored_key) || !self.known {
            return Err(ScramError::Refused);
        }
        Ok(format!(
            "v={}",
            STANDARD.encode(hmac(&self.verifier.server_key, message.as_bytes()))
        ))
    }
}

/// Splits the GS2 header from the rest: `n,,` or `y,,`, with an authorisation identity that is ignored, as in Postgres.
fn split_header(text: &str) -> Result<(&str, &str), ScramError> {
    if text.starts_with("p=") {
        return Err(ScramError::ChannelBinding);
    }
    if !(text.starts_with("n,") || text.starts_with("y,")) {
        return Err(ScramError::Malformed);
    }
    let mut commas = text.match_indices(',');
    let second = commas.nth(1).map(|(at, _)| at).ok_or(ScramError::Malformed)?;
    text.split_at_checked(second + 1).ok_or(ScramError::Malformed)
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    // A key of any length is valid for HMAC.
    match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mut mac) => {
            mac.update(message);
            mac.finalize().into_bytes().into()
        }
        Err(_) => [0; 32],
    }
}

/// Compares in a time that does not depend on where the difference is.
pub(crate) fn equal(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .fold(0, |differences, (a, b)| differences | (a ^ b))
            == 0
}

#[cfg(test)]
mod tests {
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
    use postgres_protocol::password::scram_sha_256;

    use super::*;

    fn exchange(verifier: Option<Verifier>, password: &str) -> Result<(), ScramError> {
        let mut client = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        let server = Scram::start(
            verifier,
            Verifier::made_up("ann", &[7; 32], &BTreeMap::new()),
            client.message(),
        )?;
        client.update(server.server_first().as_bytes()).unwrap();
        let last = server.finish(client.message())?;
        client.finish(last.as_bytes()).unwrap();
        Ok(())
    }

    #[test]
    fn the_right_password_passes_and_others_do_not() {
        let verifier = Verifier::parse(&scram_sha_256(b"secret")).unwrap();
        assert_eq!(exchange(Some(verifier.clone()), "secret"), Ok(()));
        assert_eq!(exchange(Some(verifier), "wrong"), Err(ScramError::Refused));
        assert_eq!(exchange(None, "secret"), Err(ScramError::Refused));
    }

    #[test]
    fn roles_that_do_not_exist_look_like_those_that_do() {
        let verifier = |salt: usize, iterations: u32| Verifier {
            iterations,
            salt: vec![9; salt],
            stored_key: [1; 32],
            server_key: [1; 32],
        };
        let looks = |verifier: &Verifier| (verifier.salt.len(), verifier.iterations);
        let same = BTreeMap::from([("a".into(), verifier(24, 10_000)), ("b".into(), verifier(24, 10_000))]);
        for role in ["nobody", "somebody", ""] {
            let made_up = Verifier::made_up(role, &[7; 32], &same);
            assert_eq!(looks(&made_up), (24, 10_000));
            assert_eq!(
                made_up,
                Verifier::made_up(role, &[7; 32], &same),
                "the same at each attempt"
            );
            assert_ne!(made_up.salt, Verifier::made_up("x", &[7; 32], &same).salt);
            assert_ne!(made_up.salt, Verifier::made_up(role, &[8; 32], &same).salt);
        }
        // Where real ones differ, so do those that are made up.
        let mixed = BTreeMap::from([("a".into(), verifier(16, 4096)), ("b".into(), verifier(24, 10_000))]);
        let kinds: std::collections::BTreeSet<_> = (0..50)
            .map(|role| looks(&Verifier::made_up(&role.to_string(), &[7; 32], &mixed)))
            .collect();
        assert_eq!(kinds.len(), 2);
        assert_eq!(looks(&Verifier::made_up("ann", &[7; 32], &BTreeMap::new())), (16, 4096));
    }

    #[test]
    fn malformed_messages_are_refused() {
        let made_up = || Verifier::made_up("ann", &[7; 32], &BTreeMap::new());
        for first in ["", "n", "n,", "n,,", "n,,n=a", "n,,n=,r=", "x,,n=,r=abc", "n,,n=,r=a b"] {
            assert!(Scram::start(None, made_up(), first.as_bytes()).is_err(), "{first}");
        }
        for extended in [&b"n,,m=x,n=,r=abc"[..], b"n,,n=,m=x,r=abc", b"y,,n=,r=abc,m="] {
            let refused = Scram::start(None, made_up(), extended);
            assert_eq!(refused.unwrap_err(), ScramError::Extension);
        }
        let bound = Scram::start(None, made_up(), b"p=tls-server-end-point,,n=,r=abc");
        assert_eq!(bound.unwrap_err(), ScramError::ChannelBinding);
        let server = Scram::start(None, made_up(), b"n,,n=,r=abc").unwrap();
        for last in ["", "c=biws,r=abc,p=", "c=biws,r=abc,p=AAAA", "p=", ",p="] {
            assert_eq!(server.finish(last.as_bytes()), Err(ScramError::Malformed), "{last}");
        }
        assert!(Verifier::parse("SCRAM-SHA-256$0:AA==$AA==:AA==").is_none());
        assert!(Verifier::parse("md5abc").is_none());
    }
}
