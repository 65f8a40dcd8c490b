//! TLS 1.3 between kernels: what either end requires of the other, and what a failed handshake says of the peer.

use super::{Authority, DvmKey, SecurityError, fingerprint, member_name, member_of_name};
use dvm_core::ids::MemberId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme, version::TLS13,
};
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The DVM's key with all that follows from it; the certificate is the present incarnation's.
pub(crate) struct Vault {
    key: DvmKey,
    authority: Authority,
    tls: RwLock<Arc<Tls>>,
}

/// One incarnation's ends of TLS.
pub(crate) struct Tls {
    /// Whom the certificate names.
    pub(crate) me: MemberId,
    /// Our end where we opened the connection.
    pub(crate) connector: TlsConnector,
    /// Our end where a member opened it.
    pub(crate) acceptor: TlsAcceptor,
    /// Our end where a holder of a ticket opened it, who has no certificate yet.
    pub(crate) ticket_acceptor: TlsAcceptor,
}

impl Vault {
    /// For a kernel that holds the key.
    pub(crate) fn new(key: DvmKey, me: MemberId) -> Result<Self, SecurityError> {
        let authority = Authority::derive(&key)?;
        let tls = RwLock::new(Arc::new(Tls::new(&authority, me)?));
        Ok(Self { key, authority, tls })
    }

    /// The key, for a kernel that showed a ticket.
    pub(crate) fn key(&self) -> &DvmKey {
        &self.key
    }

    /// What tickets name the authority by.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        self.authority.fingerprint()
    }

    /// The present incarnation's.
    pub(crate) fn tls(&self) -> Arc<Tls> {
        self.tls.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A certificate for a new incarnation; the old one's is used no more.
    pub(crate) fn renew(&self, me: MemberId) -> Result<(), SecurityError> {
        let tls = Arc::new(Tls::new(&self.authority, me)?);
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
        Ok(())
    }
}

impl Tls {
    fn new(authority: &Authority, me: MemberId) -> Result<Self, SecurityError> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate().clone())?;
        let roots = Arc::new(roots);
        let minted = authority.mint(me)?;
        let client = client_builder()?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(minted.chain.clone(), minted.key.clone_key())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build()?;
        let server = server_builder()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(minted.chain.clone(), minted.key.clone_key())?;
        let ticket = server_builder()?.with_no_client_auth().with_single_cert(minted.chain, minted.key)?;
        Ok(Self {
            me,
            connector: TlsConnector::from(Arc::new(quiet_client(client))),
            acceptor: TlsAcceptor::from(Arc::new(quiet_server(server))),
            ticket_acceptor: TlsAcceptor::from(Arc::new(quiet_server(ticket))),
        })
    }
}

/// For a kernel that has nothing but a ticket: it requires the authority with this fingerprint.
pub(crate) fn ticket_connector(authority: [u8; 32]) -> Result<TlsConnector, SecurityError> {
    let client = client_builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ByFingerprint { authority }))
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(quiet_client(client))))
}

/// The name under which a member's certificate is verified.
pub(crate) fn server_name(member: MemberId) -> ServerName<'static> {
    ServerName::try_from(member_name(member)).expect("hexadecimal digits and dots make a name")
}

/// Whether a verified certificate is that of `member`.
pub(crate) fn is_of(certificates: Option<&[CertificateDer<'_>]>, member: MemberId) -> bool {
    let Some(first) = certificates.and_then(|all| all.first()) else { return false };
    ParsedCertificate::try_from(first)
        .is_ok_and(|certificate| verify_server_name(&certificate, &server_name(member)).is_ok())
}

/// Whether a failed handshake shows that another process, or another incarnation, answers there; which member of this
/// DVM it is, if it is one.
pub(crate) fn somebody_else(error: &io::Error) -> Option<Option<MemberId>> {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>())? {
        // The name is looked at last: the certificate is one of this DVM's authority.
        Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) => {
            Some(presented.iter().find_map(|name| member_of_name(name)))
        }
        Error::InvalidCertificate(_) => Some(None),
        _ => None,
    }
}

/// Accepts a server whose certificate is signed by the authority of a given fingerprint, which it must send along.
#[derive(Debug)]
struct ByFingerprint {
    authority: [u8; 32],
}

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates.iter().find(|certificate| fingerprint(certificate) == self.authority);
        let authority = authority.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn client_builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, Error> {
    ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])
}

fn server_builder() -> Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>, Error> {
    ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])
}

/// Connections live for days and are never resumed: nothing is said after the handshake that would be for that.
fn quiet_client(mut config: ClientConfig) -> ClientConfig {
    config.resumption = rustls::client::Resumption::disabled();
    config
}

fn quiet_server(mut config: ServerConfig) -> ServerConfig {
    config.send_tls13_tickets = 0;
    config
}

/// The one suite and group: the fastest for small messages on machines with AES instructions.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![ring::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![ring::kx_group::X25519],
        ..ring::default_provider()
    })
}
