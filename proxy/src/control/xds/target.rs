//! Where the control plane is, and as whom it is asked.
//!
//! Owns the addresses in their order, the TLS configuration and the opening of a connection to one of
//! them. When to try which is the stream's business.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use attache_bootstrap::Secret;
use attache_proto::envoy::config::core::v3::Node;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::control::dial::{self, Stream};

/// A control plane and what it is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The cluster's endpoints, at least one. The next is tried when one fails.
    pub addresses: Vec<Address>,
    /// With it, every address is spoken to over TLS, socket files too.
    pub tls: Option<Tls>,
    /// `:authority`; Envoy sends the cluster's name.
    pub authority: String,
    /// Sent as `x-consul-token`.
    pub token: Option<Secret>,
    /// The bootstrap's node; see [`identify`](super::identify) for its user agent.
    pub node: Node,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A name or an address without brackets.
    Tcp {
        /// Name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// One socket file, at the first of these paths that can be connected to: Nomad writes a path that
    /// is relative to a folder which depends on the task driver.
    Unix(Vec<PathBuf>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(paths) => {
                let paths = paths.iter().map(|path| format!("unix://{}", path.display()));
                f.write_str(&paths.collect::<Vec<_>>().join(" or "))
            }
        }
    }
}

/// Whose certificates are believed. As Envoy without SAN matchers, it asks for a chain to one of the
/// authorities, and for no name: Consul's servers are reached by changing addresses.
#[derive(Clone)]
pub struct Tls {
    authorities: Vec<CertificateDer<'static>>,
    config: Arc<ClientConfig>,
}

impl Tls {
    /// Believes these authorities (PEM).
    ///
    /// # Errors
    /// In words, when there is no certificate that can be an authority.
    pub fn new(pem: &[u8]) -> Result<Self, String> {
        let authorities: Vec<_> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("trusted_ca: {error}"))?;
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            let added = roots.add(authority.clone());
            added.map_err(|error| format!("trusted_ca: {error}"))?;
        }
        if roots.is_empty() {
            return Err("trusted_ca: no PEM certificate in it".to_owned());
        }
        let provider = crate::tls::provider();
        let verifier = ChainOnly {
            roots,
            provider: Arc::clone(&provider),
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let mut config = builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.enable_sni = false;
        Ok(Self {
            authorities,
            config: Arc::new(config),
        })
    }
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.authorities == other.authorities
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} authorities", self.authorities.len())
    }
}

/// A chain to one of the roots, for whatever name.
#[derive(Debug)]
struct ChainOnly {
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A server of whom nothing but its address is known.
const UNNAMED: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Opens connections; a fake one stands in for it in tests.
pub(super) trait Connector: 'static {
    /// The bytes of a connection.
    type Io: AsyncRead + AsyncWrite + Unpin + 'static;

    /// Opens one; gives up by itself only where a step has a limit of its own.
    fn connect(&self, target: &Target, address: &Address) -> impl Future<Output = io::Result<Self::Io>>;
}

/// The real one.
#[derive(Debug)]
pub(super) struct Dialer;

impl Connector for Dialer {
    type Io = Stream;

    async fn connect(&self, target: &Target, address: &Address) -> io::Result<Stream> {
        match address {
            Address::Unix(paths) => shaken(target, UNNAMED.into(), unix(paths).await?).await,
            Address::Tcp { host, port } => {
                let plain = Stream::Tcp(dial::tcp(host, *port).await?);
                // Neither sent nor checked; not every host name that resolves is one for rustls.
                let name = ServerName::try_from(host.clone()).unwrap_or(ServerName::from(UNNAMED));
                shaken(target, name, plain).await
            }
        }
    }
}

