//! From the model's TLS contexts to rustls configurations.
//!
//! One cache a worker keeps a parsed key and a configuration for each context that is in use; what
//! no snapshot mentions any more is dropped at the next [`ConfigCache::sweep`].

use std::collections::HashMap;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};

use super::client_hello::ClientHello;
use super::identity::{IdentityError, certified_key};
use super::verifier::PeerVerifier;
use crate::model::listener::{ClientCertificate, DownstreamTls, TlsParams, TlsVersion};
use crate::model::{Identity, UpstreamTls, Validation};

/// Why a context cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The certificate or key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No cipher suite or version is left.
    #[error(
        "TLS parameters leave nothing to offer: versions {min:?} to {max:?}, cipher suites {cipher_suites:?}"
    )]
    Parameters {
        /// As configured.
        min: TlsVersion,
        /// As configured.
        max: TlsVersion,
        /// As configured.
        cipher_suites: Vec<String>,
    },
    /// The trust bundle.
    #[error("the trust bundle cannot be used: {0}")]
    Trust(rustls::Error),
    /// The key of session tickets.
    #[error("no key for session tickets: {0}")]
    Tickets(rustls::Error),
    /// The SNI.
    #[error("the SNI {0:?} is no host name")]
    Sni(String),
}

/// The configuration for accepting, as a peer's ClientHello asks for it.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    /// The same without ALPN, where there is one.
    without_alpn: Option<Arc<ServerConfig>>,
}

impl ServerTls {
    fn new(config: ServerConfig) -> Self {
        let without_alpn = (!config.alpn_protocols.is_empty()).then(|| {
            let mut without = config.clone();
            without.alpn_protocols = Vec::new();
            Arc::new(without)
        });
        Self {
            config: Arc::new(config),
            without_alpn,
        }
    }

    /// What to answer a ClientHello with. rustls aborts a handshake in which no protocol is common to
    /// both; Envoy goes on as if none had been asked for.
    pub fn answer_to(&self, hello: Option<&ClientHello>) -> &Arc<ServerConfig> {
        let Some((without_alpn, hello)) = self.without_alpn.as_ref().zip(hello) else {
            return &self.config;
        };
        let ours = &self.config.alpn_protocols;
        let common = hello.alpn.iter().any(|p| ours.iter().any(|o| o == p.as_bytes()));
        if common { &self.config } else { without_alpn }
    }
}

/// The configuration for dialling.
#[derive(Debug)]
pub struct ClientTls {
    /// For a full handshake.
    pub(super) full: Arc<ClientConfig>,
    /// To resume a session of TLS 1.3 with, none where it would be the same.
    pub(super) resuming: Option<Arc<ClientConfig>>,
}

impl ClientTls {
    fn new(tls: &UpstreamTls, key: Option<Arc<CertifiedKey>>) -> Result<Self, ConfigError> {
        // rustls resumes a session only with the verifier and the resolver that it began with.
        let verifier = verifier(&tls.validation, true)?;
        let resolver = key.map(|key| Arc::new(SingleCertAndKey::from(key)));
        let config = |provider| {
            let builder = ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(versions(&tls.params))
                .map_err(|_| parameters(&tls.params))?
                .dangerous()
                .with_custom_certificate_verifier(Arc::clone(&verifier) as _);
            let mut config = match &resolver {
                Some(resolver) => builder.with_client_cert_resolver(Arc::clone(resolver) as _),
                None => builder.with_no_client_auth(),
            };
            // Sessions are an endpoint's own: `Sessions`.
            config.resumption = Resumption::disabled();
            config.enable_sni = tls.sni.is_some();
            config.alpn_protocols = protocols(&tls.alpn);
            Ok::<_, ConfigError>(Arc::new(config))
        };
        let resumes = tls.params.resumption && tls.params.max == TlsVersion::V1_3 && resolver.is_some();
        Ok(Self {
            full: config(narrowed(&tls.params))?,
            resuming: match resumes {
                true => Some(config(super::for_resuming(&narrowed(&tls.params)))?),
                false => None,
            },
        })
    }
}

/// What a worker keeps between snapshots. Not shared between threads.
#[derive(Debug, Default)]
pub struct ConfigCache {
    keys: Vec<(Arc<Identity>, Arc<CertifiedKey>)>,
    servers: Vec<(Arc<DownstreamTls>, ServerTls)>,
    clients: HashMap<*const UpstreamTls, (Arc<UpstreamTls>, Arc<ClientTls>)>,
}

