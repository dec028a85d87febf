//! What is known of the downstream end of a connection: its addresses, its greeting, who it is.

use std::net::SocketAddr;
use std::sync::Arc;

use super::spiffe::SpiffeId;

/// One accepted connection as filter chain matching and rules see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Downstream {
    /// Who connected, or who a PROXY header says did; none on a unix socket.
    pub source: Option<SocketAddr>,
    /// Who wrote the PROXY header that [`Self::source`] is from; apart, since next to none is.
    pub relay: Option<Box<SocketAddr>>,
    /// Where to: the local address, or what it was before a redirection (`original_dst`). None on a unix
    /// socket.
    pub destination: Option<SocketAddr>,
    /// [`Self::destination`] is not the socket's own address: a redirection or a PROXY header says it.
    pub destination_restored: bool,
    /// The first bytes are a TLS ClientHello; only the TLS inspector finds out.
    pub tls: bool,
    /// The ClientHello's server name, lower case; of the TLS inspector or the handshake.
    pub server_name: Option<Arc<str>>,
    /// The ClientHello's protocols (ALPN), or what the HTTP inspector found.
    pub application_protocols: Vec<String>,
    /// The verified certificate's names; none without mutual TLS.
    pub peer: Option<Arc<Peer>>,
}

/// The names in a verified certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The one URI, where there is exactly one and it is a SPIFFE ID.
    pub spiffe_id: Option<SpiffeId>,
    /// Every URI subject alternative name, in order.
    pub uris: Vec<String>,
    /// Every DNS subject alternative name, in order.
    pub dns_names: Vec<String>,
    /// The subject in RFC 2253 form; empty in Consul's leaves.
    pub subject: String,
}

impl Downstream {
    /// Takes another destination than the socket's own address.
    pub fn restore_destination(&mut self, destination: SocketAddr) {
        self.destination = Some(destination);
        self.destination_restored = true;
    }

    /// Takes a PROXY header's word for who connected.
    pub fn restore_source(&mut self, source: SocketAddr) {
        self.relay = self.source.replace(source).map(Box::new);
    }

    /// The socket's other end, whatever a PROXY header says (Envoy's direct remote address).
    pub fn direct_source(&self) -> Option<SocketAddr> {
        self.relay.as_deref().copied().or(self.source)
    }

    /// Where it went before a redirection. None if it was not redirected: dialling its destination
    /// ([`super::ClusterKind::OriginalDestination`]) would be dialling ourselves, again and again.
    pub fn original_destination(&self) -> Option<SocketAddr> {
        self.destination.filter(|_| self.destination_restored)
    }

    /// The peer's SPIFFE ID, if it has one.
    pub fn spiffe_id(&self) -> Option<&SpiffeId> {
        self.peer.as_ref()?.spiffe_id.as_ref()
    }
}

impl Peer {
    /// A peer that is known by its SPIFFE ID alone, as every one in Consul's mesh.
    pub fn of(spiffe_id: SpiffeId) -> Self {
        Self {
            uris: vec![spiffe_id.as_str().to_owned()],
            spiffe_id: Some(spiffe_id),
            ..Self::default()
        }
    }

    /// The names that Envoy's `authenticated` principal looks at, in its order: the URIs, the DNS names and
    /// the subject, each of them. A rule that denies by a DNS name holds for who has a URI too.
    pub fn principals(&self) -> impl Iterator<Item = &str> {
        let names = self.uris.iter().chain(&self.dns_names).chain([&self.subject]);
        names.map(String::as_str)
    }

    /// A name for logs: the first of [`Self::principals`].
    pub fn name(&self) -> &str {
        self.principals().next().unwrap_or_default()
    }
}
