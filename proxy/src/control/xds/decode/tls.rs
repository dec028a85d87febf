//! `DownstreamTlsContext` and `UpstreamTlsContext`.
//!
//! A context that would let anybody in where it was meant to verify is refused, where Envoy would take it.

use std::sync::Arc;

use attache_proto::TypeUrl;
use attache_proto::envoy::config::core::v3::{
    DataSource, TransportSocket, config_source::ConfigSourceSpecifier, data_source::Specifier,
    transport_socket::ConfigType,
};
use attache_proto::envoy::extensions::transport_sockets::{
    proxy_protocol::v3::ProxyProtocolUpstreamTransport,
    raw_buffer::v3::RawBuffer,
    tls::v3::{
        CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, UpstreamTlsContext,
        common_tls_context::ValidationContextType,
        downstream_tls_context::{OcspStaplePolicy, SessionTicketKeysType},
    },
};
use prost_types::Any;
use rustls_pki_types::ServerName;

use super::common::{enumeration, need, type_name, unpack, unsupported, without_effect};
use super::context::Context;
use super::error::{At, DecodeError};
use super::secret::{self, Secret, ValidationParts};
use super::tls_params;
use crate::control::system_roots;
use crate::model::listener::{ClientCertificate, TlsParams};
use crate::model::{DownstreamTls, Identity, Trust, UpstreamTls, Validation};

/// The well-known name of plaintext, which may stand without a configuration.
const RAW_BUFFER: &str = "envoy.transport_sockets.raw_buffer";

/// A filter chain's `transport_socket`; none is plaintext.
///
/// # Errors
/// A kind of socket that is not supported; as [`downstream`].
pub fn downstream_socket(
    socket: Option<&TransportSocket>,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Option<Arc<DownstreamTls>>, DecodeError> {
    match tls::<DownstreamTlsContext>(socket, at)? {
        Some(config) => downstream(config, &at.field("typed_config"), ctx).map(Some),
        None => Ok(None),
    }
}

/// A cluster's `transport_socket`; none is plaintext. `host` is whom the cluster leads to, where that is one.
///
/// # Errors
/// A kind of socket that is not supported; as [`upstream`].
pub fn upstream_socket(
    socket: Option<&TransportSocket>,
    host: Option<&str>,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Option<Arc<UpstreamTls>>, DecodeError> {
    match tls::<UpstreamTlsContext>(socket, at)? {
        Some(config) => upstream(config, host, &at.field("typed_config"), ctx).map(Some),
        None => Ok(None),
    }
}

/// The configuration of a socket that is TLS, nothing of one that is plaintext.
fn tls<'a, T: TypeUrl>(
    socket: Option<&'a TransportSocket>,
    at: &At<'_>,
) -> Result<Option<&'a Any>, DecodeError> {
    let Some(socket) = socket else {
        return Ok(None);
    };
    let config = match &socket.config_type {
        Some(ConfigType::TypedConfig(config)) => config,
        None if socket.name == RAW_BUFFER => return Ok(None),
        None => return Err(at.refuse(format!("{:?} has no typed_config", socket.name))),
    };
    let name = type_name(config);
    if name == T::TYPE_NAME {
        Ok(Some(config))
    } else if name == RawBuffer::TYPE_NAME {
        Ok(None)
    } else if name == ProxyProtocolUpstreamTransport::TYPE_NAME {
        Err(at.refuse("writes PROXY headers to upstreams, which is not supported"))
    } else {
        Err(at.refuse(format!(
            "is a {name:?}: only raw_buffer and {} are supported",
            T::TYPE_NAME
        )))
    }
}

/// A `DownstreamTlsContext`.
///
/// # Errors
/// Names the field that is invalid or not supported; a certificate that is required but verified by nothing;
/// [`super::Why::Waiting`] for a secret.
pub fn downstream(
    config: &Any,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Arc<DownstreamTls>, DecodeError> {
    let context: DownstreamTlsContext = unpack(config, at)?;
    let stapling = at.field("ocsp_staple_policy");
    let stapling = enumeration::<OcspStaplePolicy>(context.ocsp_staple_policy, &stapling)?;
    unsupported(
        at,
        &[
            (context.require_sni == Some(true), "require_sni"),
            (
                stapling != OcspStaplePolicy::LenientStapling,
                "ocsp_staple_policy",
            ),
        ],
    )?;
    // A ticket is sealed by a key of its configuration alone, whatever keys are given.
    let tickets = &context.session_ticket_keys_type;
    let keys = matches!(tickets, Some(SessionTicketKeysType::SessionTicketKeys(_)));
    let sds = matches!(
        tickets,
        Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(_))
    );
    without_effect(
        at,
        ctx,
        &[
            (keys, "session_ticket_keys"),
            (sds, "session_ticket_keys_sds_secret_config"),
            (context.session_timeout.is_some(), "session_timeout"),
            (context.prefer_client_ciphers, "prefer_client_ciphers"),
        ],
    );
    let common_at = at.field("common_tls_context");
    let common = common(context.common_tls_context.as_ref(), &common_at, ctx)?;
    let identity = common
        .identity
        .ok_or_else(|| common_at.refuse("has no certificate to present"))?;
    let required = context.require_client_certificate == Some(true);
    let client = match common.validation {
        // As in Envoy: who asks for a name, or trusts by SPIFFE bundles, is not satisfied by nobody.
        Some(validation) if required || asks_for_name(&validation) => ClientCertificate::Required(validation),
        Some(validation) => ClientCertificate::Optional(validation),
        None if required => {
            return Err(at.field("require_client_certificate").refuse(
                "has nothing to verify a certificate with: common_tls_context.validation_context.trusted_ca \
                 or a SPIFFE validator is missing",
            ));
        }
        None => ClientCertificate::None,
    };
    let disabled = SessionTicketKeysType::DisableStatelessSessionResumption(true);
    let tls = DownstreamTls {
        identity,
        client,
        alpn: common.alpn,
        params: TlsParams {
            resumption: *tickets != Some(disabled),
            ..common.params
        },
    };
    Ok(ctx.shared.downstream(&config.value, tls))
}

