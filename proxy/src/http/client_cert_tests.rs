//! Every expectation was measured on Envoy 1.40.0 doing mutual TLS with these certificates.

use rustls::pki_types::pem::PemObject;

use super::*;
use crate::model::http::SetCurrentClientCert;
use crate::tls::verifier;

/// A leaf as Consul makes them: an empty subject and one URI.
const LEAF: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIB8zCCAZmgAwIBAgIUXHeAzzv1Y1owbqBhgYcbCBQuMS8wCgYIKoZIzj0EAwIw\n\
DjEMMAoGA1UEAwwDaW50MB4XDTI2MTEyMzE5MjgyNVoXDTM2MTEyMDE5MjgyNVow\n\
ADBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABLyMdiedlJxCoKd5uxA/f2Pj6h1c\n\
lBHlzW9YgpAC44e9rxVTtKIf0Q0mT6mxUxaXZk4QK0Q4l+M7R1C/fgIYH2ujgeIw\n\
gd8wDgYDVR0PAQH/BAQDAgOoMB0GA1UdJQQWMBQGCCsGAQUFBwMCBggrBgEFBQcD\n\
ATAMBgNVHRMBAf8EAjAAMGAGA1UdEQEB/wRWMFSGUnNwaWZmZTovLzExMTExMTEx\n\
LTIyMjItMzMzMy00NDQ0LTU1NTU1NTU1NTU1NS5jb25zdWwvbnMvZGVmYXVsdC9k\n\
Yy9kYzEvc3ZjL2NoYWluZWQwHQYDVR0OBBYEFETv9beinD1nwGqkIKyjzuMbLHsN\n\
MB8GA1UdIwQYMBaAFBnUw9/9w3SSmybLUl6TBpDx/hD3MAoGCCqGSM49BAMCA0gA\n\
MEUCIB9CHwO6C67S5gUVgl2Usr+k8bARr2J4jnAm9KBeoi5SAiEAk2TsAH/YW3Ph\n\
Bvgnm/73ajcQJkM5uZdUnuHFehnKtBI=\n\
-----END CERTIFICATE-----";

/// Its issuer, which the peer presents too.
const INTERMEDIATE: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBhDCCASqgAwIBAgIUCyfj054cGHiJXu6JR8ltf4TGB60wCgYIKoZIzj0EAwIw\n\
ETEPMA0GA1UEAwwGbGFiIGNhMB4XDTI2MTEyMzE5MjgyNVoXDTM2MTEyMDE5Mjgy\n\
NVowDjEMMAoGA1UEAwwDaW50MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEiI4N\n\
AS6+KJaxEAThWnK3s/LOOiiU19ey2/gcHdQUv3F4kZaHrrPmurxZSopbnyLXgoiY\n\
SLU+kEJ1nJKtWCfilKNjMGEwDwYDVR0TAQH/BAUwAwEB/zAOBgNVHQ8BAf8EBAMC\n\
AYYwHQYDVR0OBBYEFBnUw9/9w3SSmybLUl6TBpDx/hD3MB8GA1UdIwQYMBaAFG+y\n\
/pavnTeCLa8r94Pzyv7F3xGAMAoGCCqGSM49BAMCA0gAMEUCIQDgp12uhn5rnhxx\n\
8T1Yqd/nZZ8LyjpsHMcLaS86+E+3NAIgOVo+amb9DUVAQoy29bYFAcfES8ILQCPA\n\
EV+NviqkPSI=\n\
-----END CERTIFICATE-----";

/// A certificate of another world.
const STRANGER: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIICFjCCAbygAwIBAgIUCyfj054cGHiJXu6JR8ltf4TGB7EwCgYIKoZIzj0EAwIw\n\
ETEPMA0GA1UEAwwGbGFiIGNhMB4XDTI2MTEyMzE5MjgyNVoXDTM2MTEyMDE5Mjgy\n\
NVowZDELMAkGA1UEBhMCREUxETAPBgNVBAoMCEEsIEIgIkMiMRQwCAYDVQQDDAF5\n\
MAgGA1UECwwBeDESMBAGCSqGSIb3DQEJARYDYUBiMRgwFgYDVQQDDA8gbGVhZCM7\n\
PD5cXCDDvCAwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASyAeM5Iyn9bWmJ6fgd\n\
xmvBYEV1mNsQiTn4RPdiTslZQpeDte6QDVnkL0QY/qceE+W9brVjiaRmJYWjBgVp\n\
K8/2o4GeMIGbMA4GA1UdDwEB/wQEAwIDqDAdBgNVHSUEFjAUBggrBgEFBQcDAgYI\n\
KwYBBQUHAwEwDAYDVR0TAQH/BAIwADAcBgNVHREEFTATggJkMYICZDKHBAECAwSB\n\
A2FAYjAdBgNVHQ4EFgQUXOhhpSyZEvMuaCNPUZg+gyIJXZIwHwYDVR0jBBgwFoAU\n\
b7L+lq+dN4Itryv3g/PK/sXfEYAwCgYIKoZIzj0EAwIDSAAwRQIgCzGo6fLGjblc\n\
R/eOIgpLJtVmpGw6vvddDIz/l0ShX2QCIQCcRO2ZTWqUDMJ2mAISZ4UFBJgM8eq8\n\
SouBtYgOG0SFJg==\n\
-----END CERTIFICATE-----";

