//! The stand-in's certificate authority: a trust domain, its roots old and new, and the leaves
//! they sign, in the form that Consul's built-in provider gives them.
//!
//! It keeps no leaf; `state` does. Private keys live as long as the authority.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber, SignatureAlgorithm,
};
use serde_json::{Value, json};
use std::time::Duration;

use super::clock::{rfc3339, unix_now};

/// Consul's roots live ten years.
const ROOT_SECONDS: i64 = 10 * 365 * 86_400;

/// Consul's leaves start a minute in the past, for clocks that lag.
const LEAF_BACKDATE_SECONDS: i64 = 60;

/// The kinds of keys that Consul lets an operator choose, and those that outside authorities use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyType {
    /// Consul's default.
    #[default]
    P256,
    /// ECDSA on P-384.
    P384,
    /// ECDSA on P-521.
    P521,
    /// RSA with 2048 bits.
    Rsa2048,
}

/// What a certificate for a test or a bench shall look like.
#[derive(Clone, Debug)]
pub struct IssueOptions {
    /// Seconds from now at which it becomes valid; negative for the past.
    pub not_before: i64,
    /// Seconds from now at which it ends; negative for an expired one.
    pub not_after: i64,
    /// Another URI than the service's own.
    pub uri: Option<String>,
    /// The leaf's key.
    pub key: KeyType,
    /// How many intermediate authorities stand between the root and the leaf.
    pub intermediates: u8,
}

impl Default for IssueOptions {
    fn default() -> Self {
        Self {
            not_before: -LEAF_BACKDATE_SECONDS,
            not_after: 72 * 3_600,
            uri: None,
            key: KeyType::P256,
            intermediates: 0,
        }
    }
}

impl IssueOptions {
    /// A certificate that ended an hour ago.
    pub fn expired() -> Self {
        Self {
            not_before: -7_200,
            not_after: -3_600,
            ..Self::default()
        }
    }

    /// One that ends after `ttl`.
    pub fn with_ttl(ttl: Duration) -> Self {
        Self {
            not_after: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
            ..Self::default()
        }
    }
}

/// A leaf, its chain and its key.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The leaf first, then the intermediates.
    pub chain_pem: String,
    /// SEC 1 for P-256 as Consul writes it, PKCS#8 otherwise.
    pub key_pem: String,
    /// The SPIFFE ID in it.
    pub uri: String,
    /// Lower-case hexadecimal with a colon between bytes.
    pub serial: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
}

/// A certificate authority of one trust domain.
#[derive(Debug)]
pub struct Authority {
    trust_domain: String,
    key_type: KeyType,
    next_serial: u64,
    /// Never empty; the last one signs.
    roots: Vec<Root>,
}

#[derive(Debug)]
struct Root {
    id: String,
    serial: u64,
    params: CertificateParams,
    key: KeyPair,
    pem: String,
    /// This root's key certified by the root before it, so that peers who know only that one
    /// accept the new leaves.
    cross_signed: Option<String>,
    not_before: i64,
    index: u64,
}

impl Authority {
    /// A new trust domain with one root.
    ///
    /// # Errors
    /// When the key or the certificate cannot be made.
    pub fn new(key_type: KeyType) -> Result<Self, rcgen::Error> {
        let mut authority = Self {
            trust_domain: format!("{}.consul", uuid()),
            key_type,
            next_serial: 7,
            roots: Vec::new(),
        };
        authority.add_root(0)?;
        Ok(authority)
    }

    /// `<uuid>.consul`.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Every root that is still trusted, oldest first.
    pub fn roots_pem(&self) -> String {
        self.roots.iter().map(|root| root.pem.as_str()).collect()
    }

    /// The SPIFFE ID that Consul gives a service.
    pub fn service_uri(&self, datacenter: &str, service: &str) -> String {
        format!(
            "spiffe://{}/ns/default/dc/{datacenter}/svc/{service}",
            self.trust_domain
        )
    }

