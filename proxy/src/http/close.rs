//! The end of a downstream connection, such that the peer can read the last response.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use tokio::time::timeout;

use crate::net::Duplex;
use crate::net::buffer::with_plain;

/// Says the end, then waits up to `patience` for the peer's: a socket closed while bytes of the peer are
/// unread is a reset, which destroys a response on its way (RFC 9112 section 9.6). Envoy's
/// `delayed_close_timeout`. A peer that does not even take the end is reset.
pub(super) async fn close<D: Duplex>(mut stream: D, patience: Option<Duration>) {
    let patience = patience.unwrap_or_default();
    let finish = async {
        poll_fn(|cx| stream.poll_flush(cx)).await?;
        poll_fn(|cx| stream.poll_finish(cx)).await
    };
    if !matches!(timeout(patience, finish).await, Ok(Ok(()))) {
        return;
    }
    let rest = async {
        while poll_fn(|cx| with_plain(|block| stream.poll_receive(cx, block))).await? > 0 {}
        io::Result::Ok(())
    };
    // Late or broken: the peer had its time.
    let _ = timeout(patience, rest).await;
    stream.finished();
}
