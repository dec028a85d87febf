//! Handshakes of every kind that a mesh sees, and the stream's ends, over real loopback sockets.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::sessions::is_in_time;
use super::{ConfigCache, Greeting, HandshakeError, ServerTls, Sessions, TlsStream};
use crate::model::listener::{ClientCertificate, DownstreamTls, TlsParams, TlsVersion};
use crate::model::{Identity, SpiffeId, Trust, TrustBundle, UpstreamTls, Validation};
use crate::net::relay::{Counts, relay};
use crate::net::{Duplex, PlainStream};

const TRUST_DOMAIN: &str = "11111111-2222-3333-4444-555555555555.consul";

struct Authority(CertifiedIssuer<'static, KeyPair>);

#[derive(Clone)]
struct Leaf {
    service: &'static str,
    trust_domain: &'static str,
    age_days: i64,
    algorithm: &'static rcgen::SignatureAlgorithm,
}

impl Default for Leaf {
    fn default() -> Self {
        Self {
            service: "web",
            trust_domain: TRUST_DOMAIN,
            age_days: 1,
            algorithm: &rcgen::PKCS_ECDSA_P256_SHA256,
        }
    }
}

impl Authority {
    fn new(algorithm: &'static rcgen::SignatureAlgorithm) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate_for(algorithm).unwrap()).unwrap())
    }

    fn trust(&self) -> Arc<TrustBundle> {
        Arc::new(TrustBundle::from_pem(TRUST_DOMAIN, [self.0.pem().as_str()]).unwrap())
    }

    fn identity(&self, leaf: &Leaf) -> Arc<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(uri(leaf).as_str().try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let now = std::time::SystemTime::now();
        let day = |days: i64| {
            (now - Duration::from_secs(40 * 86_400) + Duration::from_secs(86_400 * (40 + days) as u64)).into()
        };
        params.not_before = day(-leaf.age_days);
        params.not_after = day(2 - leaf.age_days);
        let key = KeyPair::generate_for(leaf.algorithm).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Arc::new(Identity::from_pem(&certificate.pem(), &key.serialize_pem()).unwrap())
    }
}

fn uri(leaf: &Leaf) -> String {
    format!(
        "spiffe://{}/ns/default/dc/dc1/svc/{}",
        leaf.trust_domain, leaf.service
    )
}

struct Ends {
    downstream: DownstreamTls,
    upstream: UpstreamTls,
}

fn ends(client: &Authority, client_leaf: &Leaf, server: &Authority, server_leaf: &Leaf) -> Ends {
    let expected = SpiffeId::parse(&uri(&Leaf {
        service: "api",
        ..Leaf::default()
    }))
    .unwrap();
    Ends {
        downstream: DownstreamTls {
            identity: server.identity(server_leaf),
            client: ClientCertificate::Required(Validation::mesh(&server.trust(), &[])),
            alpn: vec![],
            params: TlsParams::default(),
        },
        upstream: UpstreamTls {
            identity: Some(client.identity(client_leaf)),
            validation: Validation::mesh(&client.trust(), &[expected]),
            sni: Some(format!("api.default.dc1.internal.{TRUST_DOMAIN}").into()),
            alpn: vec![],
            params: TlsParams::default(),
        },
    }
}

fn good() -> Ends {
    let authority = Authority::new(&rcgen::PKCS_ECDSA_P256_SHA256);
    ends(
        &authority,
        &Leaf::default(),
        &authority,
        &Leaf {
            service: "api",
            ..Leaf::default()
        },
    )
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, server) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (client.unwrap(), server.unwrap().0)
}

type Shaken = (
    Result<TlsStream, HandshakeError>,
    Result<(TlsStream, Greeting), HandshakeError>,
);

async fn shake(ends: Ends) -> Shaken {
    let (client, server) = sockets().await;
    let mut cache = ConfigCache::default();
    let sni = ends
        .upstream
        .sni
        .as_ref()
        .unwrap()
        .to_string()
        .try_into()
        .unwrap();
    let sessions = Sessions::new(&cache.client(&Arc::new(ends.upstream)).unwrap(), true);
    let connecting = TlsStream::connect(client, &sessions, sni);
    let tls = cache.server(&Arc::new(ends.downstream)).unwrap();
    let accepting = TlsStream::accept(server, &tls);
    tokio::join!(connecting, accepting)
}