/// Whether a certificate is verified by what it says, not by who signed it alone.
fn asks_for_name(validation: &Validation) -> bool {
    !validation.names.is_empty() || matches!(validation.trust, Trust::Spiffe(_))
}

/// An `UpstreamTlsContext`.
///
/// # Errors
/// Names the field that is invalid or not supported; no authority to verify by;
/// [`super::Why::Waiting`] for a secret.
pub fn upstream(
    config: &Any,
    host: Option<&str>,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Arc<UpstreamTls>, DecodeError> {
    let context: UpstreamTlsContext = unpack(config, at)?;
    unsupported(
        at,
        &[
            (context.auto_host_sni, "auto_host_sni"),
            (context.auto_sni_san_validation, "auto_sni_san_validation"),
            (
                context.enforce_rsa_key_usage == Some(true),
                "enforce_rsa_key_usage",
            ),
        ],
    )?;
    without_effect(
        at,
        ctx,
        &[
            (context.allow_renegotiation, "allow_renegotiation"),
            (
                context.max_session_keys.is_some_and(|keys| keys > 0),
                "max_session_keys",
            ),
        ],
    );
    let sni = match context.sni.as_str() {
        "" => None,
        name if ServerName::try_from(name).is_ok() => Some(name.into()),
        name => return Err(at.field("sni").refuse(format!("{name:?} is no host name"))),
    };
    let common_at = at.field("common_tls_context");
    let common = common(context.common_tls_context.as_ref(), &common_at, ctx)?;
    let validation = match common.validation {
        Some(validation) => validation,
        None => {
            let at = common_at.field("validation_context");
            by_the_system(sni.as_deref().or(host), &at, ctx)?
        }
    };
    let tls = UpstreamTls {
        identity: common.identity,
        validation,
        sni,
        alpn: common.alpn,
        params: TlsParams {
            resumption: context.max_session_keys != Some(0),
            ..common.params
        },
    };
    Ok(ctx.shared.upstream(&config.value, tls))
}

/// For a server outside the mesh that comes with no authority, such as the issuer of a JWT provider's keys.
fn by_the_system(name: Option<&str>, at: &At<'_>, ctx: &mut Context<'_>) -> Result<Validation, DecodeError> {
    let name = name.ok_or_else(|| {
        at.refuse(
            "has neither trusted_ca nor a SPIFFE validator: whoever answers would be taken for the upstream",
        )
    })?;
    for file in system_roots::BUNDLES {
        let source = DataSource {
            specifier: Some(Specifier::Filename(file.to_owned())),
            ..DataSource::default()
        };
        if let Ok(roots) = secret::roots(&source, at, ctx) {
            ctx.notice(
                at,
                "has no trusted_ca: the system's authorities stand in, and the name is verified",
            );
            return Ok(Validation {
                trust: Trust::Roots(roots),
                names: vec![system_roots::name(name)],
            });
        }
    }
    Err(at.refuse(system_roots::NOT_FOUND))
}

/// What both sides have.
#[derive(Default)]
struct Common {
    identity: Option<Arc<Identity>>,
    validation: Option<Validation>,
    alpn: Vec<Arc<str>>,
    params: TlsParams,
}

fn common(
    context: Option<&CommonTlsContext>,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Common, DecodeError> {
    let Some(context) = context else {
        return Ok(Common::default());
    };
    unsupported(
        at,
        &[
            (
                context.tls_certificate_provider_instance.is_some(),
                "tls_certificate_provider_instance",
            ),
            (
                context.custom_tls_certificate_selector.is_some(),
                "custom_tls_certificate_selector",
            ),
            (
                context.tls_certificate_certificate_provider.is_some(),
                "tls_certificate_certificate_provider",
            ),
            (
                context.tls_certificate_certificate_provider_instance.is_some(),
                "tls_certificate_certificate_provider_instance",
            ),
            (context.custom_handshaker.is_some(), "custom_handshaker"),
            (context.key_log.is_some(), "key_log"),
        ],
    )?;
    let alpn_at = at.field("alpn_protocols");
    let protocol = |(index, name): (usize, &String)| match name.len() {
        1..=255 => Ok(name.as_str().into()),
        _ => Err(alpn_at.index(index).refuse("is not of 1 to 255 bytes")),
    };
    Ok(Common {
        params: tls_params::decode(context.tls_params.as_ref(), &at.field("tls_params"), ctx)?,
        alpn: (context.alpn_protocols.iter().enumerate())
            .map(protocol)
            .collect::<Result<_, _>>()?,
        identity: identity(context, at, ctx)?,
        validation: validation(context, at, ctx)?,
    })
}

fn identity(
    context: &CommonTlsContext,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Option<Arc<Identity>>, DecodeError> {
    let (inline, by_name) = (
        at.field("tls_certificates"),
        at.field("tls_certificate_sds_secret_configs"),
    );
    match (
        context.tls_certificates.as_slice(),
        context.tls_certificate_sds_secret_configs.as_slice(),
    ) {
        ([], []) => Ok(None),
        ([one], []) => secret::certificate(one, &inline.index(0), ctx).map(Some),
        ([], [one]) => {
            let at = by_name.index(0);
            match sds(one, &at, ctx)? {
                Secret::Certificate(identity) => Ok(Some(identity)),
                Secret::Validation(_) => Err(at.refuse(format!("{:?} is no tls_certificate", one.name))),
            }
        }
        ([], _) => Err(by_name.refuse("has several certificates; only one is supported")),
        _ => Err(inline.refuse("has several certificates; only one is supported")),
    }
}

fn validation(
    context: &CommonTlsContext,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Option<Validation>, DecodeError> {
    use ValidationContextType as Kind;
    let refuse = |field: &str| Err(at.field(field).refuse("is not supported"));
    match &context.validation_context_type {
        None => Ok(None),
        Some(Kind::ValidationContext(context)) => {
            let at = at.field("validation_context");
            secret::validation(context, &at, ctx)?.finish(&at)
        }
        Some(Kind::ValidationContextSdsSecretConfig(config)) => {
            let at = at.field("validation_context_sds_secret_config");
            sds_validation(config, &at, ctx)?.finish(&at)
        }
        Some(Kind::CombinedValidationContext(combined)) => {
            let at = at.field("combined_validation_context");
            unsupported(
                &at,
                &[
                    (
                        combined.validation_context_certificate_provider.is_some(),
                        "validation_context_certificate_provider",
                    ),
                    (
                        combined
                            .validation_context_certificate_provider_instance
                            .is_some(),
                        "validation_context_certificate_provider_instance",
                    ),
                ],
            )?;
            let parts = match &combined.default_validation_context {
                Some(context) => secret::validation(context, &at.field("default_validation_context"), ctx)?,
                None => ValidationParts::default(),
            };
            let secret_at = at.field("validation_context_sds_secret_config");
            let config = combined.validation_context_sds_secret_config.as_ref();
            let config = config.ok_or_else(|| secret_at.refuse("is missing"))?;
            parts.merged(sds_validation(config, &secret_at, ctx)?).finish(&at)
        }
        Some(Kind::ValidationContextCertificateProvider(_)) => {
            refuse("validation_context_certificate_provider")
        }
        Some(Kind::ValidationContextCertificateProviderInstance(_)) => {
            refuse("validation_context_certificate_provider_instance")
        }
    }
}

fn sds_validation(
    config: &SdsSecretConfig,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<ValidationParts, DecodeError> {
    match sds(config, at, ctx)? {
        Secret::Validation(parts) => Ok(parts),
        Secret::Certificate(_) => Err(at.refuse(format!("{:?} is no validation_context", config.name))),
    }
}

/// A secret by its name: of the bootstrap, or over ADS, which is asked for it.
fn sds(config: &SdsSecretConfig, at: &At<'_>, ctx: &mut Context<'_>) -> Result<Secret, DecodeError> {
    let name = need(&config.name, &at.field("name"))?;
    let source = config.sds_config.as_ref();
    match source.and_then(|source| source.config_source_specifier.as_ref()) {
        Some(ConfigSourceSpecifier::Ads(_)) => {
            ctx.interest.insert(name.into());
        }
        None if source.is_none() => {}
        _ => {
            let why = "is not supported: secrets come from the bootstrap or over ADS";
            return Err(at.field("sds_config").refuse(why));
        }
    }
    match ctx.secrets.get(name) {
        Some(secret) => Ok(secret.clone()),
        None if source.is_some() => Err(at.waiting(name)),
        None => Err(at.refuse(format!(
            "{name:?} is none of the bootstrap's static_resources.secrets"
        ))),
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
