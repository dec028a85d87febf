//! What is known of the downstream end of a connection: its addresses, its greeting, who it is.

use std::net::SocketAddr;
use std::sync::Arc;

use super::spiffe::SpiffeId;

/// One accepted connection as filter chain matching and rules see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Downstream {
    /// Who connected; none on a unix socket.
    pub source: Option<SocketAddr>,
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

    /// The names that Envoy's `authenticated` principal looks at: the URIs, else the DNS names, else the
    /// subject.
    pub fn principals(&self) -> impl Iterator<Item = &str> {
        let names = match (self.uris.as_slice(), self.dns_names.as_slice()) {
            ([], []) => &[],
            ([], dns) => dns,
            (uris, _) => uris,
        };
        let subject = names.is_empty().then_some(self.subject.as_str());
        names.iter().map(String::as_str).chain(subject)
    }

    /// A name for logs: the first of [`Self::principals`].
    pub fn name(&self) -> &str {
        self.principals().next().unwrap_or_default()
    }
}