/// A connection that carried a byte each way, so that the client has read its ticket: both ends.
async fn carried(sessions: &Sessions, tls: &ServerTls) -> (TlsStream, (TlsStream, Greeting)) {
    let (client, server) = sockets().await;
    let sni = format!("api.default.dc1.internal.{TRUST_DOMAIN}")
        .try_into()
        .unwrap();
    let connecting = TlsStream::connect(client, sessions, sni);
    let (client, server) = tokio::join!(connecting, TlsStream::accept(server, tls));
    let (mut client, (mut server, greeting)) = (client.unwrap(), server.unwrap());
    send(&mut client, b"?").await.unwrap();
    assert_eq!(receive(&mut server).await.unwrap(), b"?");
    send(&mut server, b"!").await.unwrap();
    assert_eq!(receive(&mut client).await.unwrap(), b"!");
    (client, (server, greeting))
}

#[tokio::test]
async fn a_session_is_resumed_with_its_names_under_the_same_configurations_alone() {
    for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
        let mut ends = good();
        ends.upstream.params = TlsParams {
            min: version,
            max: version,
            ..TlsParams::default()
        };
        let mut cache = ConfigCache::default();
        let (up, down) = (Arc::new(ends.upstream), Arc::new(ends.downstream));
        let base = cache.client(&up).unwrap();
        let (mut sessions, mut tls) = (Sessions::new(&base, true), cache.server(&down).unwrap());
        let mut resumed = Vec::new();
        for turn in 0..6 {
            match turn {
                // As a newer certificate, newer authorities or newer names would be.
                2 => tls = ConfigCache::default().server(&down).unwrap(),
                4 => sessions = Sessions::new(&ConfigCache::default().client(&up).unwrap(), true),
                // The server did not resume: they begin anew, with what a full handshake has.
                3 if version == TlsVersion::V1_3 => {
                    assert!(!sessions.are_of(&base));
                    sessions = Sessions::new(&base, true);
                }
                _ => {}
            }
            let (client, (server, greeting)) = carried(&sessions, &tls).await;
            assert_eq!(client.is_resumed(), server.is_resumed());
            assert_eq!(greeting.peer.unwrap().name(), uri(&Leaf::default()));
            assert_eq!(client.peer_certificates(), down.identity.chain);
            assert_eq!(server.peer_certificates(), up.identity.as_ref().unwrap().chain);
            if version == TlsVersion::V1_3 {
                // What a server did not resume has no other exchange than what it would have resumed.
                let hybrid = [0, 3, 4].contains(&turn);
                assert_eq!(client.group() == Some("X25519MLKEM768"), hybrid, "{turn}");
            }
            resumed.push(client.is_resumed());
        }
        match version {
            TlsVersion::V1_2 => assert_eq!(resumed, [false, true, false, true, false, true]),
            TlsVersion::V1_3 => assert_eq!(resumed, [false, true, false, false, false, true]),
        }
    }
}

#[tokio::test]
async fn a_server_that_insists_on_the_hybrid_exchange_is_asked_for_it_at_once() {
    let ends = good();
    let base = ConfigCache::default().client(&Arc::new(ends.upstream)).unwrap();
    let sessions = Sessions::new(&base, true);
    let tls = ConfigCache::default().server(&Arc::new(ends.downstream)).unwrap();
    carried(&sessions, &tls).await;
    let brief = Arc::clone(sessions.config());
    assert!(base.resuming.is_some() && !Arc::ptr_eq(&brief, sessions.config_for_all()));
    // What a HelloRetryRequest led to.
    sessions.resumed(Some("X25519MLKEM768"));
    assert!(Arc::ptr_eq(sessions.config(), sessions.config_for_all()));
    let (client, _) = carried(&sessions, &tls).await;
    assert!(client.is_resumed() && sessions.are_of(&base));
    assert_eq!(client.group(), Some("X25519MLKEM768"));
}

