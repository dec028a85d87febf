//! Certificates inline, from files and the environment; what is asked of a peer.

use attache_proto::envoy::extensions::transport_sockets::tls::v3::{
    GenericSecret, TlsSessionTicketKeys, spiffe_cert_validator_config::TrustDomain,
};
use attache_proto::envoy::r#type::matcher::v3::{StringMatcher as WireString, string_matcher::MatchPattern};
use prost::Message;
use prost_types::Any;

use super::super::testing::{Bench, any, file, inline, pem};
use super::*;
use crate::model::matcher::StringMatcher;

const AT: At<'static> = At::resource("Listener", "l");
const URI: &str = "spiffe://td.consul/ns/default/dc/dc1/svc/web";

fn leaf() -> TlsCertificate {
    let pem = pem(URI);
    TlsCertificate {
        certificate_chain: inline(&pem.certificate),
        private_key: inline(&pem.key),
        ..TlsCertificate::default()
    }
}

fn refused(certificate: &TlsCertificate) -> DecodeError {
    self::certificate(certificate, &AT, &mut Bench::default().context()).unwrap_err()
}

#[test]
fn certificates_from_everywhere() {
    let pem = pem(URI);
    let mut bench = Bench::default();
    bench
        .disk
        .files
        .insert("/tls/cert.pem".into(), pem.certificate.clone());
    bench.disk.variables.insert("KEY".to_owned(), pem.key.clone());
    let from_file = TlsCertificate {
        certificate_chain: file("/tls/cert.pem"),
        private_key: Some(DataSource {
            specifier: Some(Specifier::EnvironmentVariable("KEY".to_owned())),
            ..DataSource::default()
        }),
        watched_directory: Some(WatchedDirectory {
            path: "/tls".to_owned(),
            ..WatchedDirectory::default()
        }),
        ..TlsCertificate::default()
    };
    let inline = TlsCertificate {
        certificate_chain: inline(&pem.certificate),
        private_key: Some(DataSource {
            specifier: Some(Specifier::InlineBytes(pem.key.into_bytes())),
            ..DataSource::default()
        }),
        ..TlsCertificate::default()
    };
    let mut ctx = bench.context();
    let a = certificate(&from_file, &AT, &mut ctx).unwrap();
    let b = certificate(&inline, &AT, &mut ctx).unwrap();
    assert_eq!(a, b);
    assert_eq!(
        (a.path.as_deref(), b.path.as_deref()),
        (Some("/tls/cert.pem"), None)
    );
    let watched: Vec<_> = ctx
        .watched
        .iter()
        .map(|path| path.to_str().unwrap().to_owned())
        .collect();
    assert_eq!(watched, ["/tls", "/tls/cert.pem"]);
    assert!(Arc::ptr_eq(&b, &certificate(&inline, &AT, &mut ctx).unwrap()));
    drop(ctx);
    // Another pass, nothing new: the same one.
    let again = certificate(&inline, &AT, &mut bench.context()).unwrap();
    assert!(Arc::ptr_eq(&b, &again));
}

#[test]
fn broken_certificates_say_which_part() {
    let good = leaf();
    let with = |change: &dyn Fn(&mut TlsCertificate)| {
        let mut certificate = good.clone();
        change(&mut certificate);
        refused(&certificate)
    };
    assert_eq!(with(&|c| c.private_key = None).path, "private_key");
    assert_eq!(with(&|c| c.certificate_chain = None).path, "certificate_chain");
    assert_eq!(
        with(&|c| c.certificate_chain = inline("x")).path,
        "certificate_chain"
    );
    assert_eq!(with(&|c| c.private_key = inline("x")).path, "private_key");
    let foreign = with(&|c| c.private_key = leaf().private_key);
    assert_eq!(foreign.path, "private_key");
    assert!(foreign.to_string().contains("cannot be used"), "{foreign}");
    assert!(!foreign.to_string().contains("PRIVATE KEY"), "{foreign}");
    let missing = with(&|c| c.private_key = file("/nowhere"));
    assert_eq!(missing.path, "private_key.filename");
    assert!(
        missing.to_string().contains("\"/nowhere\" cannot be read"),
        "{missing}"
    );
    assert_eq!(with(&|c| c.pkcs12 = inline("x")).path, "pkcs12");
    assert_eq!(with(&|c| c.password = inline("x")).path, "password");
    let unset = DataSource {
        specifier: Some(Specifier::EnvironmentVariable("NONE".to_owned())),
        ..DataSource::default()
    };
    let error = with(&|c| c.private_key = Some(unset.clone()));
    assert_eq!(error.path, "private_key.environment_variable");
}

