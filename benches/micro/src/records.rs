//! Records of TLS: sealed and opened by the proxy's own stream, between two ends of one handshake.
//!
//! What waits for the socket does not count; the system calls themselves are the kernel's.

use std::future::poll_fn;
use std::io::IoSlice;
use std::sync::Arc;
use std::task::Poll;

use attache::model::listener::{ClientCertificate, TlsParams};
use attache::model::{DownstreamTls, Identity, SpiffeId, TrustBundle, UpstreamTls, Validation};
use attache::net::Duplex;
use attache::tls::{ConfigCache, Sessions, TlsStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

use crate::bench::{Bench, Outcome, WARM_UP, counted};
use crate::rbac::{TRUST_DOMAIN, uri};

/// As much as a record may have.
const FULL: usize = 16 * 1024;
/// A small request or answer.
const SMALL: usize = 100;

pub(crate) const BENCHES: &[Bench] = &[
    Bench {
        name: "record-seal-16k",
        times: 100,
        run: |times| records(times, FULL, Side::Seals),
    },
    Bench {
        name: "record-open-16k",
        times: 100,
        run: |times| records(times, FULL, Side::Opens),
    },
    Bench {
        name: "record-seal-100",
        times: 200,
        run: |times| records(times, SMALL, Side::Seals),
    },
    Bench {
        name: "record-open-100",
        times: 200,
        run: |times| records(times, SMALL, Side::Opens),
    },
];

/// Which of the two counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Seals,
    Opens,
}

/// A runtime as a worker has it.
pub(crate) fn runtime() -> std::io::Result<LocalRuntime> {
    Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
}

/// A connection over the loopback.
pub(crate) async fn sockets() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (connected, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (connected, (accepted, _)) = (connected?, accepted?);
    connected.set_nodelay(true)?;
    accepted.set_nodelay(true)?;
    Ok((connected, accepted))
}

/// Who a service of the mesh is. The certificates are of an authority whose key nobody has, and are good for a
/// hundred years.
pub(crate) fn identity(service: &str) -> Result<Identity, String> {
    let (chain, key) = match service {
        "api" => (
            include_str!("../certificates/api.pem"),
            include_str!("../certificates/api.key"),
        ),
        _ => (
            include_str!("../certificates/web.pem"),
            include_str!("../certificates/web.key"),
        ),
    };
    Identity::from_pem(chain, key).map_err(|error| error.to_string())
}

/// Two ends of a mutual handshake as between two sidecars.
async fn streams() -> Result<(TlsStream, TlsStream), Box<dyn std::error::Error>> {
    let authority = include_str!("../certificates/authority.pem");
    let trust = Arc::new(TrustBundle::from_pem(TRUST_DOMAIN, [authority])?);
    let params = TlsParams {
        // A session ticket would come among the records.
        resumption: false,
        ..TlsParams::default()
    };
    let downstream = Arc::new(DownstreamTls {
        identity: Arc::new(identity("api")?),
        client: ClientCertificate::Required(Validation::mesh(&trust, &[])),
        alpn: Vec::new(),
        params: params.clone(),
    });
    let upstream = Arc::new(UpstreamTls {
        identity: Some(Arc::new(identity("web")?)),
        validation: Validation::mesh(&trust, &[SpiffeId::parse(&uri("api"))?]),
        sni: None,
        alpn: Vec::new(),
        params,
    });
    let mut cache = ConfigCache::default();
    let server = cache.server(&downstream)?;
    let sessions = Sessions::new(&cache.client(&upstream)?, false);
    let (connected, accepted) = sockets().await?;
    let (connected, accepted) = tokio::join!(
        TlsStream::connect(connected, &sessions, "api".try_into()?),
        TlsStream::accept(accepted, &server)
    );
    Ok((connected?, accepted?.0))
}

fn records(times: u32, length: usize, counts: Side) -> Outcome {
    runtime()?.block_on(async {
        let (mut from, mut to) = streams().await?;
        for round in 0..WARM_UP + times {
            let of = |side| side == counts && round >= WARM_UP;
            let mut sent = 0;
            send(&mut from, length, of(Side::Seals), &mut sent).await?;
            receive(&mut to, length, of(Side::Opens)).await?;
            if sent != length {
                return Err("a record was taken in parts".into());
            }
        }
        Ok(())
    })
}

/// Counts one poll, or makes it alone.
fn poll<T>(counts: bool, mut poll: impl FnMut() -> Poll<T>) -> Poll<T> {
    let mut polled = Poll::Pending;
    if counts {
        counted(&mut || polled = poll());
        polled
    } else {
        poll()
    }
}

async fn send(to: &mut TlsStream, length: usize, counts: bool, sent: &mut usize) -> std::io::Result<()> {
    let plaintext = vec![7; length];
    *sent += poll_fn(|cx| poll(counts, || to.poll_send(cx, &[IoSlice::new(&plaintext)]))).await?;
    poll_fn(|cx| to.poll_flush(cx)).await
}

async fn receive(from: &mut TlsStream, length: usize, counts: bool) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut received = 0;
    while received < length {
        let n = poll_fn(|cx| poll(counts, || from.poll_receive(cx, &mut buffer))).await?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        received += n;
    }
    Ok(())
}