/// What Envoy wrote of the leaf.
const LEAF_ENCODED: &str = "-----BEGIN%20CERTIFICATE-----%0AMIIB8zCCAZmgAwIBAgIUXHeAzzv1Y1owbqBhgYcbCBQuMS8wCgYIKoZIzj0EAwIw%0ADjEMMAoGA1UEAwwDaW50MB4XDTI2MTEyMzE5MjgyNVoXDTM2MTEyMDE5MjgyNVow%0AADBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABLyMdiedlJxCoKd5uxA%2Ff2Pj6h1c%0AlBHlzW9YgpAC44e9rxVTtKIf0Q0mT6mxUxaXZk4QK0Q4l%2BM7R1C%2FfgIYH2ujgeIw%0Agd8wDgYDVR0PAQH%2FBAQDAgOoMB0GA1UdJQQWMBQGCCsGAQUFBwMCBggrBgEFBQcD%0AATAMBgNVHRMBAf8EAjAAMGAGA1UdEQEB%2FwRWMFSGUnNwaWZmZTovLzExMTExMTEx%0ALTIyMjItMzMzMy00NDQ0LTU1NTU1NTU1NTU1NS5jb25zdWwvbnMvZGVmYXVsdC9k%0AYy9kYzEvc3ZjL2NoYWluZWQwHQYDVR0OBBYEFETv9beinD1nwGqkIKyjzuMbLHsN%0AMB8GA1UdIwQYMBaAFBnUw9%2F9w3SSmybLUl6TBpDx%2FhD3MAoGCCqGSM49BAMCA0gA%0AMEUCIB9CHwO6C67S5gUVgl2Usr%2Bk8bARr2J4jnAm9KBeoi5SAiEAk2TsAH%2FYW3Ph%0ABvgnm%2F73ajcQJkM5uZdUnuHFehnKtBI%3D%0A-----END%20CERTIFICATE-----%0A";

/// And of the intermediate.
const INTERMEDIATE_ENCODED: &str = "-----BEGIN%20CERTIFICATE-----%0AMIIBhDCCASqgAwIBAgIUCyfj054cGHiJXu6JR8ltf4TGB60wCgYIKoZIzj0EAwIw%0AETEPMA0GA1UEAwwGbGFiIGNhMB4XDTI2MTEyMzE5MjgyNVoXDTM2MTEyMDE5Mjgy%0ANVowDjEMMAoGA1UEAwwDaW50MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEiI4N%0AAS6%2BKJaxEAThWnK3s%2FLOOiiU19ey2%2FgcHdQUv3F4kZaHrrPmurxZSopbnyLXgoiY%0ASLU%2BkEJ1nJKtWCfilKNjMGEwDwYDVR0TAQH%2FBAUwAwEB%2FzAOBgNVHQ8BAf8EBAMC%0AAYYwHQYDVR0OBBYEFBnUw9%2F9w3SSmybLUl6TBpDx%2FhD3MB8GA1UdIwQYMBaAFG%2By%0A%2FpavnTeCLa8r94Pzyv7F3xGAMAoGCCqGSM49BAMCA0gAMEUCIQDgp12uhn5rnhxx%0A8T1Yqd%2FnZZ8LyjpsHMcLaS86%2BE%2B3NAIgOVo%2Bamb9DUVAQoy29bYFAcfES8ILQCPA%0AEV%2BNviqkPSI%3D%0A-----END%20CERTIFICATE-----%0A";

const API: &str = "spiffe://11111111-2222-3333-4444-555555555555.consul/ns/default/dc/dc1/svc/api";
const LEAF_URI: &str = "spiffe://11111111-2222-3333-4444-555555555555.consul/ns/default/dc/dc1/svc/chained";
const LEAF_HASH: &str = "c37aa4500d376d25df9e26d5c9576f0ea819c8f48e3260346541eb211d40c8b1";
const STRANGER_HASH: &str = "a1036aea99176c36d25ee033dfd80e9e7044d7c8d86c24d1788deade4e6eb57a";
const STRANGER_SUBJECT: &str =
    r#"CN=\ lead#\;\<\>\\\\ \C3\BC\ ,emailAddress=a@b,OU=x+CN=y,O=A\, B \"C\",C=DE"#;

const NOTHING: SetCurrentClientCert = SetCurrentClientCert {
    subject: false,
    cert: false,
    chain: false,
    dns: false,
    uri: false,
};
const EVERYTHING: SetCurrentClientCert = SetCurrentClientCert {
    subject: true,
    cert: true,
    chain: true,
    dns: true,
    uri: true,
};