#[tokio::test]
async fn either_side_can_do_without_sessions() {
    for (client, server) in [(false, true), (true, false)] {
        let mut ends = good();
        ends.downstream.params.resumption = server;
        let mut cache = ConfigCache::default();
        let tls = cache.server(&Arc::new(ends.downstream)).unwrap();
        let sessions = Sessions::new(&cache.client(&Arc::new(ends.upstream)).unwrap(), client);
        for _ in 0..3 {
            assert!(!carried(&sessions, &tls).await.0.is_resumed());
        }
    }
}

#[tokio::test]
async fn no_session_outlives_a_certificate() {
    let authority = Authority::new(&rcgen::PKCS_ECDSA_P256_SHA256);
    let of = |age_days| {
        let leaf = Leaf {
            age_days,
            ..Leaf::default()
        };
        authority.identity(&leaf).chain.clone()
    };
    assert!(is_in_time(&of(1)) && is_in_time(&[]));
    assert!(!is_in_time(&of(3)));
    assert!(
        !is_in_time(&[of(1), of(3)].concat()),
        "the first that expires counts"
    );
    assert!(!is_in_time(&[b"no certificate".to_vec().into()]));

    let mut cache = ConfigCache::default();
    let ends = good();
    let tls = cache.server(&Arc::new(ends.downstream)).unwrap();
    let base = cache.client(&Arc::new(ends.upstream)).unwrap();
    let sessions = Sessions::new(&base, true);
    carried(&sessions, &tls).await;
    sessions.begin(&Arc::clone(&base.full), &of(3));
    let (client, _) = carried(&sessions, &tls).await;
    assert!(!client.is_resumed());
    let (client, _) = carried(&sessions, &tls).await;
    assert!(client.is_resumed(), "the new one's certificate is in its time");
}

fn why<T>(result: Result<T, HandshakeError>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

async fn receive(stream: &mut TlsStream) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 65536];
    let n = std::future::poll_fn(|cx| stream.poll_receive(cx, &mut buffer)).await?;
    buffer.truncate(n);
    Ok(buffer)
}

async fn send(stream: &mut TlsStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::future::poll_fn(|cx| stream.poll_send(cx, &[io::IoSlice::new(bytes)])).await?;
        bytes = &bytes[n..];
    }
    std::future::poll_fn(|cx| stream.poll_flush(cx)).await
}

async fn finish(stream: &mut TlsStream) -> io::Result<()> {
    std::future::poll_fn(|cx| stream.poll_finish(cx)).await
}

#[tokio::test]
async fn both_versions_carry_both_ways_and_half_close() {
    for (min, max) in [
        (TlsVersion::V1_2, TlsVersion::V1_2),
        (TlsVersion::V1_3, TlsVersion::V1_3),
    ] {
        let mut ends = good();
        ends.upstream.params = TlsParams {
            min,
            max,
            ..TlsParams::default()
        };
        let (client, server) = shake(ends).await;
        let (mut client, (mut server, peer)) = (client.unwrap(), server.unwrap());
        assert_eq!(peer.peer.unwrap().name(), uri(&Leaf::default()));
        send(&mut client, b"hello").await.unwrap();
        assert_eq!(receive(&mut server).await.unwrap(), b"hello");
        finish(&mut client).await.unwrap();
        assert_eq!(receive(&mut server).await.unwrap(), b"", "{max:?}: a clean end");
        send(&mut server, b"still").await.unwrap();
        assert_eq!(
            receive(&mut client).await.unwrap(),
            b"still",
            "{max:?}: the other way goes on"
        );
        finish(&mut server).await.unwrap();
        assert_eq!(receive(&mut client).await.unwrap(), b"");
    }
}

