//! Contexts that verify, contexts that would not, secrets by name, and what is shared.

use std::collections::BTreeMap;

use attache_proto::envoy::config::core::v3::{AggregatedConfigSource, ConfigSource, PathConfigSource};
use attache_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, SubjectAltNameMatcher, TlsCertificate,
    common_tls_context::CombinedCertificateValidationContext, subject_alt_name_matcher::SanType,
};
use attache_proto::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};

use super::super::Why;
use super::super::testing::{Bench, any, inline, pem};
use super::*;
use crate::model::Trust;
use crate::model::secret::SanKind;

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

fn trusted() -> CertificateValidationContext {
    CertificateValidationContext {
        trusted_ca: inline(&pem(URI).certificate),
        ..CertificateValidationContext::default()
    }
}

fn common_of(validation: Option<ValidationContextType>) -> CommonTlsContext {
    CommonTlsContext {
        tls_certificates: vec![leaf()],
        validation_context_type: validation,
        ..CommonTlsContext::default()
    }
}

fn mutual() -> DownstreamTlsContext {
    DownstreamTlsContext {
        common_tls_context: Some(common_of(Some(ValidationContextType::ValidationContext(
            trusted(),
        )))),
        require_client_certificate: Some(true),
        ..DownstreamTlsContext::default()
    }
}

fn to_upstream() -> UpstreamTlsContext {
    UpstreamTlsContext {
        common_tls_context: mutual().common_tls_context,
        sni: "api.default.dc1.internal.td.consul".to_owned(),
        ..UpstreamTlsContext::default()
    }
}

fn down(context: &DownstreamTlsContext) -> Result<Arc<DownstreamTls>, DecodeError> {
    downstream(&any(context), &AT, &mut Bench::default().context())
}

fn up(context: &UpstreamTlsContext) -> Result<Arc<UpstreamTls>, DecodeError> {
    upstream(&any(context), None, &AT, &mut Bench::default().context())
}

#[test]
fn clients_are_verified_as_far_as_asked() {
    assert!(matches!(
        down(&mutual()).unwrap().client,
        ClientCertificate::Required(_)
    ));
    let mut context = mutual();
    context.require_client_certificate = Some(false);
    assert!(matches!(
        down(&context).unwrap().client,
        ClientCertificate::Optional(_)
    ));
    // As in Envoy: nobody has none of the names.
    let wanted = ValidationContextType::ValidationContext(CertificateValidationContext {
        match_typed_subject_alt_names: vec![SubjectAltNameMatcher {
            san_type: SanType::Uri.into(),
            matcher: Some(StringMatcher {
                match_pattern: Some(MatchPattern::Exact(URI.to_owned())),
                ignore_case: false,
            }),
            ..SubjectAltNameMatcher::default()
        }],
        ..trusted()
    });
    context.common_tls_context = Some(common_of(Some(wanted)));
    assert!(matches!(
        down(&context).unwrap().client,
        ClientCertificate::Required(_)
    ));
    context.common_tls_context = Some(common_of(None));
    assert_eq!(down(&context).unwrap().client, ClientCertificate::None);
    // An empty context asks for nothing; required, it would let anybody in.
    let empty = ValidationContextType::ValidationContext(CertificateValidationContext::default());
    context.common_tls_context = Some(common_of(Some(empty)));
    assert_eq!(down(&context).unwrap().client, ClientCertificate::None);
    context.require_client_certificate = Some(true);
    assert_eq!(down(&context).unwrap_err().path, "require_client_certificate");
}

#[test]
fn an_upstream_is_verified_always() {
    let mut context = to_upstream();
    let tls = up(&context).unwrap();
    assert_eq!(tls.sni.as_deref(), Some("api.default.dc1.internal.td.consul"));
    assert!(tls.identity.is_some());
    context.sni = "not a name".to_owned();
    assert_eq!(up(&context).unwrap_err().path, "sni");
    for unverified in [None, Some(common_of(None))] {
        context.sni = String::new();
        context.common_tls_context = unverified;
        let error = up(&context).unwrap_err();
        assert_eq!(error.path, "common_tls_context.validation_context");
        assert!(error.to_string().contains("whoever answers"), "{error}");
    }
}

