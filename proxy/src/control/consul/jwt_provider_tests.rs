//! What is not in the recorded meshes: files, authorities, and what is refused.

use super::*;

fn entry(keys: &str) -> Result<Provider, String> {
    let body = format!(r#"{{"Name":"p","Issuer":"i","JSONWebKeySet":{{{keys}}}}}"#);
    let read: ReadFile<'_> = &|path| match path {
        "/keys" => Ok("{}".to_owned()),
        _ => Err(format!("{path} cannot be read")),
    };
    decode(body.as_bytes(), "p", read).map_err(|error| error.to_string())
}

fn remote(rest: &str) -> Result<Provider, String> {
    entry(&format!(r#""Remote":{{{rest}}}"#))
}

#[test]
fn keys_at_hand() {
    let from_file = entry(r#""Local":{"Filename":"/keys"}"#).unwrap();
    assert_eq!(from_file.config.jwks, Jwks::Local("{}".into()));
    assert_eq!((from_file.cluster, &*from_file.issuer), (None, "i"));
    for (keys, error) in [
        (
            r#""Local":{"Filename":"/gone"}"#,
            "JSONWebKeySet.Local.Filename: /gone cannot be read",
        ),
        (
            r#""Local":{"JWKS":"*"}"#,
            "JSONWebKeySet.Local.JWKS: is no base64 of a text",
        ),
        (r#""Local":{}"#, "JSONWebKeySet.Local.JWKS: missing"),
        ("", "JSONWebKeySet: has neither Local nor Remote"),
        (r#""New":{"A":1}"#, "JSONWebKeySet.New: is not known"),
    ] {
        assert_eq!(entry(keys).unwrap_err(), error);
    }
}

#[test]
fn an_entry_of_another_name_is_not_taken() {
    let read: ReadFile<'_> = &|_| Err("no file".to_owned());
    let error = decode(br#"{"Name":"q"}"#, "p", read).unwrap_err();
    assert_eq!(error.to_string(), "Name: is not \"p\"");
}

#[test]
fn keys_that_are_fetched() {
    let keys = remote(r#""URI":"http://keys.test/a?b","CacheDuration":300000000000"#).unwrap();
    let Jwks::Remote(remote_keys) = &keys.config.jwks else {
        panic!("not remote")
    };
    // Where Consul would write three hundred thousand million seconds, which Envoy refuses.
    assert_eq!(remote_keys.cache_duration, Duration::from_secs(300));
    let (cluster, assignment) = keys.cluster.unwrap();
    assert_eq!(&*cluster.name, "jwks_cluster_p");
    assert_eq!(assignment.endpoints[0].address.to_string(), "keys.test:80");
    let ClusterKind::Dns(dns) = cluster.kind else {
        panic!("not by name")
    };
    assert!(dns.strict);
    for (rest, error) in [
        (
            r#""URI":"keys""#,
            "JSONWebKeySet.Remote.URI: \"keys\" is no http or https URI",
        ),
        (
            r#""URI":"http://k","JWKSCluster":{"DiscoveryType":"EDS"}"#,
            "JSONWebKeySet.Remote.JWKSCluster.DiscoveryType: \"EDS\" is not supported",
        ),
        (
            r#""URI":"http://k","RequestTimeoutMs":-1"#,
            "JSONWebKeySet.Remote.RequestTimeoutMs: -1 is out of range",
        ),
    ] {
        assert_eq!(remote(rest).unwrap_err(), error);
    }
}

#[test]
fn an_issuer_over_tls_is_verified_by_its_authority_or_by_the_system() {
    let https = |rest: &str| remote(&format!(r#""URI":"https://keys.test:8443/",{rest}"#));
    let missing = "JSONWebKeySet.Remote.JWKSCluster.TLSCertificates.TrustedCA: has no authority";
    for rest in [
        r#""UseSNI":true"#,
        r#""JWKSCluster":{}"#,
        r#""JWKSCluster":{"TLSCertificates":{}}"#,
    ] {
        let error = https(rest).unwrap_err();
        assert!(error.starts_with(missing), "{error}");
    }
    let key = rcgen::KeyPair::generate().unwrap();
    let authority = rcgen::CertificateParams::default()
        .self_signed(&key)
        .unwrap()
        .pem();
    let given = |field: &str, text: &str| {
        let ca = serde_json::json!({ field: text });
        https(&format!(
            r#""UseSNI":true,"JWKSCluster":{{"TLSCertificates":{{"TrustedCA":{ca}}}}}"#
        ))
    };
    let inline = given("InlineString", &authority).unwrap();
    let encoded = given("InlineBytes", &STANDARD.encode(&authority)).unwrap();
    assert_eq!(inline, encoded);
    let (cluster, assignment) = inline.cluster.unwrap();
    let tls = cluster.transport.unwrap();
    assert_eq!(tls.sni.as_deref(), Some("keys.test"));
    assert!(tls.identity.is_none(), "the mesh's leaf is nothing for strangers");
    assert_eq!(assignment.endpoints[0].address.to_string(), "keys.test:8443");
    // The system's, where it has any.
    let body = r#"{"Name":"p","Issuer":"i","JSONWebKeySet":{"Remote":{"URI":"https://keys.test/"}}}"#;
    let read: ReadFile<'_> = &|path| match path {
        "/etc/ssl/cert.pem" => Ok(authority.clone()),
        _ => Err("no file".to_owned()),
    };
    let (cluster, _) = decode(body.as_bytes(), "p", read).unwrap().cluster.unwrap();
    let names = &cluster.transport.unwrap().validation.names;
    assert_eq!(*names, [system_roots::name("keys.test")]);
    let error = given("InlineString", "no PEM").unwrap_err();
    assert!(error.contains("TrustedCA.InlineString"), "{error}");
    let error = given("EnvironmentVariable", "CA").unwrap_err();
    assert!(
        error.contains("TrustedCA.EnvironmentVariable: is not known"),
        "{error}"
    );
}