    /// Adds a root and signs with it from now on; the others stay trusted.
    ///
    /// # Errors
    /// When the key or a certificate cannot be made.
    pub(super) fn add_root(&mut self, index: u64) -> Result<(), rcgen::Error> {
        let key = generate(self.key_type)?;
        let serial = self.serial();
        let host = self.trust_domain.split('-').next().unwrap_or_default();
        let name = format!("pri-{}.consul.ca.{host}.consul", random_word());
        let not_before = unix_now();
        let params = authority_params(&name, &self.trust_domain, serial, not_before)?;
        let pem = params.self_signed(&key)?.pem();
        let cross_signed = match self.roots.last() {
            Some(old) => {
                let issuer = Issuer::from_params(&old.params, &old.key);
                Some(params.signed_by(&key, &issuer)?.pem())
            }
            None => None,
        };
        self.roots.push(Root {
            id: colons(&random_bytes::<20>()),
            serial,
            params,
            key,
            pem,
            cross_signed,
            not_before,
            index,
        });
        Ok(())
    }

    /// Ends the cross period: only the signing root stays trusted.
    pub(super) fn drop_old_roots(&mut self) {
        let old = self.roots.len().saturating_sub(1);
        self.roots.drain(..old);
        for root in &mut self.roots {
            root.cross_signed = None;
        }
    }

    pub(super) fn renumber(&mut self, small: impl Fn(u64) -> u64) {
        for root in &mut self.roots {
            root.index = small(root.index);
        }
    }

    pub(super) fn set_index(&mut self, index: u64) {
        for root in &mut self.roots {
            root.index = index;
        }
    }

    pub(super) fn indexes(&self) -> impl Iterator<Item = u64> {
        self.roots.iter().map(|root| root.index)
    }

    /// Signs a leaf for `uri` (or for the URI of the options).
    ///
    /// # Errors
    /// When the key or a certificate cannot be made, or the URI is not ASCII.
    pub fn issue(&mut self, uri: &str, options: &IssueOptions) -> Result<Issued, rcgen::Error> {
        let serial = self.serial();
        let intermediate_serials: Vec<u64> = (0..options.intermediates).map(|_| self.serial()).collect();
        let Some(root) = self.roots.last() else {
            return Err(rcgen::Error::CouldNotParseCertificate);
        };
        let uri = options.uri.as_deref().unwrap_or(uri).to_owned();
        let now = unix_now();
        let (not_before, not_after) = (
            now.saturating_add(options.not_before),
            now.saturating_add(options.not_after),
        );
        let key = generate(options.key)?;
        let params = leaf_params(&uri, serial, not_before, not_after)?;
        // The chain is built from the root down, and written from the leaf up.
        let mut above = Vec::new();
        let mut signer: Option<(CertificateParams, KeyPair)> = None;
        for number in intermediate_serials {
            let issuer_key = generate(self.key_type)?;
            let name = format!("intermediate-{number}.consul");
            let issuer_params = authority_params(&name, &self.trust_domain, number, root.not_before)?;
            let issuer = match &signer {
                Some((params, key)) => Issuer::from_params(params, key),
                None => Issuer::from_params(&root.params, &root.key),
            };
            above.push(issuer_params.signed_by(&issuer_key, &issuer)?.pem());
            signer = Some((issuer_params, issuer_key));
        }
        let issuer = match &signer {
            Some((params, key)) => Issuer::from_params(params, key),
            None => Issuer::from_params(&root.params, &root.key),
        };
        let mut chain_pem = params.signed_by(&key, &issuer)?.pem();
        chain_pem.extend(above.iter().rev().map(String::as_str));
        chain_pem.extend(root.cross_signed.as_deref());
        Ok(Issued {
            chain_pem,
            key_pem: key_pem(&key, options.key),
            uri,
            serial: serial_text(serial),
            not_before,
            not_after,
        })
    }

