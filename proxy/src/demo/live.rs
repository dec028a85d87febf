//! One connection to count-api, held open through both sidecars and used once a second: it shows
//! that a rotation leaves live connections alone and that a denying intention cuts them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::api::UNCOUNTED_PATH;
use super::client::{ClientError, collect, get_request, within};

/// Often enough that a cut which closes without a word is seen within a second.
const EXCHANGE_EVERY: Duration = Duration::from_secs(1);
const EXCHANGE_LIMIT: Duration = Duration::from_secs(2);
/// A connection that is refused is tried again so soon, to recover within a second.
const RETRY_AFTER: Duration = Duration::from_millis(400);

/// What became of the held connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Live {
    /// Since when the present one is open, and how often it was used.
    open: Option<(Instant, u64)>,
    /// How the last one ended: when, after how long, and why.
    cut: Option<(Instant, Duration, String)>,
}

impl Live {
    pub(super) fn to_json(&self) -> Value {
        let seconds = |since: &Instant| since.elapsed().as_secs();
        let cut = self.cut.as_ref().map(|(at, lasted, why)| {
            json!({ "seconds_ago": seconds(at), "lasted_seconds": lasted.as_secs(), "why": why })
        });
        match &self.open {
            Some((since, exchanges)) => json!({
                "state": "open",
                "open_seconds": seconds(since),
                "exchanges": exchanges,
                "last_cut": cut,
            }),
            None => json!({
                "state": if cut.is_some() { "cut" } else { "connecting" },
                "last_cut": cut,
            }),
        }
    }
}

/// Holds a connection, again and again, until it is dropped.
pub(super) async fn keep(address: SocketAddr, live: watch::Sender<Live>) -> Infallible {
    loop {
        let ended = match hold(address, &live).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        live.send_modify(|live| {
            // An attempt that never carried anything is not a connection that was cut.
            if let Some((since, _)) = live.open.take() {
                live.cut = Some((Instant::now(), since.elapsed(), ended.to_string()));
            }
        });
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

async fn hold(address: SocketAddr, live: &watch::Sender<Live>) -> Result<Infallible, ClientError> {
    let (mut sender, connection) = within(EXCHANGE_LIMIT, async {
        let stream = TcpStream::connect(address).await.map_err(ClientError::Connect)?;
        Ok(hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?)
    })
    .await?;
    let since = Instant::now();
    let exchanges = async {
        loop {
            let request = get_request(address, UNCOUNTED_PATH)?;
            let exchange = async { collect(sender.send_request(request).await?).await };
            within(EXCHANGE_LIMIT, exchange).await?;
            live.send_modify(|live| {
                let before = live.open.map_or(0, |(_, exchanges)| exchanges);
                live.open = Some((since, before + 1));
            });
            tokio::time::sleep(EXCHANGE_EVERY).await;
        }
    };
    tokio::select! {
        // The connection knows how it ended; the exchange on it only that it was cancelled.
        biased;
        ended = connection => Err(ended.map_or_else(ClientError::from, |()| ClientError::Closed)),
        failed = exchanges => failed,
    }
}
