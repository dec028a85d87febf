//! A peer that speaks mTLS by hand: honest or wrong in one thing, as a scenario needs it.
//!
//! It trusts whoever answers: it is the sidecar's checks that are looked at, not its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use attache::demo::standin::Issued;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme, SupportedProtocolVersion,
};
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// Connects and shakes hands as the holder of `issued`, or of no certificate.
///
/// # Errors
/// The kernel's, or TLS's. With TLS 1.3 a refusal of the certificate comes only with the first read.
pub async fn connect(
    address: SocketAddr,
    issued: Option<&Issued>,
    versions: &[&'static SupportedProtocolVersion],
) -> io::Result<client::TlsStream<TcpStream>> {
    let builder = ClientConfig::builder_with_provider(attache::tls::provider())
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let config = match issued {
        Some(issued) => {
            let (chain, key) = parse(issued);
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    connect_named(address, "api.default.dc1.internal", config).await
}

/// Connects and shakes hands as the holder of `issued` who speaks this protocol alone (ALPN).
///
/// # Errors
/// The kernel's, or TLS's.
pub async fn connect_speaking(
    address: SocketAddr,
    issued: &Issued,
    protocol: &[u8],
) -> io::Result<client::TlsStream<TcpStream>> {
    let (chain, key) = parse(issued);
    let mut config = ClientConfig::builder_with_provider(attache::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![protocol.to_vec()];
    connect_named(address, "api.default.dc1.internal", config).await
}

async fn connect_named(
    address: SocketAddr,
    name: &str,
    config: ClientConfig,
) -> io::Result<client::TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, TcpStream::connect(address).await?)
        .await
}

/// Connects as [`connect`] and exchanges one line: the answer, or why there was none.
///
/// # Errors
/// The kernel's, or TLS's.
pub async fn ask(
    address: SocketAddr,
    issued: Option<&Issued>,
    versions: &[&'static SupportedProtocolVersion],
) -> io::Result<String> {
    heard(connect(address, issued, versions)).await
}

/// Without a certificate, with this server name: the answer to one line, or why there was none.
///
/// # Errors
/// The kernel's, or TLS's.
pub async fn ask_named(address: SocketAddr, name: &str) -> io::Result<String> {
    let config = ClientConfig::builder_with_provider(attache::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_no_client_auth();
    heard(connect_named(address, name, config)).await
}

async fn heard(
    connecting: impl Future<Output = io::Result<client::TlsStream<TcpStream>>>,
) -> io::Result<String> {
    let asked = async {
        let mut stream = connecting.await?;
        stream.write_all(b"hi\n").await?;
        let mut answer = [0; 64];
        match stream.read(&mut answer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => Ok(String::from_utf8_lossy(&answer[..n]).trim_end().to_owned()),
        }
    };
    tokio::time::timeout(crate::PATIENCE, asked)
        .await
        .unwrap_or_else(|_| panic!("neither an answer nor a refusal"))
}

/// Listens as an instance that presents `issued` and asks callers for no certificate. The handshakes
/// are made by the scenario, one a call of the returned acceptor.
pub async fn listen(issued: &Issued) -> (TcpListener, TlsAcceptor) {
    let (chain, key) = parse(issued);
    let config = ServerConfig::builder_with_provider(attache::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener, TlsAcceptor::from(Arc::new(config)))
}

/// Accepts one connection and its handshake.
///
/// # Errors
/// TLS's.
pub async fn accept(
    listener: &TcpListener,
    acceptor: &TlsAcceptor,
) -> io::Result<server::TlsStream<TcpStream>> {
    acceptor.accept(listener.accept().await?.0).await
}

fn parse(issued: &Issued) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_slice_iter(issued.chain_pem.as_bytes())
        .collect::<Result<_, _>>()
        .unwrap();
    (
        chain,
        PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap(),
    )
}

/// Trusts everybody.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        attache::tls::provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