#[test]
fn a_server_outside_the_mesh_is_verified_by_the_system_and_by_its_name() {
    let context = UpstreamTlsContext::default();
    let mut bench = Bench::default();
    let error = upstream(&any(&context), Some("keys.test"), &AT, &mut bench.context()).unwrap_err();
    assert!(error.to_string().contains("the system has no bundle"), "{error}");
    let authority = pem("spiffe://td.consul").certificate;
    let default = "/etc/pki/tls/certs/ca-bundle.crt";
    bench.disk.files.insert(default.into(), authority);
    let by_default = |host: &str, sni: &str, bench: &mut Bench| {
        let context = UpstreamTlsContext {
            sni: sni.to_owned(),
            ..UpstreamTlsContext::default()
        };
        let tls = upstream(&any(&context), Some(host), &AT, &mut bench.context()).unwrap();
        let [name] = tls.validation.names.as_slice() else {
            panic!("{:?}", tls.validation.names)
        };
        let Trust::Roots(roots) = &tls.validation.trust else {
            panic!("no roots")
        };
        (roots.path.clone(), name.kind, name.matcher.clone())
    };
    for (host, sni, kind, name) in [
        ("keys.test", "", SanKind::Dns, "keys.test"),
        ("keys.test", "other.test", SanKind::Dns, "other.test"),
        ("10.0.0.1", "", SanKind::Ip, "10.0.0.1"),
    ] {
        let found = by_default(host, sni, &mut bench);
        let expected = (
            Some(default.into()),
            kind,
            crate::model::matcher::StringMatcher::exact(name),
        );
        assert_eq!(found, expected);
    }
}

#[test]
fn sessions_are_resumed_unless_somebody_says_no() {
    let mut context = mutual();
    assert!(down(&context).unwrap().params.resumption);
    for (said, resumption) in [(true, false), (false, true)] {
        context.session_ticket_keys_type =
            Some(SessionTicketKeysType::DisableStatelessSessionResumption(said));
        assert_eq!(down(&context).unwrap().params.resumption, resumption);
    }
    let mut context = to_upstream();
    for (keys, resumption) in [(None, true), (Some(0), false), (Some(4), true)] {
        context.max_session_keys = keys;
        assert_eq!(up(&context).unwrap().params.resumption, resumption);
    }
}

#[test]
fn one_certificate_to_present() {
    let mut context = mutual();
    let common = context.common_tls_context.as_mut().unwrap();
    common.alpn_protocols = vec!["h2".to_owned(), "http/1.1".to_owned()];
    assert_eq!(*down(&context).unwrap().alpn, ["h2".into(), "http/1.1".into()]);
    let common = context.common_tls_context.as_mut().unwrap();
    common.alpn_protocols.push(String::new());
    assert_eq!(
        down(&context).unwrap_err().path,
        "common_tls_context.alpn_protocols[2]"
    );
    let common = context.common_tls_context.as_mut().unwrap();
    common.alpn_protocols.clear();
    common.tls_certificates.push(leaf());
    assert_eq!(
        down(&context).unwrap_err().path,
        "common_tls_context.tls_certificates"
    );
    context
        .common_tls_context
        .as_mut()
        .unwrap()
        .tls_certificates
        .clear();
    assert_eq!(down(&context).unwrap_err().path, "common_tls_context");
}

#[test]
fn stricter_wishes_are_refused() {
    let refused = |change: fn(&mut DownstreamTlsContext)| {
        let mut context = mutual();
        change(&mut context);
        down(&context).unwrap_err().path
    };
    assert_eq!(refused(|c| c.require_sni = Some(true)), "require_sni");
    assert_eq!(refused(|c| c.ocsp_staple_policy = 2), "ocsp_staple_policy");
    let refused = |change: fn(&mut UpstreamTlsContext)| {
        let mut context = to_upstream();
        change(&mut context);
        up(&context).unwrap_err().path
    };
    assert_eq!(refused(|c| c.auto_host_sni = true), "auto_host_sni");
    assert_eq!(
        refused(|c| c.auto_sni_san_validation = true),
        "auto_sni_san_validation"
    );
    assert_eq!(
        refused(|c| c.common_tls_context.as_mut().unwrap().key_log = Some(Default::default())),
        "common_tls_context.key_log"
    );
}

fn by_name(name: &str, source: Option<ConfigSourceSpecifier>) -> SdsSecretConfig {
    SdsSecretConfig {
        name: name.to_owned(),
        sds_config: source.map(|source| ConfigSource {
            config_source_specifier: Some(source),
            ..ConfigSource::default()
        }),
    }
}

fn ads() -> Option<ConfigSourceSpecifier> {
    Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {}))
}

fn named(certificate: SdsSecretConfig, validation: ValidationContextType) -> DownstreamTlsContext {
    DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_sds_secret_configs: vec![certificate],
            validation_context_type: Some(validation),
            ..CommonTlsContext::default()
        }),
        require_client_certificate: Some(true),
        ..DownstreamTlsContext::default()
    }
}

fn name(text: &str) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Exact(text.to_owned())),
            ignore_case: false,
        }),
        ..SubjectAltNameMatcher::default()
    }
}

