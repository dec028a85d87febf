//! Connections over real sockets, from hand-made snapshots: listener filters, network filters, the app that
//! is gone.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::testing::{Proxy, app, chain, free, hears, listener, snapshot, tcp};
use crate::model::Identity;
use crate::model::filter_chain_match::FilterChainMatch;
use crate::model::listener::{
    ClientCertificate, Direction, DownstreamTls, FilterChain, Listener, ListenerFilters, NetworkFilter,
    TlsParams,
};
use crate::model::matcher::Cidr;

/// Bytes of an app that `listener` leads to, after `first` was sent to it.
async fn answer(at: SocketAddr, first: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = loop {
        match TcpStream::connect(at).await {
            Ok(stream) => break stream,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    for byte in first {
        stream.write_all(&[*byte]).await?;
    }
    let mut heard = vec![0; 3];
    stream.read_exact(&mut heard).await?;
    Ok(heard)
}

/// A listener with these chains, and the app `none` for what no other takes.
fn by_chain(at: SocketAddr, chains: Vec<Arc<FilterChain>>, filters: ListenerFilters) -> Listener {
    Listener {
        filters,
        filter_chains: chains,
        default_filter_chain: Some(chain("default", FilterChainMatch::default(), "non")),
        ..listener("l", tcp(at))
    }
}

#[tokio::test]
async fn a_proxy_header_is_taken_and_says_where_to() {
    let (vip, non, at) = (app("vip").await, app("non").await, free());
    let matches = FilterChainMatch {
        prefix_ranges: vec![Cidr::new([240, 0, 0, 1].into(), 32).unwrap()],
        ..Default::default()
    };
    let filters = ListenerFilters {
        proxy_protocol: true,
        ..Default::default()
    };
    let listener = by_chain(at, vec![chain("vip", matches, "vip")], filters);
    let mut proxy = Proxy::new(1);
    let told = async {
        let header = b"PROXY TCP4 10.0.0.1 240.0.0.1 1 2\r\n";
        assert_eq!(answer(at, header).await.unwrap(), b"vip");
        let header = b"PROXY TCP4 10.0.0.1 240.0.0.2 1 2\r\n";
        assert_eq!(answer(at, header).await.unwrap(), b"non");
        let refused = answer(at, b"GET / HTTP/1.1\r\n\r\n").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
    };
    proxy
        .serve(snapshot(vec![listener], &[("vip", vip), ("non", non)]), told)
        .await;
}

#[tokio::test]
async fn http_is_told_from_other_bytes() {
    let (h1, non, at) = (app("one").await, app("non").await, free());
    let matches = FilterChainMatch {
        transport_protocol: Some(false),
        application_protocols: vec!["http/1.1".into()],
        ..Default::default()
    };
    let filters = ListenerFilters {
        http_inspector: true,
        ..Default::default()
    };
    let listener = by_chain(at, vec![chain("h1", matches, "one")], filters);
    let mut proxy = Proxy::new(1);
    let told = async {
        assert_eq!(answer(at, b"GET / HTTP/1.1\r\n").await.unwrap(), b"one");
        assert_eq!(answer(at, b"HELO x\r\n").await.unwrap(), b"non");
    };
    proxy
        .serve(snapshot(vec![listener], &[("one", h1), ("non", non)]), told)
        .await;
}

/// A ClientHello for this name, and a whole handshake by a client that trusts nobody.
fn client_hello(name: &'static str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder_with_provider(crate::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn a_fragmented_client_hello_chooses_a_chain_and_passes_on() {
    let (sni, non, at) = (app("sni").await, app("non").await, free());
    let matches = FilterChainMatch {
        server_names: vec!["*.example".into()],
        ..Default::default()
    };
    // Nobody says that there is a TLS inspector: the chain needs one.
    let listener = by_chain(at, vec![chain("sni", matches, "sni")], ListenerFilters::default());
    let mut proxy = Proxy::new(1);
    let told = async {
        assert_eq!(answer(at, &client_hello("web.example")).await.unwrap(), b"sni");
        assert_eq!(answer(at, &client_hello("web.other")).await.unwrap(), b"non");
        assert_eq!(answer(at, b"GET / HTTP/1.1").await.unwrap(), b"non");
    };
    proxy
        .serve(snapshot(vec![listener], &[("sni", sni), ("non", non)]), told)
        .await;
}

#[tokio::test]
async fn who_is_silent_is_closed_or_goes_on_after_the_timeout() {
    let (non, at, patient) = (app("non").await, free(), free());
    let slow = |at, name: &str, continue_on_timeout| Listener {
        name: name.into(),
        ..by_chain(
            at,
            vec![],
            ListenerFilters {
                tls_inspector: true,
                timeout: Some(Duration::from_millis(50)),
                continue_on_timeout,
                ..Default::default()
            },
        )
    };
    let listeners = vec![slow(at, "a", false), slow(patient, "b", true)];
    let mut proxy = Proxy::new(1);
    let told = async {
        let closed = answer(at, b"\x16").await.unwrap_err();
        assert_eq!(closed.kind(), ErrorKind::ConnectionReset);
        assert_eq!(answer(patient, b"\x16").await.unwrap(), b"non");
    };
    proxy.serve(snapshot(listeners, &[("non", non)]), told).await;
}

#[tokio::test]
async fn a_connection_over_the_limit_is_held_unread_for_the_delay() {
    const DELAY: Duration = Duration::from_millis(200);
    let (one, at) = (app("one").await, free());
    let mut limited = (*chain("", FilterChainMatch::default(), "one")).clone();
    limited.filters = vec![NetworkFilter::ConnectionLimit {
        max_connections: 1,
        delay: Some(DELAY),
        stat_prefix: "limit".into(),
    }];
    let listener = Listener {
        filter_chains: vec![Arc::new(limited)],
        ..listener("l", tcp(at))
    };
    let mut proxy = Proxy::new(2);
    let told = async {
        let mut first = loop {
            if let Ok(mut stream) = TcpStream::connect(at).await
                && stream.read_exact(&mut [0; 3]).await.is_ok()
            {
                break stream;
            }
        };
        let began = Instant::now();
        let refused = answer(at, b"").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
        assert!(began.elapsed() >= DELAY);
        first.shutdown().await.unwrap();
        hears(at, "one").await;
    };
    proxy.serve(snapshot(vec![listener], &[("one", one)]), told).await;
}

#[tokio::test]
async fn workers_of_an_exact_balance_hold_equally_many() {
    let (one, at) = (app("one").await, free());
    let balanced = Listener {
        exact_balance: true,
        ..by_chain(
            at,
            vec![chain("", FilterChainMatch::default(), "one")],
            ListenerFilters::default(),
        )
    };
    let mut proxy = Proxy::new(3);
    let mut open = Vec::new();
    let opening = async {
        while open.len() < 9 {
            let Ok(mut stream) = TcpStream::connect(at).await else {
                continue;
            };
            stream.read_exact(&mut [0; 3]).await.unwrap();
            open.push(stream);
        }
    };
    proxy
        .serve(snapshot(vec![balanced], &[("one", one), ("non", one)]), opening)
        .await;
    let drained = proxy.drain(Duration::ZERO).await;
    let cut: Vec<usize> = drained.iter().map(|drained| drained.cut).collect();
    assert_eq!(cut, [3, 3, 3]);
}

/// A public listener with TLS, for anybody.
fn public(at: SocketAddr) -> Listener {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["x".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let identity = Identity::from_pem(&certificate.pem(), &key.serialize_pem()).unwrap();
    let mut chain = (*chain("", FilterChainMatch::default(), "local_app")).clone();
    chain.transport = Some(Arc::new(DownstreamTls {
        identity: Arc::new(identity),
        client: ClientCertificate::None,
        alpn: vec![],
        params: TlsParams::default(),
    }));
    Listener {
        direction: Direction::Inbound,
        filter_chains: vec![Arc::new(chain)],
        ..listener("public_listener", tcp(at))
    }
}

/// What comes back for a ClientHello: a byte of TLS, or a reset.
async fn handshake_begins(at: SocketAddr) -> bool {
    loop {
        let Ok(mut stream) = TcpStream::connect(at).await else {
            tokio::task::yield_now().await;
            continue;
        };
        // A reset may come before all is written.
        let _ = stream.write_all(&client_hello("x")).await;
        return match stream.read(&mut [0]).await {
            Ok(n) => {
                assert_eq!(n, 1);
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                false
            }
        };
    }
}

#[tokio::test]
async fn an_app_that_is_gone_resets_the_peer_before_the_handshake() {
    let (at, app) = (free(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let local = app.local_addr().unwrap();
    let mut proxy = Proxy::new(1);
    let told = async {
        assert!(handshake_begins(at).await);
        drop(app);
        // The first one already.
        assert!(!handshake_begins(at).await);
        assert!(!handshake_begins(at).await);
        // It comes back: the first peer finds out, with the connection that is relayed then.
        let app = loop {
            match TcpListener::bind(local).await {
                Ok(app) => break app,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        assert!(handshake_begins(at).await);
        drop(app.accept().await.unwrap());
        assert!(handshake_begins(at).await);
    };
    proxy
        .serve(snapshot(vec![public(at)], &[("local_app", local)]), told)
        .await;
}