    /// The body of `/v1/agent/connect/ca/roots`.
    pub(super) fn roots_json(&self) -> Value {
        let external = self.trust_domain.trim_end_matches(".consul");
        let newest = self.roots.len().saturating_sub(1);
        let (key_type, bits) = match self.key_type {
            KeyType::P256 => ("ec", 256),
            KeyType::P384 => ("ec", 384),
            KeyType::P521 => ("ec", 521),
            KeyType::Rsa2048 => ("rsa", 2048),
        };
        let roots: Vec<Value> = self
            .roots
            .iter()
            .enumerate()
            .map(|(at, root)| {
                json!({
                    "ID": root.id,
                    "Name": "Consul CA Primary Cert",
                    "SerialNumber": root.serial,
                    "SigningKeyID": colons(&root.params.key_identifier(&root.key)),
                    "ExternalTrustDomain": external,
                    "NotBefore": rfc3339(root.not_before),
                    "NotAfter": rfc3339(root.not_before.saturating_add(ROOT_SECONDS)),
                    "RootCert": root.pem,
                    "IntermediateCerts": root.cross_signed.as_ref().map(|pem| vec![pem]),
                    "Active": at == newest,
                    "PrivateKeyType": key_type,
                    "PrivateKeyBits": bits,
                    "CreateIndex": root.index,
                    "ModifyIndex": root.index,
                })
            })
            .collect();
        json!({
            "ActiveRootID": self.roots.last().map(|root| root.id.as_str()),
            "TrustDomain": self.trust_domain,
            "Roots": roots,
        })
    }

    fn serial(&mut self) -> u64 {
        let serial = self.next_serial;
        self.next_serial += 1;
        serial
    }
}

fn authority_params(
    name: &str,
    trust_domain: &str,
    serial: u64,
    not_before: i64,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = base_params(
        &format!("spiffe://{trust_domain}"),
        serial,
        not_before,
        not_before.saturating_add(ROOT_SECONDS),
    )?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    Ok(params)
}

/// An empty subject makes rcgen mark the alternative name critical, as RFC 5280 asks.
fn leaf_params(
    uri: &str,
    serial: u64,
    not_before: i64,
    not_after: i64,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = base_params(uri, serial, not_before, not_after)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::DataEncipherment,
        KeyUsagePurpose::KeyAgreement,
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    Ok(params)
}

fn base_params(
    uri: &str,
    serial: u64,
    not_before: i64,
    not_after: i64,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    params.serial_number = Some(SerialNumber::from(serial));
    params.use_authority_key_identifier_extension = true;
    let at = |unix: i64| {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(unix).unwrap_or_default())
    };
    params.not_before = at(not_before);
    params.not_after = at(not_after);
    Ok(params)
}

fn generate(key_type: KeyType) -> Result<KeyPair, rcgen::Error> {
    let algorithm: &'static SignatureAlgorithm = match key_type {
        KeyType::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        KeyType::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        KeyType::P521 => &rcgen::PKCS_ECDSA_P521_SHA512,
        KeyType::Rsa2048 => &rcgen::PKCS_RSA_SHA256,
    };
    KeyPair::generate_for(algorithm)
}

/// Consul hands out P-256 keys in SEC 1 form (RFC 5915), so a reader that knows only PKCS#8 would
/// pass every test here and fail there.
fn key_pem(key: &KeyPair, key_type: KeyType) -> String {
    /// SEQUENCE { INTEGER 1, OCTET STRING of 32 bytes …
    const HEAD: [u8; 7] = [0x30, 0x77, 0x02, 0x01, 0x01, 0x04, 0x20];
    /// … [0] prime256v1, [1] BIT STRING of 65 bytes }
    const TAIL: [u8; 17] = [
        0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0xa1, 0x44, 0x03, 0x42, 0x00,
    ];
    let document = key.serialized_der();
    // The scalar follows the version inside PKCS#8's own octet string.
    let scalar = document
        .windows(5)
        .position(|window| *window == HEAD[2..])
        .and_then(|at| document.get(at + 5..at + 37));
    match (key_type, scalar) {
        (KeyType::P256, Some(scalar)) => {
            let der = [&HEAD, scalar, &TAIL, key.public_key_raw()].concat();
            pem("EC PRIVATE KEY", &der)
        }
        _ => key.serialize_pem(),
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    // 48 bytes make a line of 64 characters.
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let mut bits = [0; 3];
            bits[..group.len()].copy_from_slice(group);
            let bits = u32::from_be_bytes([0, bits[0], bits[1], bits[2]]);
            for place in 0..4 {
                let sextet = (bits >> (18 - 6 * place)) & 63;
                text.push(if place <= group.len() {
                    char::from(ALPHABET[sextet as usize])
                } else {
                    '='
                });
            }
        }
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

pub(super) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fastrand::fill(&mut bytes);
    bytes
}