impl ConfigCache {
    /// The configuration for accepting.
    ///
    /// # Errors
    /// [`ConfigError`]; the caller keeps what it had.
    pub fn server(&mut self, tls: &Arc<DownstreamTls>) -> Result<ServerTls, ConfigError> {
        if let Some((_, config)) = self.servers.iter().find(|(have, _)| Arc::ptr_eq(have, tls)) {
            return Ok(config.clone());
        }
        let builder = ServerConfig::builder_with_provider(narrowed(&tls.params))
            .with_protocol_versions(versions(&tls.params))
            .map_err(|_| parameters(&tls.params))?;
        let builder = match &tls.client {
            ClientCertificate::None => builder.with_no_client_auth(),
            ClientCertificate::Optional(validation) => {
                builder.with_client_cert_verifier(verifier(validation, false)?)
            }
            ClientCertificate::Required(validation) => {
                builder.with_client_cert_verifier(verifier(validation, true)?)
            }
        };
        let mut config =
            builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(self.key(&tls.identity)?)));
        // Nothing is kept of a session here: the client has it in its ticket, sealed by a key that is this
        // configuration's alone.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        if tls.params.resumption {
            config.ticketer = Ticketer::new().map_err(ConfigError::Tickets)?;
            config.send_tls13_tickets = 1;
        }
        config.alpn_protocols = protocols(&tls.alpn);
        let config = ServerTls::new(config);
        self.servers.push((Arc::clone(tls), config.clone()));
        Ok(config)
    }

    /// The configuration for dialling.
    ///
    /// # Errors
    /// [`ConfigError`]; the caller keeps what it had.
    pub fn client(&mut self, tls: &Arc<UpstreamTls>) -> Result<Arc<ClientTls>, ConfigError> {
        if let Some((_, config)) = self.clients.get(&Arc::as_ptr(tls)) {
            return Ok(Arc::clone(config));
        }
        let key = tls.identity.as_ref().map(|identity| self.key(identity));
        let config = Arc::new(ClientTls::new(tls, key.transpose()?)?);
        self.clients
            .insert(Arc::as_ptr(tls), (Arc::clone(tls), Arc::clone(&config)));
        Ok(config)
    }

    /// Drops what only the cache still holds. To be called after a snapshot was applied.
    pub fn sweep(&mut self) {
        self.servers.retain(|(tls, _)| Arc::strong_count(tls) > 1);
        self.clients.retain(|_, (tls, _)| Arc::strong_count(tls) > 1);
        self.keys.retain(|(identity, _)| Arc::strong_count(identity) > 1);
    }

    fn key(&mut self, identity: &Arc<Identity>) -> Result<Arc<CertifiedKey>, IdentityError> {
        if let Some((_, key)) = self.keys.iter().find(|(have, _)| Arc::ptr_eq(have, identity)) {
            return Ok(Arc::clone(key));
        }
        let key = certified_key(identity)?;
        self.keys.push((Arc::clone(identity), Arc::clone(&key)));
        Ok(key)
    }
}

fn verifier(validation: &Validation, mandatory: bool) -> Result<Arc<PeerVerifier>, ConfigError> {
    let verifier = PeerVerifier::new(validation.clone(), mandatory).map_err(ConfigError::Trust)?;
    Ok(Arc::new(verifier))
}

fn protocols(alpn: &[Arc<str>]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.as_bytes().to_vec()).collect()
}

fn parameters(params: &TlsParams) -> ConfigError {
    ConfigError::Parameters {
        min: params.min,
        max: params.max,
        cipher_suites: params.cipher_suites.clone(),
    }
}

fn versions(params: &TlsParams) -> &'static [&'static SupportedProtocolVersion] {
    static ALL: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
    match (params.min, params.max) {
        (TlsVersion::V1_2, TlsVersion::V1_3) => &ALL,
        (TlsVersion::V1_2, TlsVersion::V1_2) => &ALL[1..],
        (TlsVersion::V1_3, TlsVersion::V1_3) => &ALL[..1],
        (TlsVersion::V1_3, TlsVersion::V1_2) => &[],
    }
}

/// The provider with the TLS 1.2 suites that `params` allows; TLS 1.3's are not configurable.
fn narrowed(params: &TlsParams) -> Arc<CryptoProvider> {
    let all = super::provider();
    if params.cipher_suites.is_empty() {
        return all;
    }
    let mut provider = (*all).clone();
    provider.cipher_suites.retain(|suite| {
        suite.tls13().is_some()
            || suite
                .suite()
                .as_str()
                .is_some_and(|name| params.cipher_suites.iter().any(|s| s == name))
    });
    Arc::new(provider)
}