/// The first path that a connection can be made by.
async fn unix(paths: &[PathBuf]) -> io::Result<Stream> {
    let mut last = io::Error::other("no path is given");
    for path in paths {
        match dial::unix(path).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// With TLS, where the target has it. A socket file may lead to Consul's TLS port: Nomad's does.
async fn shaken(target: &Target, name: ServerName<'static>, plain: Stream) -> io::Result<Stream> {
    let Some(tls) = &target.tls else {
        return Ok(plain);
    };
    let (stream, h2) = dial::tls(Arc::clone(&tls.config), name, plain)
        .await
        .map_err(explained)?;
    if h2 {
        Ok(stream)
    } else {
        Err(io::Error::other("it does not speak HTTP/2"))
    }
}

fn explained(error: io::Error) -> io::Error {
    if dial::is_plain_text(&error) {
        return io::Error::other("it does not speak TLS on this port");
    }
    error
}

#[cfg(test)]
mod tests {
    use rustls::ServerConfig;
    use rustls_pki_types::PrivateKeyDer;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, UnixListener};

    use super::*;

    /// A certificate for a name that nobody dials, its own authority.
    fn server(alpn: &[u8]) -> (ServerConfig, String) {
        let made = rcgen::generate_simple_self_signed(["server.dc1.consul".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![alpn.to_vec()];
        (config, made.cert.pem())
    }

    fn target(authorities: &str, addresses: Vec<Address>) -> Target {
        Target {
            addresses,
            tls: Some(Tls::new(authorities.as_bytes()).unwrap()),
            authority: "local_agent".to_owned(),
            token: None,
            node: Node::default(),
        }
    }

    /// Dials a server that speaks TLS with `config`, believing `authorities`.
    async fn dial(config: ServerConfig, authorities: &str) -> io::Result<Stream> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port: listener.local_addr().unwrap().port(),
        };
        let target = target(authorities, vec![address]);
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            acceptor.accept(stream).await
        };
        let (dialed, _served) = tokio::join!(Dialer.connect(&target, &target.addresses[0]), serve);
        dialed
    }

    #[tokio::test]
    async fn a_chain_to_the_authority_is_enough_and_none_is_not() {
        let (config, authority) = server(b"h2");
        assert!(dial(config, &authority).await.is_ok());
        let (config, _) = server(b"h2");
        let error = dial(config, &authority).await.err().unwrap();
        assert!(error.to_string().contains("certificate"), "{error}");
    }

    #[tokio::test]
    async fn a_port_that_speaks_something_else_is_told_for_what_it_is() {
        let (_, authority) = server(b"h2");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port: listener.local_addr().unwrap().port(),
        };
        let target = target(&authority, vec![address]);
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_u8().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .unwrap();
            stream
        };
        let (dialed, _stream) = tokio::join!(Dialer.connect(&target, &target.addresses[0]), serve);
        let said = dialed.err().map(|error| error.to_string());
        assert_eq!(said.as_deref(), Some("it does not speak TLS on this port"));
    }

    #[tokio::test]
    async fn a_socket_file_is_found_at_the_first_path_that_leads_to_it() {
        let folder = std::env::temp_dir().join(format!("attache-xds-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let paths = vec![folder.join("absent"), folder.join("grpc.sock")];
        let listener = UnixListener::bind(&paths[1]).unwrap();
        let (config, authority) = server(b"h2");
        let mut target = target(&authority, vec![Address::Unix(paths)]);
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            acceptor.accept(stream).await.is_ok()
        };
        let (dialed, served) = tokio::join!(Dialer.connect(&target, &target.addresses[0]), serve);
        assert!(
            matches!(dialed, Ok(Stream::Tls(_))) && served,
            "TLS over it, as Nomad's wants"
        );
        let without = Target {
            tls: None,
            ..target.clone()
        };
        let plain = Dialer.connect(&without, &without.addresses[0]).await;
        assert!(matches!(plain, Ok(Stream::Unix(_))));
        target.addresses = vec![Address::Unix(vec![folder.join("absent")])];
        assert!(Dialer.connect(&target, &target.addresses[0]).await.is_err());
        assert!(target.addresses[0].to_string().starts_with("unix:///"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn authorities_that_are_none_are_refused() {
        for pem in [
            "",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            let said = Tls::new(pem.as_bytes()).unwrap_err();
            assert!(said.starts_with("trusted_ca: "), "{said}");
        }
    }
}
