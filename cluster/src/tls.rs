//! TLS 1.3 between machines and clients: both ends prove a key that is listed in the cluster file.
//!
//! Certificates are self-signed; names, issuers and dates in them mean nothing. What counts is the public key,
//! and that the peer signed the handshake with it.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use crate::identity::{Identity, IdentityError};

/// The name in every certificate; it carries no meaning.
pub const SERVER_NAME: &str = "cloudbft";

/// What precedes the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410).
const PUBLIC_KEY_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Why no TLS configuration can be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The identity yields no certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The TLS library refuses.
    #[error("TLS configuration: {0}")]
    Configuration(#[from] Error),
}

/// The Ed25519 key in a certificate; `None` when there is none.
pub fn certificate_key(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let information = parsed.subject_public_key_info();
    information.as_ref().strip_prefix(&PUBLIC_KEY_PREFIX)?.try_into().ok()
}

/// Accepts exactly the listed keys.
#[derive(Debug)]
struct ListedKeys {
    keys: Vec<[u8; 32]>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ListedKeys {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        match certificate_key(certificate) {
            Some(key) if self.keys.contains(&key) => Ok(()),
            _ => Err(Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            )),
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General(String::from("links use TLS 1.3 only")))
    }
}

impl ServerCertVerifier for ListedKeys {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(certificate).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for ListedKeys {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(certificate).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

fn parts(keys: Vec<[u8; 32]>) -> (Arc<CryptoProvider>, Arc<ListedKeys>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    (provider, Arc::new(ListedKeys { keys, algorithms }))
}

/// The accepting side: any of `keys` may connect.
///
/// # Errors
/// When the identity yields no certificate.
pub fn server(identity: &Identity, keys: Vec<[u8; 32]>) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let (provider, verifier) = parts(keys);
    let configuration = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![identity.certificate()?],
            PrivateKeyDer::Pkcs8(identity.private_der()),
        )?;
    Ok(Arc::new(configuration))
}

/// The dialling side: only the holder of `key` may answer.
///
/// # Errors
/// When the identity yields no certificate.
pub fn client(identity: &Identity, key: [u8; 32]) -> Result<Arc<rustls::ClientConfig>, TlsError> {
    let (provider, verifier) = parts(vec![key]);
    let mut configuration = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(
            vec![identity.certificate()?],
            PrivateKeyDer::Pkcs8(identity.private_der()),
        )?;
    // A resumed session would skip the comparison of keys.
    configuration.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(configuration))
}