fn certificates(pem: &[&str]) -> Vec<CertificateDer<'static>> {
    let parse = |pem: &&str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    pem.iter().map(parse).collect()
}

fn element_of(pem: &[&str], own_uris: &[&str], set_current: SetCurrentClientCert) -> String {
    let chain = certificates(pem);
    let peer = verifier::peer(&chain[0]).unwrap();
    let own_uris: Vec<String> = own_uris.iter().map(ToString::to_string).collect();
    let certificate = PeerCertificate {
        peer: &peer,
        chain: &chain,
        own_uris: &own_uris,
    };
    let options = ForwardClientCert {
        mode: ForwardClientCertMode::SanitizeSet,
        set_current,
    };
    element(&options, certificate)
}

#[test]
fn everything_is_said_in_envoys_order() {
    assert_eq!(
        element_of(&[LEAF, INTERMEDIATE], &[API], EVERYTHING),
        format!(
            "By={API};Hash={LEAF_HASH};Cert=\"{LEAF_ENCODED}\";Chain=\"{LEAF_ENCODED}{INTERMEDIATE_ENCODED}\";\
             Subject=\"\";URI={LEAF_URI}"
        )
    );
    let without_bytes = SetCurrentClientCert {
        cert: false,
        chain: false,
        ..EVERYTHING
    };
    assert_eq!(
        element_of(&[STRANGER], &["a", "b"], without_bytes),
        format!("By=a;By=b;Hash={STRANGER_HASH};Subject=\"{STRANGER_SUBJECT}\";URI=;DNS=d1;DNS=d2")
    );
}

#[test]
fn only_what_is_asked_for_is_said() {
    let head = format!("By={API};Hash={LEAF_HASH}");
    let of = |set| element_of(&[LEAF, INTERMEDIATE], &[API], set);
    assert_eq!(of(NOTHING), head);
    let cert = SetCurrentClientCert {
        cert: true,
        ..NOTHING
    };
    assert_eq!(of(cert), format!("{head};Cert=\"{LEAF_ENCODED}\""));
    let uri = SetCurrentClientCert { uri: true, ..NOTHING };
    assert_eq!(of(uri), format!("{head};URI={LEAF_URI}"));
    let subject = SetCurrentClientCert {
        subject: true,
        ..NOTHING
    };
    assert_eq!(of(subject), format!("{head};Subject=\"\""));
    let dns = SetCurrentClientCert { dns: true, ..NOTHING };
    assert_eq!(of(dns), head);
    assert_eq!(element_of(&[LEAF], &[], NOTHING), format!("Hash={LEAF_HASH}"));
}

/// What is left of `came`, joined.
fn applied(mode: ForwardClientCertMode, mutual: bool, came: &[&str]) -> Option<String> {
    let chain = certificates(&[LEAF]);
    let peer = verifier::peer(&chain[0]).unwrap();
    let certificate = PeerCertificate {
        peer: &peer,
        chain: &chain,
        own_uris: &[],
    };
    let options = ForwardClientCert {
        mode,
        set_current: NOTHING,
    };
    let mut headers = HeaderMap::new();
    for value in came {
        headers.append(XFCC, value.parse().unwrap());
    }
    ClientCert::new(&options, mutual.then_some(certificate)).apply(&mut headers);
    joined(&headers, &XFCC).map(|value| String::from_utf8(value).unwrap())
}

#[test]
fn a_spoofed_one_is_never_passed_but_where_it_is_asked_for() {
    use ForwardClientCertMode as Mode;
    let ours = format!("Hash={LEAF_HASH}");
    let appended = format!("Hash=1,Hash=2,{ours}");
    let both = Some("Hash=1,Hash=2");
    // With mutual TLS: nothing came, two did, an empty one; without: two came.
    let table = [
        (Mode::Sanitize, None, None, None, None),
        (Mode::ForwardOnly, None, both, Some(""), None),
        (
            Mode::AppendForward,
            Some(&*ours),
            Some(&*appended),
            Some(&*ours),
            None,
        ),
        (Mode::SanitizeSet, Some(&*ours), Some(&*ours), Some(&*ours), None),
        (Mode::AlwaysForwardOnly, None, both, Some(""), both),
    ];
    for (mode, none, two, empty, plain) in table {
        let came = &["Hash=1", "Hash=2"];
        assert_eq!(applied(mode, true, &[]).as_deref(), none, "{mode:?}");
        assert_eq!(applied(mode, true, came).as_deref(), two, "{mode:?}");
        assert_eq!(applied(mode, true, &[""]).as_deref(), empty, "{mode:?}");
        assert_eq!(applied(mode, false, came).as_deref(), plain, "{mode:?}");
        assert_eq!(applied(mode, false, &[]), None, "{mode:?}");
    }
}
