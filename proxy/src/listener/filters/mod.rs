//! Listener filters: what is found out about a connection before a chain is chosen.
//!
//! They run in Envoy's usual order: original destination, PROXY header, TLS inspector, HTTP inspector. The
//! bytes looked at stay in the kernel, but for the PROXY header, which is taken.

pub mod http_inspector;
pub mod proxy_protocol;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::model::Downstream;
use crate::model::listener::{FilterChain, Listener, ListenerFilters};
use crate::net::peek::{Waited, look, take, wait_for};
use crate::net::{PlainStream, socket};
use crate::tls::client_hello;

/// Why a connection ends before a chain is chosen.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The peer left without a byte.
    #[error("nothing was sent")]
    Silent,
    /// The peer left, or the connection failed.
    #[error("the connection ended before its first bytes were complete")]
    Ended,
    /// The socket failed.
    #[error("{0}")]
    Socket(#[from] io::Error),
    /// The PROXY header.
    #[error("{0}")]
    ProxyProtocol(&'static str),
    /// A ClientHello without end.
    #[error("a ClientHello of over {} KiB", client_hello::MAX_BYTES / 1024)]
    ClientHello,
    /// Too slow.
    #[error("the first bytes did not come within {0:?}")]
    Timeout(Duration),
}

/// The filters that a listener needs: those configured, and the TLS inspector where a chain asks for what only
/// it finds, as Envoy adds it.
pub fn needed(listener: &Listener) -> ListenerFilters {
    let wants_tls = |chain: &Arc<FilterChain>| {
        let matches = &chain.matches;
        match matches.transport_protocol {
            Some(tls) => tls,
            None => !matches.server_names.is_empty() || !matches.application_protocols.is_empty(),
        }
    };
    let tls_inspector = listener.filters.tls_inspector || listener.chains().any(wants_tls);
    ListenerFilters {
        tls_inspector,
        ..listener.filters
    }
}

/// Runs the filters; what they find goes into `downstream`.
///
/// # Errors
/// [`FilterError`]: the connection is to be closed.
pub async fn run(
    filters: &ListenerFilters,
    stream: &PlainStream,
    downstream: &mut Downstream,
) -> Result<(), FilterError> {
    if filters.original_dst
        && let PlainStream::Tcp(stream) = stream
        && let Some(original) = socket::original_destination(stream)
    {
        downstream.restore_destination(original);
    }
    if !filters.wait_for_bytes() {
        return Ok(());
    }
    let inspecting = inspect(filters, stream, downstream);
    let Some(limit) = filters.timeout else {
        return inspecting.await;
    };
    match timeout(limit, inspecting).await {
        Ok(inspected) => inspected,
        Err(_) if filters.continue_on_timeout => Ok(()),
        Err(_) => Err(FilterError::Timeout(limit)),
    }
}

async fn inspect(
    filters: &ListenerFilters,
    stream: &PlainStream,
    downstream: &mut Downstream,
) -> Result<(), FilterError> {
    if filters.proxy_protocol {
        proxy_protocol(stream, downstream).await?;
    }
    if filters.tls_inspector {
        tls_inspector(stream, downstream).await?;
    }
    if filters.http_inspector && !downstream.tls {
        http_inspector(stream, downstream).await?;
    }
    Ok(())
}

async fn proxy_protocol(stream: &PlainStream, downstream: &mut Downstream) -> Result<(), FilterError> {
    use self::proxy_protocol::{Parsed, parse};
    let mut needed = 1;
    loop {
        wait(stream, needed).await?;
        match look(stream, parse)? {
            Parsed::Need(more) => needed = more,
            Parsed::Malformed(why) => return Err(FilterError::ProxyProtocol(why)),
            Parsed::Header { length, ends } => {
                take(stream, length)?;
                if let Some((source, destination)) = ends {
                    downstream.restore_source(source);
                    downstream.restore_destination(destination);
                }
                return Ok(());
            }
        }
    }
}

async fn tls_inspector(stream: &PlainStream, downstream: &mut Downstream) -> Result<(), FilterError> {
    use crate::tls::client_hello::{Inspected, inspect};
    let mut needed = 1;
    loop {
        wait(stream, needed).await?;
        match look(stream, inspect)? {
            Inspected::Need(more) => needed = more,
            Inspected::NotTls => return Ok(()),
            Inspected::TooLarge => return Err(FilterError::ClientHello),
            Inspected::Hello(hello) => {
                downstream.tls = true;
                downstream.server_name = hello.server_name.map(Into::into);
                downstream.application_protocols = hello.alpn;
                return Ok(());
            }
        }
    }
}

async fn http_inspector(stream: &PlainStream, downstream: &mut Downstream) -> Result<(), FilterError> {
    use self::http_inspector::{Inspected, inspect};
    let mut needed = 1;
    loop {
        wait(stream, needed).await?;
        match look(stream, inspect)? {
            Inspected::Need(more) => needed = more,
            Inspected::NotHttp => return Ok(()),
            Inspected::Http(protocol) => {
                downstream.application_protocols = vec![protocol.to_owned()];
                return Ok(());
            }
        }
    }
}

async fn wait(stream: &PlainStream, needed: usize) -> Result<(), FilterError> {
    match wait_for(stream, needed).await? {
        Waited::Enough => Ok(()),
        Waited::Ended(0) => Err(FilterError::Silent),
        Waited::Ended(_) => Err(FilterError::Ended),
    }
}