fn exact(text: &str) -> WireString {
    WireString {
        match_pattern: Some(MatchPattern::Exact(text.to_owned())),
        ignore_case: false,
    }
}

fn san(kind: SanType) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher {
        san_type: kind.into(),
        matcher: Some(exact("x")),
        ..SubjectAltNameMatcher::default()
    }
}

fn read(context: &CertificateValidationContext) -> Result<ValidationParts, DecodeError> {
    validation(context, &AT, &mut Bench::default().context())
}

#[test]
fn names_of_every_kind() {
    let kinds = [SanType::Uri, SanType::Dns, SanType::Email, SanType::IpAddress];
    let context = CertificateValidationContext {
        trusted_ca: inline(&pem(URI).certificate),
        match_typed_subject_alt_names: kinds.map(san).into(),
        ..CertificateValidationContext::default()
    };
    let typed = read(&context).unwrap();
    let expected = [SanKind::Uri, SanKind::Dns, SanKind::Email, SanKind::Ip].map(|kind| SanMatcher {
        kind,
        matcher: StringMatcher::exact("x"),
    });
    assert_eq!(typed.names, expected);
    let untyped = CertificateValidationContext {
        match_typed_subject_alt_names: vec![],
        match_subject_alt_names: vec![exact("x")],
        ..context.clone()
    };
    assert_eq!(read(&untyped).unwrap().names, expected);
    for kind in [SanType::OtherName, SanType::Unspecified] {
        let mut other = context.clone();
        other.match_typed_subject_alt_names[1] = san(kind);
        assert_eq!(
            read(&other).unwrap_err().path,
            "match_typed_subject_alt_names[1].san_type"
        );
    }
    // Names that nobody vouches for are worth nothing.
    let unverified = CertificateValidationContext {
        trusted_ca: None,
        ..context
    };
    assert!(read(&unverified).unwrap().finish(&AT).is_err());
    assert_eq!(ValidationParts::default().finish(&AT), Ok(None));
}

#[test]
fn what_would_ask_more_or_less_than_is_done_is_refused() {
    let refused = |change: &dyn Fn(&mut CertificateValidationContext)| {
        let mut context = CertificateValidationContext {
            trusted_ca: inline(&pem(URI).certificate),
            ..CertificateValidationContext::default()
        };
        change(&mut context);
        read(&context).unwrap_err().path
    };
    assert_eq!(refused(&|c| c.crl = inline("x")), "crl");
    assert_eq!(
        refused(&|c| c.allow_expired_certificate = true),
        "allow_expired_certificate"
    );
    assert_eq!(
        refused(&|c| c.trust_chain_verification = 1),
        "trust_chain_verification"
    );
    assert_eq!(
        refused(&|c| c.trust_chain_verification = 5),
        "trust_chain_verification"
    );
    assert_eq!(
        refused(&|c| c.only_verify_leaf_cert_crl = true),
        "only_verify_leaf_cert_crl"
    );
    assert_eq!(refused(&|c| c.max_verify_depth = Some(1)), "max_verify_depth");
    let hash = || vec!["x".to_owned()];
    assert_eq!(
        refused(&|c| c.verify_certificate_hash = hash()),
        "verify_certificate_hash"
    );
    assert_eq!(
        refused(&|c| c.verify_certificate_spki = hash()),
        "verify_certificate_spki"
    );
    assert_eq!(refused(&|c| c.trusted_ca = inline("x")), "trusted_ca");
    assert_eq!(
        refused(&|c| c.trusted_ca = file("/ca.pem")),
        "trusted_ca.filename"
    );
}

