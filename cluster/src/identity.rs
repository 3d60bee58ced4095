//! Identities: the Ed25519 keys by which machines and clients know each other (`docs/design.md#security`).

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ed25519_dalek::{SigningKey, VerifyingKey};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// What precedes the 32 bytes of the seed in a PKCS#8 (version 1) Ed25519 key (RFC 8410).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Others may read the file.
    #[error("{path}: mode {mode:o} lets others read this private key; run: chmod 600 {path}")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is no key of ours.
    #[error("{path}: not an Ed25519 private key in PKCS#8 PEM form; `cloudbft up` writes such files")]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// No certificate can be made.
    #[error("cannot make a certificate from the identity: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// A private key with its certificate.
pub struct Identity {
    key: SigningKey,
}

impl Identity {
    /// A new identity from the operating system's randomness.
    ///
    /// # Errors
    /// When there is no randomness to be had.
    pub fn generate() -> std::io::Result<Self> {
        let mut seed = [0_u8; 32];
        fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
        Ok(Self::from_seed(&seed))
    }

    /// The identity of a seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self {
            key: SigningKey::from_bytes(seed),
        }
    }

    /// Writes the private key to a new file that only its owner may read.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), IdentityError> {
        let pem = self.key_pair()?.serialize_pem();
        let failed = |source| IdentityError::File {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        file.write_all(pem.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(failed)
    }

    /// Reads a private key.
    ///
    /// # Errors
    /// When the file cannot be read, is readable by others, or is no Ed25519 key.
    pub fn read(path: &Path) -> Result<Self, IdentityError> {
        let failed = |source| IdentityError::File {
            path: path.to_owned(),
            source,
        };
        let mode = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed {
                path: path.to_owned(),
                mode,
            });
        }
        let text = fs::read(path).map_err(failed)?;
        let malformed = || IdentityError::Malformed { path: path.to_owned() };
        let der = PrivatePkcs8KeyDer::from_pem_slice(&text).map_err(|_| malformed())?;
        let seed = der
            .secret_pkcs8_der()
            .strip_prefix(&PKCS8_PREFIX)
            .ok_or_else(malformed)?;
        let seed = <&[u8; 32]>::try_from(seed).map_err(|_| malformed())?;
        Ok(Self::from_seed(seed))
    }

    /// The key that signs.
    pub fn signing_key(&self) -> &SigningKey {
        &self.key
    }

    /// The public key.
    pub fn public(&self) -> VerifyingKey {
        self.key.verifying_key()
    }

    /// The private key as TLS wants it.
    pub fn private_der(&self) -> PrivatePkcs8KeyDer<'static> {
        let mut der = PKCS8_PREFIX.to_vec();
        der.extend_from_slice(self.key.as_bytes());
        PrivatePkcs8KeyDer::from(der)
    }

    /// A self-signed certificate: only a vessel for the public key, which peers compare with their list.
    ///
    /// # Errors
    /// When the certificate cannot be encoded.
    pub fn certificate(&self) -> Result<CertificateDer<'static>, IdentityError> {
        let parameters = rcgen::CertificateParams::new(vec![String::from(crate::tls::SERVER_NAME)])?;
        Ok(parameters.self_signed(&self.key_pair()?)?.der().clone())
    }

    fn key_pair(&self) -> Result<rcgen::KeyPair, IdentityError> {
        Ok(rcgen::KeyPair::from_pkcs8_der_and_sign_algo(
            &self.private_der(),
            &rcgen::PKCS_ED25519,
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_identity_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity.pem");
        let identity = Identity::generate().unwrap();
        identity.write(&path).unwrap();
        assert_eq!(Identity::read(&path).unwrap().public(), identity.public());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(identity.write(&path).is_err(), "an identity is never overwritten");
    }

    #[test]
    fn an_exposed_key_is_refused_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity.pem");
        Identity::generate().unwrap().write(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Identity::read(&path).err().unwrap().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_foreign_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity.pem");
        fs::write(&path, "hello").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(Identity::read(&path), Err(IdentityError::Malformed { .. })));
    }
}
