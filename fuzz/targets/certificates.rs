//! Certificates as they come from Consul (PEM) and from peers (DER).
//!
//! Input that begins with `-` is PEM text, everything else the DER of one certificate. What the model
//! accepts is what was in the text; what the verifier accepts was signed by the authority.

#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use attache::model::secret::SecretError;
use attache::model::{Identity, SpiffeId, TrustBundle, Validation};
use attache::tls::identity::certified_key;
use attache::tls::verifier::{PeerVerifier, peer};
use libfuzzer_sys::fuzz_target;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};

/// A real Consul's authority and the leaves that it signed; nobody has their keys.
const ROOT: &str = include_str!("../corpus/certificates/root.pem");
const LEAVES: [&[u8]; 2] = [
    include_bytes!("../corpus/certificates/leaf_web.der"),
    include_bytes!("../corpus/certificates/leaf_api.der"),
];

/// The model does not look into a key, so any bytes do.
const KEY: &[u8] = b"attache-fuzz: these bytes stand for a private key";

struct Mesh {
    trust: Arc<TrustBundle>,
    verifier: PeerVerifier,
    /// A moment at which the leaves are valid.
    now: UnixTime,
    /// What of each leaf is signed.
    signed: Vec<&'static [u8]>,
}

static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    let leaf = spiffe_id(&LEAVES[0].into()).expect("the leaf is Consul's own");
    let trust = Arc::new(TrustBundle::from_pem(leaf.trust_domain(), [ROOT]).expect("so is the root"));
    let verifier = PeerVerifier::new(Validation::mesh(&trust, &[]), true).expect("it can be used");
    let leaf = Identity::from_pem(
        &attache_fuzz::pem("CERTIFICATE", LEAVES[0]),
        &attache_fuzz::pem("PRIVATE KEY", KEY),
    );
    let since = leaf.expect("it has facts").leaf.not_before;
    let since = since.duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let mesh = Mesh {
        trust,
        verifier,
        now: UnixTime::since_unix_epoch(since + Duration::from_secs(3600)),
        signed: LEAVES.iter().map(|leaf| signed_part(leaf)).collect(),
    };
    for leaf in LEAVES {
        let verdict = mesh.verifier.verify_client_cert(&leaf.into(), &[], mesh.now);
        verdict.expect("the leaves are accepted as they are");
    }
    mesh
});

fn spiffe_id(certificate: &CertificateDer<'_>) -> Option<SpiffeId> {
    peer(certificate).ok()?.spiffe_id
}

/// The first element of the outer sequence; both have two bytes of length.
fn signed_part(certificate: &[u8]) -> &[u8] {
    let inner = &certificate[4..];
    assert_eq!((certificate[1], inner[1]), (0x82, 0x82));
    &inner[..4 + usize::from(u16::from_be_bytes([inner[2], inner[3]]))]
}

fuzz_target!(|data: &[u8]| {
    if data.first() == Some(&b'-') {
        if let Ok(text) = std::str::from_utf8(data) {
            pem(text);
        }
    } else {
        der(data);
    }
});

fn pem(text: &str) {
    let mesh = &*MESH;
    let blocks = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    let bundle = TrustBundle::from_pem(&mesh.trust.trust_domain, [text]);
    if let Ok(bundle) = &bundle {
        assert_eq!(
            Ok(&bundle.roots.certificates),
            blocks.as_ref().map_err(|_| ()),
            "no block is passed over"
        );
        assert_eq!(bundle.roots.certificates.len(), bundle.roots.facts.len());
        assert!(!bundle.roots.certificates.is_empty());
        let _ = PeerVerifier::new(Validation::mesh(&Arc::new(bundle.clone()), &[]), true);
    }
    if let Ok(identity) = Identity::from_pem(text, text) {
        sound(&identity);
        let bundle = bundle.expect("an identity's chain is made of certificates");
        assert_eq!(
            (&bundle.roots.certificates, &bundle.roots.facts[0]),
            (&identity.chain, &identity.leaf)
        );
        let _ = certified_key(&identity);
    }
    // The first line as a trust domain: one that is accepted is one that an ID can have.
    let domain = text.lines().nth(1).unwrap_or_default();
    if let Ok(bundle) = TrustBundle::from_pem(domain, [ROOT]) {
        let id = SpiffeId::parse(&format!("spiffe://{domain}"));
        assert_eq!(
            id.map(|id| id.trust_domain().to_owned()),
            Ok(bundle.trust_domain.to_string())
        );
    }
}

fn der(data: &[u8]) {
    let mesh = &*MESH;
    let certificate = CertificateDer::from(data);
    let text = attache_fuzz::pem("CERTIFICATE", data);
    let key = attache_fuzz::pem("PRIVATE KEY", KEY);
    let identity = Identity::from_pem(&text, &key);
    let bundle = TrustBundle::from_pem(&mesh.trust.trust_domain, [ROOT, &text]);
    match &bundle {
        Ok(bundle) => {
            assert_eq!(bundle.roots.certificates.last().map(AsRef::as_ref), Some(data));
            assert_ne!(identity.as_ref().err(), Some(&SecretError::BadCertificate(1)));
            let _ = PeerVerifier::new(Validation::mesh(&Arc::new(bundle.clone()), &[]), true);
        }
        Err(error) => {
            assert_eq!(error, &SecretError::BadCertificate(1));
            assert_eq!(identity.as_ref().err(), Some(error));
        }
    }
    let peer = spiffe_id(&certificate);
    if let Ok(identity) = &identity {
        sound(identity);
        assert_eq!(identity.chain, std::slice::from_ref(&certificate));
        // Two parsers read certificates: what /certs shows and what peers are checked by.
        if let Some(peer) = &peer {
            assert_eq!(Some(peer), identity.spiffe_id.as_ref());
        }
        let _ = certified_key(identity);
    }
    let alone = mesh.verifier.verify_client_cert(&certificate, &[], mesh.now);
    if alone.is_ok() {
        let peer = peer.expect("who is let in has a name");
        assert_eq!(peer.trust_domain(), &*mesh.trust.trust_domain);
        let signed = mesh.signed.iter().any(|signed| data[4..].starts_with(signed));
        assert!(signed, "nobody signed this: {peer}");
    }
    // A peer chooses its intermediates too: they take nothing away from a leaf that needs none.
    let leaf = LEAVES[0].into();
    let beside = mesh.verifier.verify_client_cert(&leaf, &[certificate], mesh.now);
    beside.expect("an intermediate that is not needed does no harm");
}

/// What holds for every identity.
fn sound(identity: &Identity) {
    assert!(!identity.chain.is_empty());
    if let Some(id) = &identity.spiffe_id {
        assert_eq!(identity.leaf.uris, [id.as_str()]);
    }
    let key = identity.key.der();
    let shown = format!("{identity:?} {:?}", identity.key);
    let secret = String::from_utf8_lossy(key.secret_der());
    assert!(secret.len() < 16 || !shown.contains(&*secret), "the key is shown");
}