#[tokio::test]
async fn every_key_type_shakes_hands() {
    let roots = [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ECDSA_P521_SHA512,
        &rcgen::PKCS_RSA_SHA256,
    ];
    for root in roots {
        let authority = Authority::new(root);
        for algorithm in roots {
            let leaf = |service| Leaf {
                service,
                algorithm,
                ..Leaf::default()
            };
            let (client, server) = shake(ends(&authority, &leaf("web"), &authority, &leaf("api"))).await;
            assert!(client.is_ok(), "{}", why(client));
            assert!(server.is_ok(), "{}", why(server));
        }
    }
}

#[tokio::test]
async fn wrong_peers_are_refused_with_a_reason() {
    let ours = Authority::new(&rcgen::PKCS_ECDSA_P256_SHA256);
    let other = Authority::new(&rcgen::PKCS_ECDSA_P256_SHA256);
    let api = Leaf {
        service: "api",
        ..Leaf::default()
    };

    let (_, server) = shake(ends(
        &ours,
        &Leaf {
            age_days: 30,
            ..Leaf::default()
        },
        &ours,
        &api,
    ))
    .await;
    assert!(why(server).contains("has expired"));

    let foreign = Leaf {
        trust_domain: "99999999-2222-3333-4444-555555555555.consul",
        ..Leaf::default()
    };
    let (_, server) = shake(ends(&ours, &foreign, &ours, &api)).await;
    assert!(why(server).contains("is not of the trust domain"));

    let (client, _) = shake(ends(&ours, &Leaf::default(), &other, &api)).await;
    let reason = why(client);
    assert!(reason.contains("another authority"), "{reason}");

    let mut mixed = ends(&other, &Leaf::default(), &ours, &api);
    mixed.upstream.validation.trust = Trust::Spiffe(vec![ours.trust()]);
    let (_, server) = shake(mixed).await;
    assert!(why(server).contains("another authority"));

    let (client, _) = shake(ends(
        &ours,
        &Leaf::default(),
        &ours,
        &Leaf {
            service: "db",
            ..Leaf::default()
        },
    ))
    .await;
    assert!(why(client).contains("svc/db, expected spiffe://"));
}