/// A random UUID in Consul's form.
pub(super) fn uuid() -> String {
    let hex: String = random_bytes::<16>()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn random_word() -> String {
    (0..8).map(|_| fastrand::lowercase()).collect()
}

/// As Consul writes it: whole bytes, none of them a leading zero.
fn serial_text(serial: u64) -> String {
    let bytes = serial.to_be_bytes();
    let zeros = serial.leading_zeros() as usize / 8;
    colons(&bytes[zeros.min(bytes.len() - 1)..])
}

fn colons(bytes: &[u8]) -> String {
    let pairs: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    pairs.join(":")
}

#[cfg(test)]
mod tests {
    use super::{Authority, IssueOptions, KeyType};
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

    fn ders(pem: &str) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem.as_bytes())
            .map(|der| der.unwrap())
            .collect()
    }

    fn verifies(root: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> bool {
        let anchor = webpki::anchor_from_trusted_cert(root).unwrap();
        webpki::EndEntityCert::try_from(&chain[0])
            .unwrap()
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &[anchor],
                &chain[1..],
                UnixTime::now(),
                webpki::KeyUsage::client_auth(),
                None,
                None,
            )
            .is_ok()
    }

    #[test]
    fn a_leaf_has_no_subject_and_one_critical_uri() {
        let mut authority = Authority::new(KeyType::P256).unwrap();
        let uri = authority.service_uri("dc1", "api");
        let issued = authority.issue(&uri, &IssueOptions::default()).unwrap();
        let chain = ders(&issued.chain_pem);
        assert_eq!(chain.len(), 1);
        let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
        assert_eq!(leaf.subject().iter().count(), 0);
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        assert!(names.critical);
        assert_eq!(names.value.general_names, [GeneralName::URI(&uri)]);
        assert_eq!(leaf.validity().not_after.timestamp(), issued.not_after);
    }

    #[test]
    fn every_kind_of_key_signs_and_is_signed() {
        for root in [KeyType::P256, KeyType::P384, KeyType::P521, KeyType::Rsa2048] {
            let mut authority = Authority::new(root).unwrap();
            let trusted = ders(&authority.roots_pem());
            for key in [KeyType::P256, KeyType::P384, KeyType::P521, KeyType::Rsa2048] {
                let options = IssueOptions {
                    key,
                    intermediates: 2,
                    ..IssueOptions::default()
                };
                let issued = authority.issue("spiffe://x/y", &options).unwrap();
                let chain = ders(&issued.chain_pem);
                assert_eq!(chain.len(), 3);
                assert!(verifies(&trusted[0], &chain), "{root:?} {key:?}");
                let private = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
                let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private);
                let certified = rustls::sign::CertifiedKey::new(chain, signer.unwrap());
                certified.keys_match().unwrap();
            }
        }
    }

    #[test]
    fn p256_keys_are_in_sec1_form() {
        let mut authority = Authority::new(KeyType::P256).unwrap();
        let issued = authority.issue("spiffe://x/y", &IssueOptions::default()).unwrap();
        assert!(issued.key_pem.starts_with("-----BEGIN EC PRIVATE KEY-----\n"));
    }

    #[test]
    fn after_a_rotation_old_and_new_root_both_accept_the_new_leaf() {
        let mut authority = Authority::new(KeyType::P256).unwrap();
        let old = ders(&authority.roots_pem()).remove(0);
        authority.add_root(9).unwrap();
        let new = ders(&authority.roots_pem()).remove(1);
        let issued = authority.issue("spiffe://x/y", &IssueOptions::default()).unwrap();
        let chain = ders(&issued.chain_pem);
        assert_eq!(chain.len(), 2);
        assert!(verifies(&old, &chain) && verifies(&new, &chain));
        authority.drop_old_roots();
        assert_eq!(ders(&authority.roots_pem()), [new]);
    }

    #[test]
    fn an_expired_leaf_is_refused() {
        let mut authority = Authority::new(KeyType::P256).unwrap();
        let root = ders(&authority.roots_pem()).remove(0);
        let issued = authority.issue("spiffe://x/y", &IssueOptions::expired());
        assert!(!verifies(&root, &ders(&issued.unwrap().chain_pem)));
    }
}