#[test]
fn secrets_by_name() {
    let mut bench = Bench::default();
    let combined = CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            match_typed_subject_alt_names: vec![name("a")],
            ..CertificateValidationContext::default()
        }),
        validation_context_sds_secret_config: Some(by_name("roots", ads())),
        ..CombinedCertificateValidationContext::default()
    };
    let context = named(
        by_name("leaf", ads()),
        ValidationContextType::CombinedValidationContext(combined),
    );
    // Nothing is there yet: it is asked for and waited for.
    let mut ctx = bench.context();
    let waiting = downstream(&any(&context), &AT, &mut ctx).unwrap_err();
    assert_eq!(waiting.why, Why::Waiting("leaf".into()));
    assert!(ctx.interest.contains("leaf"));
    drop(ctx);

    let leaf = secret::certificate(&leaf(), &AT, &mut bench.context()).unwrap();
    let mut from_secret = trusted();
    from_secret.match_typed_subject_alt_names.push(name("b"));
    let roots = secret::validation(&from_secret, &AT, &mut bench.context()).unwrap();
    bench.secrets = BTreeMap::from([
        ("leaf".into(), Secret::Certificate(Arc::clone(&leaf))),
        ("roots".into(), Secret::Validation(roots)),
    ]);
    let mut ctx = bench.context();
    let tls = downstream(&any(&context), &AT, &mut ctx).unwrap();
    assert!(Arc::ptr_eq(&tls.identity, &leaf));
    let ClientCertificate::Required(validation) = &tls.client else {
        panic!("nobody is verified")
    };
    assert!(matches!(validation.trust, Trust::Roots(_)));
    // Names of both are alternatives.
    assert_eq!(validation.names.len(), 2);
    assert_eq!(ctx.interest.len(), 2);
    drop(ctx);

    let direct = ValidationContextType::ValidationContextSdsSecretConfig(by_name("roots", None));
    let plain = named(by_name("leaf", None), direct);
    let mut ctx = bench.context();
    assert!(downstream(&any(&plain), &AT, &mut ctx).is_ok());
    // The bootstrap's own are not asked for.
    assert!(ctx.interest.is_empty());

    let wrong = |certificate, validation: &str| {
        let validation = by_name(validation, None);
        let context = named(
            certificate,
            ValidationContextType::ValidationContextSdsSecretConfig(validation),
        );
        downstream(&any(&context), &AT, &mut bench.context())
            .unwrap_err()
            .path
    };
    let mut wrong = wrong;
    let certificates = "common_tls_context.tls_certificate_sds_secret_configs[0]";
    assert_eq!(wrong(by_name("roots", None), "roots"), certificates);
    assert_eq!(wrong(by_name("none", None), "roots"), certificates);
    let elsewhere = ConfigSourceSpecifier::PathConfigSource(PathConfigSource::default());
    let at_source = format!("{certificates}.sds_config");
    assert_eq!(wrong(by_name("leaf", Some(elsewhere)), "roots"), at_source);
    let validation = "common_tls_context.validation_context_sds_secret_config";
    assert_eq!(wrong(by_name("leaf", None), "leaf"), validation);
}

#[test]
fn what_did_not_change_is_the_same() {
    let mut bench = Bench::default();
    let (server, client) = (any(&mutual()), any(&to_upstream()));
    let first = downstream(&server, &AT, &mut bench.context()).unwrap();
    let upstreams = [(); 2].map(|()| upstream(&client, None, &AT, &mut bench.context()).unwrap());
    assert!(Arc::ptr_eq(
        &first,
        &downstream(&server, &AT, &mut bench.context()).unwrap()
    ));
    assert!(Arc::ptr_eq(&upstreams[0], &upstreams[1]));
    // A new leaf is a new context.
    assert!(!Arc::ptr_eq(
        &first,
        &downstream(&any(&mutual()), &AT, &mut bench.context()).unwrap()
    ));
}

#[test]
fn sockets_by_type() {
    let socket = |name: &str, config: Option<Any>| TransportSocket {
        name: name.to_owned(),
        config_type: config.map(ConfigType::TypedConfig),
    };
    let mut bench = Bench::default();
    let mut read = |socket: Option<&TransportSocket>| downstream_socket(socket, &AT, &mut bench.context());
    assert_eq!(read(None), Ok(None));
    assert_eq!(read(Some(&socket("x", Some(any(&RawBuffer {}))))), Ok(None));
    assert_eq!(read(Some(&socket(RAW_BUFFER, None))), Ok(None));
    assert!(
        read(Some(&socket("tls", Some(any(&mutual())))))
            .unwrap()
            .is_some()
    );
    let refused = |socket: &TransportSocket| {
        upstream_socket(Some(socket), None, &AT, &mut Bench::default().context())
            .unwrap_err()
            .to_string()
    };
    assert!(refused(&socket("tls", None)).contains("no typed_config"));
    let proxy = any(&ProxyProtocolUpstreamTransport::default());
    assert!(refused(&socket("p", Some(proxy))).contains("PROXY headers"));
    // The other side's context is no context of this side.
    assert!(refused(&socket("tls", Some(any(&mutual())))).contains("DownstreamTlsContext"));
}