#[tokio::test]
async fn plaintext_and_missing_certificates_are_refused() {
    let (mut client, server) = sockets().await;
    let config = ConfigCache::default()
        .server(&Arc::new(good().downstream))
        .unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    assert!(why(TlsStream::accept(server, &config).await).contains("not TLS"));

    let (client, server) = sockets().await;
    let authority = Authority::new(&rcgen::PKCS_ECDSA_P256_SHA256);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.0.der().clone()).unwrap();
    let bare = rustls::ClientConfig::builder_with_provider(super::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(bare));
    let downstream = ends(
        &authority,
        &Leaf::default(),
        &authority,
        &Leaf {
            service: "api",
            ..Leaf::default()
        },
    )
    .downstream;
    let config = ConfigCache::default().server(&Arc::new(downstream)).unwrap();
    let (_, accepted) = tokio::join!(
        connector.connect("x".try_into().unwrap(), client),
        TlsStream::accept(server, &config)
    );
    let reason = why(accepted);
    assert!(
        reason.contains("no client certificate") || reason.contains("alert"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_stranger_cannot_make_a_handshake_hold_much() {
    let (mut client, server) = sockets().await;
    let config = ConfigCache::default()
        .server(&Arc::new(good().downstream))
        .unwrap();
    // A ClientHello that says it has 64 KiB, in whole records.
    let mut record = vec![0; 5 + 0x3fff];
    record[..5].copy_from_slice(&[0x16, 3, 1, 0x3f, 0xff]);
    let mut hello = record.clone();
    hello[5..9].copy_from_slice(&[1, 0, 0xff, 0xff]);
    let sending = async {
        // It is refused before the end of this.
        let _ = client.write_all(&[hello, record].concat()).await;
    };
    let (accepted, ()) = tokio::join!(TlsStream::accept(server, &config), sending);
    let reason = why(accepted);
    assert!(reason.contains("over 24 KiB"), "{reason}");
}

#[tokio::test]
async fn an_end_without_close_notify_is_a_truncation() {
    let (client, server) = shake(good()).await;
    let (client, mut server) = (client.unwrap(), server.unwrap().0);
    // Dropped, it would be reset: its ticket is unread.
    let socket = socket2::SockRef::from(client.socket());
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(
        receive(&mut server).await.unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );

    let (client, server) = shake(good()).await;
    let (client, mut server) = (client.unwrap(), server.unwrap().0);
    // What `net::socket` sets on every socket that it dials or accepts.
    client.socket().set_zero_linger().unwrap();
    drop(client);
    assert_eq!(
        receive(&mut server).await.unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
}

#[tokio::test]
async fn rubbish_after_the_handshake_is_an_error() {
    let (client, server) = shake(good()).await;
    let (mut client, mut server) = (client.unwrap(), server.unwrap().0);
    // A record of application data that no key sealed.
    let record = [&[23, 3, 3, 0, 64][..], &[7; 64]].concat();
    client.write_raw(&record).await;
    assert_eq!(
        receive(&mut server).await.unwrap_err().kind(),
        io::ErrorKind::InvalidData
    );
}

/// App, outbound relay, inbound relay, app: a megabyte each way, through both kinds of half-close.
#[tokio::test]
async fn two_relays_carry_a_megabyte_each_way() {
    let (client, server) = shake(good()).await;
    let (mut client, mut server) = (client.unwrap(), server.unwrap().0);
    let ((mut app, outbound), (inbound, mut service)) = tokio::join!(sockets(), sockets());
    let (mut outbound, mut inbound) = (PlainStream::Tcp(outbound), PlainStream::Tcp(inbound));
    let (out_counts, in_counts) = (Counts::default(), Counts::default());
    let up: Vec<u8> = (0..1_000_003_u32).map(|i| (i % 251) as u8).collect();
    let down: Vec<u8> = (0..1_500_007_u32).map(|i| (i % 241) as u8).collect();
    let app_side = async {
        app.write_all(&up).await.unwrap();
        app.shutdown().await.unwrap();
        let mut got = Vec::new();
        app.read_to_end(&mut got).await.unwrap();
        got
    };
    let service_side = async {
        let mut got = Vec::new();
        service.read_to_end(&mut got).await.unwrap();
        service.write_all(&down).await.unwrap();
        service.shutdown().await.unwrap();
        got
    };
    let (first, second, got_down, got_up) = tokio::join!(
        relay(&mut outbound, &mut client, &out_counts),
        relay(&mut server, &mut inbound, &in_counts),
        app_side,
        service_side,
    );
    first.unwrap();
    second.unwrap();
    assert!(got_up == up && got_down == down);
    assert_eq!(
        (in_counts.received.get(), in_counts.sent.get()),
        (up.len() as u64, down.len() as u64)
    );
}

/// Carries bytes from socket to socket one at a time, until the end, which it passes on.
fn carry_one_by_one(from: &std::net::TcpStream, to: &std::net::TcpStream) -> std::thread::JoinHandle<()> {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    std::thread::spawn(move || {
        let mut block = [0; 4096];
        loop {
            let length = from.read(&mut block).unwrap_or(0);
            if length == 0 {
                let _ = to.shutdown(std::net::Shutdown::Write);
                return;
            }
            for byte in &block[..length] {
                if to.write_all(std::slice::from_ref(byte)).is_err() {
                    return;
                }
            }
        }
    })
}

/// Two ends of a connection whose bytes go by a carrier, one at a time, through buffers as small as they get.
async fn through_the_eye() -> (TcpStream, TcpStream) {
    let (near, carrier_near) = sockets().await;
    let (carrier_far, far) = sockets().await;
    let carriers = [carrier_near, carrier_far].map(|socket| socket.into_std().unwrap());
    for socket in &carriers {
        socket.set_nonblocking(false).unwrap();
        socket.set_nodelay(true).unwrap();
    }
    for socket in [&near, &far] {
        let socket = socket2::SockRef::from(socket);
        socket.set_send_buffer_size(1).unwrap();
        socket.set_recv_buffer_size(1).unwrap();
    }
    carry_one_by_one(&carriers[0], &carriers[1]);
    carry_one_by_one(&carriers[1], &carriers[0]);
    (near, far)
}

#[tokio::test]
async fn records_that_come_a_byte_at_a_time_and_leave_in_parts_are_whole() {
    for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
        let (near, far) = through_the_eye().await;
        let mut ends = good();
        ends.upstream.params.min = version;
        ends.upstream.params.max = version;
        let sni = format!("api.default.dc1.internal.{TRUST_DOMAIN}");
        let mut cache = ConfigCache::default();
        let sessions = Sessions::new(&cache.client(&Arc::new(ends.upstream)).unwrap(), true);
        let tls = cache.server(&Arc::new(ends.downstream)).unwrap();
        let connecting = TlsStream::connect(near, &sessions, sni.try_into().unwrap());
        let (client, server) = tokio::join!(connecting, TlsStream::accept(far, &tls));
        let (mut client, mut server) = (client.unwrap(), server.unwrap().0);
        // Several records, the last one not full.
        let up: Vec<u8> = (0..50_000_u32)
            .flat_map(|n| n.to_le_bytes())
            .take(70_001)
            .collect();
        let down: Vec<u8> = up.iter().rev().copied().collect();
        let whole = async |stream: &mut TlsStream| {
            let mut got = Vec::new();
            loop {
                match receive(stream).await.unwrap() {
                    end if end.is_empty() => return got,
                    more => got.extend(more),
                }
            }
        };
        let finish = async |stream: &mut TlsStream| {
            std::future::poll_fn(|cx| stream.poll_flush(cx)).await.unwrap();
            std::future::poll_fn(|cx| stream.poll_finish(cx)).await.unwrap();
        };
        let sending = async {
            send(&mut client, &up).await.unwrap();
            finish(&mut client).await;
            whole(&mut client).await
        };
        let answering = async {
            let got = whole(&mut server).await;
            send(&mut server, &down).await.unwrap();
            finish(&mut server).await;
            got
        };
        let (got_down, got_up) = tokio::join!(sending, answering);
        assert!(got_up == up && got_down == down, "{version:?}");
    }
}

#[tokio::test]
async fn a_reader_that_stops_holds_one_block_and_no_more() {
    let (client, server) = shake(good()).await;
    let (mut client, mut server) = (client.unwrap(), server.unwrap().0);
    let (inbound, _service_that_never_reads) = sockets().await;
    let mut inbound = PlainStream::Tcp(inbound);
    let counts = Counts::default();
    let flood = async {
        let block = vec![0; 65536];
        let mut sent = 0_u64;
        while tokio::time::timeout(Duration::from_millis(300), send(&mut client, &block))
            .await
            .is_ok()
        {
            sent += block.len() as u64;
        }
        sent
    };
    let sent = tokio::select! {
        sent = flood => sent,
        _ = relay(&mut server, &mut inbound, &counts) => panic!("the relay has nothing to end for"),
    };
    // What left the sender and did not reach the reader's socket is in kernel buffers (at most
    // net.ipv4.tcp_{r,w}mem a socket, 6 + 4 MiB by default), not in ours.
    assert!(sent - counts.received.get() < 16 << 20, "{sent} {counts:?}");
    assert!(counts.received.get() < 16 << 20);
}

#[tokio::test]
async fn a_peer_with_other_protocols_is_served_without() {
    let offers = |ours: &[&str], theirs: &[&str]| {
        let mut ends = good();
        let names = |names: &[&str]| names.iter().map(|&name| Arc::from(name)).collect();
        (ends.downstream.alpn, ends.upstream.alpn) = (names(ours), names(theirs));
        ends
    };
    for theirs in [&["h2"][..], &["http/1.1"], &[]] {
        let (client, server) = shake(offers(&["h2"], theirs)).await;
        let (_, greeting) = server.unwrap();
        assert_eq!(greeting.hello.alpn, theirs);
        assert!(greeting.hello.server_name.unwrap().starts_with("api.default.dc1"));
        let common = theirs.contains(&"h2").then_some(&b"h2"[..]);
        assert_eq!(client.unwrap().alpn(), common);
    }
}