fn trust_domain(name: &str) -> TrustDomain {
    TrustDomain {
        name: name.to_owned(),
        trust_bundle: inline(&pem(URI).certificate),
        ..TrustDomain::default()
    }
}

fn validator(domains: Vec<TrustDomain>) -> CertificateValidationContext {
    CertificateValidationContext {
        custom_validator_config: Some(TypedExtensionConfig {
            name: "envoy.tls.cert_validator.spiffe".to_owned(),
            typed_config: Some(any(&SpiffeCertValidatorConfig {
                trust_domains: domains,
                trust_bundles: None,
            })),
        }),
        ..CertificateValidationContext::default()
    }
}

#[test]
fn peered_trust_domains() {
    let two = validator(vec![trust_domain("a.consul"), trust_domain("b.consul")]);
    let Some(Trust::Spiffe(bundles)) = read(&two).unwrap().trust else {
        panic!("no bundles")
    };
    let names: Vec<&str> = bundles.iter().map(|bundle| &*bundle.trust_domain).collect();
    assert_eq!(names, ["a.consul", "b.consul"]);
    let path = |context: &CertificateValidationContext| read(context).unwrap_err().path;
    let at = |field: &str| format!("custom_validator_config.typed_config.trust_domains{field}");
    assert_eq!(path(&validator(vec![])), at(""));
    let twice = validator(vec![trust_domain("a.consul"), trust_domain("a.consul")]);
    assert_eq!(path(&twice), at("[1].name"));
    assert_eq!(
        path(&validator(vec![trust_domain("A/b")])),
        at("[0].trust_bundle")
    );
    let mut other = validator(vec![]);
    other.custom_validator_config = Some(TypedExtensionConfig {
        name: "mine".to_owned(),
        typed_config: Some(Any::default()),
    });
    assert_eq!(path(&other), "custom_validator_config.typed_config");
}

#[test]
fn secrets_by_kind() {
    let secret = |r#type| wire::Secret {
        name: "s".to_owned(),
        r#type,
    };
    let read = |secret: &wire::Secret| decode_bytes(&secret.encode_to_vec(), &mut Bench::default().context());
    let (name, decoded) = read(&secret(Some(Type::TlsCertificate(leaf())))).unwrap();
    assert_eq!(&*name, "s");
    assert!(matches!(decoded, Secret::Certificate(_)));
    let context = CertificateValidationContext {
        trusted_ca: inline(&pem(URI).certificate),
        ..CertificateValidationContext::default()
    };
    let validation = read(&secret(Some(Type::ValidationContext(context)))).unwrap().1;
    assert!(matches!(validation, Secret::Validation(parts) if parts.trust.is_some()));
    for (kind, path) in [
        (
            Some(Type::SessionTicketKeys(TlsSessionTicketKeys::default())),
            "session_ticket_keys",
        ),
        (
            Some(Type::GenericSecret(GenericSecret::default())),
            "generic_secret",
        ),
        (None, ""),
    ] {
        assert_eq!(read(&secret(kind)).unwrap_err().path, path);
    }
    // A field that is not known here, in a message of TLS.
    let mut unknown = secret(Some(Type::TlsCertificate(leaf()))).encode_to_vec();
    unknown.extend([0xF8, 0x3F, 1]);
    let refused = decode_bytes(&unknown, &mut Bench::default().context()).unwrap_err();
    assert!(refused.to_string().contains("number 1023"), "{refused}");
}
