//! The accept loop of one socket.
//!
//! Owns the listening socket; aborting its task closes it. Connections it has spawned go on.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};

use super::active::ActiveListener;
use super::connection::serve;
use crate::model::Downstream;
use crate::net::PlainStream;
use crate::net::socket::ListenSocket;
use crate::upstream::ClusterManager;

/// The pause after `accept` failed for want of descriptors or memory: long enough for some to be
/// given back, short against a client's connect timeout.
const BACKOFF: Duration = Duration::from_millis(100);

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Accepts until aborted.
pub async fn accept(socket: ListenSocket, listener: Rc<ActiveListener>, clusters: Rc<ClusterManager>) {
    let socket = match socket {
        ListenSocket::Tcp(socket) => TcpListener::from_std(socket).map(Socket::Tcp),
        ListenSocket::Unix(socket) => UnixListener::from_std(socket).map(Socket::Unix),
    };
    let socket = match socket {
        Ok(socket) => socket,
        Err(error) => {
            tracing::error!(listener = %listener.name, %error, "the socket cannot be polled");
            return;
        }
    };
    let mut failing = false;
    loop {
        match accept_one(&socket).await {
            Ok((stream, downstream)) => {
                failing = false;
                let (listener, clusters) = (Rc::clone(&listener), Rc::clone(&clusters));
                let serving = listener.serving();
                tokio::task::spawn_local(async move {
                    serve(stream, downstream, listener, clusters).await;
                    drop(serving);
                });
            }
            // The connection was gone before it was accepted; the next one is fine.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if !failing {
                    failing = true;
                    tracing::error!(listener = %listener.name, %error, "accepting fails; trying again");
                }
                tokio::time::sleep(BACKOFF).await;
            }
        }
    }
}

async fn accept_one(socket: &Socket) -> io::Result<(PlainStream, Downstream)> {
    match socket {
        Socket::Tcp(socket) => {
            let (stream, source) = socket.accept().await?;
            let downstream = Downstream {
                source: Some(source),
                destination: stream.local_addr().ok(),
                ..Downstream::default()
            };
            Ok((PlainStream::Tcp(stream), downstream))
        }
        Socket::Unix(socket) => {
            let (stream, _) = socket.accept().await?;
            Ok((PlainStream::Unix(stream), Downstream::default()))
        }
    }
}
