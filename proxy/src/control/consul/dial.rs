//! One connection to Consul's HTTP API: which address, and with which TLS configuration.
//!
//! Owns the TLS configuration, read again from its files once a minute so that a replaced CA file or
//! client certificate is used by the next connection. The connection belongs to whoever dialled.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use attache_bootstrap::config::{ConsulAddress, ConsulAgent, ConsulTls};
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::control::dial::{self, Stream};
use crate::control::system_roots;

/// Files are parsed again at most this often.
const CONFIG_AGE: Duration = Duration::from_secs(60);
/// Opens connections to one agent.
pub(super) struct Dialer {
    address: ConsulAddress,
    tls: ConsulTls,
    config: RefCell<Option<(Instant, Arc<ClientConfig>)>>,
}

/// A fresh connection.
pub(super) struct Dialed {
    /// The bytes.
    pub(super) stream: Stream,
    /// ALPN chose HTTP/2.
    pub(super) h2: bool,
}

impl Dialer {
    pub(super) fn new(agent: &ConsulAgent) -> Self {
        Self {
            address: agent.address.clone(),
            tls: agent.tls.clone(),
            config: RefCell::new(None),
        }
    }

    /// The `Host` header.
    pub(super) fn authority(&self) -> String {
        self.address.authority()
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self.address, ConsulAddress::Https { .. })
    }

    /// Where it dials, in words for a person.
    pub(super) fn place(&self) -> String {
        self.address.to_string()
    }

    pub(super) async fn dial(&self) -> io::Result<Dialed> {
        match &self.address {
            ConsulAddress::Unix(path) => Ok(Dialed {
                stream: dial::unix(path).await?,
                h2: false,
            }),
            ConsulAddress::Http { host, port } => Ok(Dialed {
                stream: Stream::Tcp(dial::tcp(host, *port).await?),
                h2: false,
            }),
            ConsulAddress::Https { host, port } => {
                let config = self.client_config()?;
                let name = self.tls.server_name.as_deref().unwrap_or(host);
                let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
                let tcp = Stream::Tcp(dial::tcp(host, *port).await?);
                let (stream, h2) = dial::tls(config, name, tcp).await.map_err(explained)?;
                Ok(Dialed { stream, h2 })
            }
        }
    }

    fn client_config(&self) -> io::Result<Arc<ClientConfig>> {
        if let Some((read, config)) = &*self.config.borrow()
            && read.elapsed() < CONFIG_AGE
        {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(client_config(&self.tls)?);
        *self.config.borrow_mut() = Some((Instant::now(), Arc::clone(&config)));
        Ok(config)
    }
}

/// A port without TLS answers with something that is none.
fn explained(error: io::Error) -> io::Error {
    if dial::is_plain_text(&error) {
        return io::Error::other("the agent answers plain HTTP: use http://");
    }
    error
}

fn client_config(tls: &ConsulTls) -> io::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = if tls.insecure_skip_verify {
        let verifier = Arc::new(NoVerification(provider));
        builder.dangerous().with_custom_certificate_verifier(verifier)
    } else {
        builder.with_root_certificates(authorities(tls)?)
    };
    let mut config = match (&tls.client_cert, &tls.client_key) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|e| named(key, e))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| named(cert, e))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn authorities(tls: &ConsulTls) -> io::Result<rustls::RootCertStore> {
    let files: Vec<PathBuf> = match (&tls.ca_file, &tls.ca_path) {
        (Some(file), _) => vec![file.clone()],
        (None, Some(folder)) => {
            let entries = std::fs::read_dir(folder).map_err(|e| named(folder, e))?;
            let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
            paths.filter(|path| path.is_file()).collect()
        }
        (None, None) => {
            let mut bundles = system_roots::BUNDLES.iter().map(PathBuf::from);
            bundles.find(|path| path.is_file()).into_iter().collect()
        }
    };
    let mut store = rustls::RootCertStore::empty();
    for file in &files {
        let found = match certificates(file) {
            // A folder also holds other files.
            Err(_) if tls.ca_file.is_none() => continue,
            found => found?,
        };
        store.add_parsable_certificates(found);
    }
    if store.is_empty() {
        return Err(io::Error::other(
            "no certificate authority to verify Consul with: give CONSUL_CACERT",
        ));
    }
    Ok(store)
}

fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let iter = CertificateDer::pem_file_iter(file).map_err(|e| named(file, e))?;
    let found: Vec<_> = iter.collect::<Result<_, _>>().map_err(|e| named(file, e))?;
    if found.is_empty() {
        return Err(named(file, "no PEM certificate in it"));
    }
    Ok(found)
}

fn named(file: &Path, why: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {why}", file.display()))
}

/// `CONSUL_HTTP_SSL_VERIFY=false`: whoever answers is believed. Signatures are still checked, so that
/// the connection is at least to the holder of the certificate that was shown.
#[derive(Debug)]
struct NoVerification(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_port_without_tls_is_told_for_what_it_is() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialer = Dialer {
            address: ConsulAddress::Https {
                host: "127.0.0.1".to_owned(),
                port: listener.local_addr().unwrap().port(),
            },
            tls: ConsulTls {
                insecure_skip_verify: true,
                ..ConsulTls::default()
            },
            config: RefCell::new(None),
        };
        let agent = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_u8().await.unwrap();
            let refusal = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
            stream.write_all(refusal).await.unwrap();
            stream
        };
        let (dialed, _stream) = tokio::join!(dialer.dial(), agent);
        let said = dialed.err().map(|error| error.to_string());
        assert_eq!(said.as_deref(), Some("the agent answers plain HTTP: use http://"));
    }
}
