//! Who may speak to whom: one secret key for a DVM, and a certificate for each incarnation of a member.
//!
//! The founder draws the key. Every kernel derives the same certificate authority from it, in memory, and mints its
//! own certificate, which names its [`MemberId`]; both ends of a connection require a peer under that authority, and
//! know from its certificate who it is. A kernel gets the key by a [`ticket`]. The key is never in arguments, the
//! environment, files or logs.

pub(crate) mod ticket;
pub(crate) mod tls;

use dvm_core::ids::MemberId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

/// The DVM's secret.
#[derive(Clone)]
pub(crate) struct DvmKey(Zeroizing<[u8; 32]>);

impl DvmKey {
    /// A new one.
    pub(crate) fn draw() -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        fill_random(&mut *bytes);
        Self(bytes)
    }

    /// One that another kernel drew.
    pub(crate) fn from_bytes(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self(bytes)
    }

    /// To be handed to another kernel.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Why no certificate can be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecurityError {
    /// The certificate could not be made.
    #[error("no certificate can be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The certificate does not fit TLS.
    #[error("no TLS configuration can be made: {0}")]
    Tls(#[from] rustls::Error),
    /// The authority does not fit TLS.
    #[error("no verifier can be made: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The certificate authority that every kernel of a DVM derives for itself.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    /// Equal keys give equal authorities, to the byte.
    pub(crate) fn derive(key: &DvmKey) -> Result<Self, SecurityError> {
        let seed = Zeroizing::new(blake3::derive_key("dvm 2026 certificate authority", key.bytes()));
        let pair = ed25519(&seed)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "dvm");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&pair)?.der().clone();
        Ok(Self { issuer: Issuer::new(params, pair), certificate })
    }

    /// Its certificate.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What a ticket names it by.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.certificate)
    }

    /// A certificate for an incarnation, with a key of its own.
    pub(crate) fn mint(&self, member: MemberId) -> Result<Minted, SecurityError> {
        let mut seed = Zeroizing::new([0; 32]);
        fill_random(&mut *seed);
        let pair = ed25519(&seed)?;
        let mut params = CertificateParams::new(vec![member_name(member)])?;
        params.distinguished_name.push(DnType::CommonName, "dvm member");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&pair, &self.issuer)?.der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        Ok(Minted { chain: vec![certificate, self.certificate.clone()], key })
    }
}

/// A certificate, its authority's, and its key.
pub(crate) struct Minted {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// The name by which a certificate names a member.
fn member_name(member: MemberId) -> String {
    format!("{member}{MEMBER_SUFFIX}")
}

/// The member in a name that a certificate presents, in whatever quotes it comes.
fn member_of_name(name: &str) -> Option<MemberId> {
    let (before, _) = name.split_once(MEMBER_SUFFIX)?;
    let digits = before.get(before.len().checked_sub(32)?..)?;
    u128::from_str_radix(digits, 16).ok().map(MemberId)
}

/// Ends every member's name in its certificate.
const MEMBER_SUFFIX: &str = ".member.dvm";

/// What a certificate is recognized by.
fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    *blake3::hash(certificate).as_bytes()
}

/// Fills with bytes from the operating system, which has no way to fail once it has started.
pub(crate) fn fill_random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the operating system has randomness");
}

/// A new incarnation's id.
pub(crate) fn draw_id() -> u128 {
    let mut bytes = [0; 16];
    fill_random(&mut bytes);
    u128::from_le_bytes(bytes)
}

/// An Ed25519 key pair from its seed, by way of the PKCS #8 form that it has (RFC 8410, section 7).
fn ed25519(seed: &[u8; 32]) -> Result<KeyPair, rcgen::Error> {
    const HEAD: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    let mut der = Zeroizing::new([0; HEAD.len() + 32]);
    der[..HEAD.len()].copy_from_slice(&HEAD);
    der[HEAD.len()..].copy_from_slice(seed);
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(&der[..]), &PKCS_ED25519)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_derives_the_same_authority_and_no_other_key_does() {
        let key = DvmKey::draw();
        let authority = || Authority::derive(&key).expect("derives");
        assert_eq!(authority().certificate(), authority().certificate());
        let other = Authority::derive(&DvmKey::draw()).expect("derives");
        assert_ne!(authority().fingerprint(), other.fingerprint());
    }
}
