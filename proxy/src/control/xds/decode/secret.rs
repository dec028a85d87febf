//! `tls.v3.Secret` and what it is made of: certificates with keys, and what is asked of a peer's.
//!
//! Reads `DataSource`s. Keys are zeroed on every way out and never quoted.

use std::collections::BTreeSet;
use std::sync::Arc;

use attache_proto::TypeUrl;
use attache_proto::envoy::config::core::v3::{
    DataSource, TypedExtensionConfig, WatchedDirectory, data_source::Specifier,
};
use attache_proto::envoy::extensions::transport_sockets::tls::v3::{
    self as wire, CertificateValidationContext, SpiffeCertValidatorConfig, SubjectAltNameMatcher,
    TlsCertificate, certificate_validation_context::TrustChainVerification, secret::Type,
    subject_alt_name_matcher::SanType,
};
use zeroize::Zeroizing;

use super::common::{enumeration, known_fields, need, parse, type_name, unpack, unsupported, without_effect};
use super::context::Context;
use super::error::{At, DecodeError};
use super::matcher;
use crate::model::secret::{SanKind, SanMatcher, SecretError};
use crate::model::{Identity, Name, Roots, Trust, TrustBundle, Validation};

/// A secret that TLS contexts name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    /// `tls_certificate`.
    Certificate(Arc<Identity>),
    /// `validation_context`.
    Validation(ValidationParts),
}

/// A `CertificateValidationContext` that may still lack what another one adds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValidationParts {
    /// Whom certificates must chain to.
    pub trust: Option<Trust>,
    /// Names of which one must match.
    pub names: Vec<SanMatcher>,
}

/// A secret as it came over the wire, with its name.
///
/// # Errors
/// As [`decode`]; a field that is unknown here.
pub fn decode_bytes(bytes: &[u8], ctx: &mut Context<'_>) -> Result<(Name, Secret), DecodeError> {
    let secret: wire::Secret = parse(bytes, &At::resource("Secret", ""))?;
    known_fields::<wire::Secret>(bytes, &At::resource("Secret", &secret.name), ctx)?;
    decode(&secret, ctx)
}

/// A secret with its name.
///
/// # Errors
/// A kind that is not supported, or content that is no certificate, key or authority.
pub fn decode(secret: &wire::Secret, ctx: &mut Context<'_>) -> Result<(Name, Secret), DecodeError> {
    let at = At::resource("Secret", &secret.name);
    need(&secret.name, &at.field("name"))?;
    let decoded = match &secret.r#type {
        Some(Type::TlsCertificate(one)) => {
            Secret::Certificate(certificate(one, &at.field("tls_certificate"), ctx)?)
        }
        Some(Type::ValidationContext(context)) => {
            Secret::Validation(validation(context, &at.field("validation_context"), ctx)?)
        }
        Some(Type::SessionTicketKeys(_)) => {
            return Err(at
                .field("session_ticket_keys")
                .refuse("is not supported: sessions are not resumed"));
        }
        Some(Type::GenericSecret(_)) => return Err(at.field("generic_secret").refuse("is not supported")),
        None => return Err(at.refuse("has no content")),
    };
    Ok((secret.name.as_str().into(), decoded))
}

/// A certificate with its key, which fit together.
pub(super) fn certificate(
    certificate: &TlsCertificate,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Arc<Identity>, DecodeError> {
    unsupported(
        at,
        &[
            (certificate.pkcs12.is_some(), "pkcs12"),
            (certificate.private_key_provider.is_some(), "private_key_provider"),
            (certificate.password.is_some(), "password"),
            (certificate.tls_params.is_some(), "tls_params"),
        ],
    )?;
    without_effect(
        at,
        ctx,
        &[
            (certificate.ocsp_staple.is_some(), "ocsp_staple"),
            (
                !certificate.signed_certificate_timestamp.is_empty(),
                "signed_certificate_timestamp",
            ),
        ],
    );
    watch(certificate.watched_directory.as_ref(), ctx);
    let (chain_at, key_at) = (at.field("certificate_chain"), at.field("private_key"));
    let Content { bytes: chain, path } = data_source(certificate.certificate_chain.as_ref(), &chain_at, ctx)?;
    let key = data_source(certificate.private_key.as_ref(), &key_at, ctx)?.bytes;
    let origin = path.as_deref().unwrap_or_default().as_bytes();
    let mut bytes = Zeroizing::new(Vec::with_capacity(chain.len() + key.len() + origin.len() + 2));
    for part in [&chain[..], &[0], &key, &[0], origin] {
        bytes.extend_from_slice(part);
    }
    if let Some((_, identity)) = ctx.identities.iter().find(|(known, _)| *known == bytes) {
        return Ok(Arc::clone(identity));
    }
    let mut identity =
        Identity::from_pem(utf8(&chain, &chain_at)?, utf8(&key, &key_at)?).map_err(|error| {
            let at = if error == SecretError::NoKey {
                key_at
            } else {
                chain_at
            };
            at.refuse(format!("cannot be used: {error}"))
        })?;
    (ctx.check_identity)(&identity).map_err(|why| key_at.refuse(format!("cannot be used: {why}")))?;
    identity.path = path;
    let identity = ctx.shared.identity(identity);
    ctx.identities.push((bytes, Arc::clone(&identity)));
    Ok(identity)
}

/// What is asked of a peer's certificate.
pub(super) fn validation(
    context: &CertificateValidationContext,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<ValidationParts, DecodeError> {
    unsupported(
        at,
        &[
            (
                context.ca_certificate_provider_instance.is_some(),
                "ca_certificate_provider_instance",
            ),
            (context.system_root_certs.is_some(), "system_root_certs"),
            (
                !context.verify_certificate_spki.is_empty(),
                "verify_certificate_spki",
            ),
            (
                !context.verify_certificate_hash.is_empty(),
                "verify_certificate_hash",
            ),
            (
                context.require_signed_certificate_timestamp == Some(true),
                "require_signed_certificate_timestamp",
            ),
            (context.crl.is_some(), "crl"),
            (context.only_verify_leaf_cert_crl, "only_verify_leaf_cert_crl"),
            (context.allow_expired_certificate, "allow_expired_certificate"),
            (context.max_verify_depth.is_some(), "max_verify_depth"),
        ],
    )?;
    let chain = at.field("trust_chain_verification");
    match enumeration(context.trust_chain_verification, &chain)? {
        TrustChainVerification::VerifyTrustChain => {}
        TrustChainVerification::AcceptUntrusted => {
            return Err(chain.refuse("ACCEPT_UNTRUSTED is not supported"));
        }
    }
    without_effect(
        at,
        ctx,
        &[(context.suppress_client_ca_list, "suppress_client_ca_list")],
    );
    watch(context.watched_directory.as_ref(), ctx);
    let names = names(context, at)?;
    let trust = match (&context.custom_validator_config, &context.trusted_ca) {
        // Envoy's SPIFFE validator does not look at `trusted_ca` either.
        (Some(validator), _) => Some(spiffe(validator, &at.field("custom_validator_config"), ctx)?),
        (None, Some(source)) => Some(Trust::Roots(roots(source, &at.field("trusted_ca"), ctx)?)),
        (None, None) => None,
    };
    Ok(ValidationParts { trust, names })
}

impl ValidationParts {
    /// As Envoy merges a secret into the context that has defaults for it.
    pub(super) fn merged(mut self, secret: Self) -> Self {
        self.trust = secret.trust.or(self.trust);
        self.names.extend(secret.names);
        self
    }

    /// The whole; none if it would verify nothing.
    pub(super) fn finish(self, at: &At<'_>) -> Result<Option<Validation>, DecodeError> {
        match self {
            Self {
                trust: Some(trust),
                names,
            } => Ok(Some(Validation { trust, names })),
            Self { trust: None, names } if names.is_empty() => Ok(None),
            Self { .. } => Err(at.refuse(
                "asks for names of certificates but has no trusted_ca: anybody can write any name into one",
            )),
        }
    }
}

fn names(context: &CertificateValidationContext, at: &At<'_>) -> Result<Vec<SanMatcher>, DecodeError> {
    let mut names = Vec::new();
    let typed = at.field("match_typed_subject_alt_names");
    for (index, name) in context.match_typed_subject_alt_names.iter().enumerate() {
        names.push(typed_name(name, &typed.index(index))?);
    }
    let untyped = at.field("match_subject_alt_names");
    for (index, matcher) in context.match_subject_alt_names.iter().enumerate() {
        let matcher = matcher::string(matcher, &untyped.index(index))?;
        // The deprecated form looks at names of every kind.
        let kinds = [SanKind::Uri, SanKind::Dns, SanKind::Email, SanKind::Ip];
        names.extend(kinds.map(|kind| SanMatcher {
            kind,
            matcher: matcher.clone(),
        }));
    }
    Ok(names)
}

fn typed_name(name: &SubjectAltNameMatcher, at: &At<'_>) -> Result<SanMatcher, DecodeError> {
    let kind_at = at.field("san_type");
    let kind = match enumeration(name.san_type, &kind_at)? {
        SanType::Uri => SanKind::Uri,
        SanType::Dns => SanKind::Dns,
        SanType::Email => SanKind::Email,
        SanType::IpAddress => SanKind::Ip,
        SanType::OtherName => return Err(kind_at.refuse("OTHER_NAME is not supported")),
        SanType::Unspecified => return Err(kind_at.refuse("is missing")),
    };
    unsupported(at, &[(!name.oid.is_empty(), "oid")])?;
    Ok(SanMatcher {
        kind,
        matcher: matcher::need_string(name.matcher.as_ref(), &at.field("matcher"))?,
    })
}

fn spiffe(
    validator: &TypedExtensionConfig,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Trust, DecodeError> {
    let at = at.field("typed_config");
    let config = match &validator.typed_config {
        Some(any) if type_name(any) == SpiffeCertValidatorConfig::TYPE_NAME => {
            unpack::<SpiffeCertValidatorConfig>(any, &at)?
        }
        _ => return Err(at.refuse(format!("of {:?} is not supported", validator.name))),
    };
    unsupported(&at, &[(config.trust_bundles.is_some(), "trust_bundles")])?;
    let domains = at.field("trust_domains");
    let (mut bundles, mut seen) = (Vec::new(), BTreeSet::new());
    for (index, domain) in config.trust_domains.iter().enumerate() {
        let at = domains.index(index);
        unsupported(
            &at,
            &[(!domain.workload_trust_domain.is_empty(), "workload_trust_domain")],
        )?;
        let name = need(&domain.name, &at.field("name"))?;
        if !seen.insert(name) {
            return Err(at.field("name").refuse(format!("{name:?} stands there twice")));
        }
        let source_at = at.field("trust_bundle");
        let pem = data_source(domain.trust_bundle.as_ref(), &source_at, ctx)?.bytes;
        let bundle = TrustBundle::from_pem(name, [utf8(&pem, &source_at)?])
            .map_err(|error| source_at.refuse(format!("cannot be used: {error}")))?;
        bundles.push(ctx.shared.bundle(bundle));
    }
    if bundles.is_empty() {
        return Err(domains.refuse("is empty"));
    }
    Ok(Trust::Spiffe(bundles))
}

/// The authorities of a source.
pub(super) fn roots(
    source: &DataSource,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Arc<Roots>, DecodeError> {
    let Content { bytes: pem, path } = data_source(Some(source), at, ctx)?;
    let mut bytes = pem.to_vec();
    bytes.push(0);
    bytes.extend_from_slice(path.as_deref().unwrap_or_default().as_bytes());
    if let Some((_, roots)) = ctx.roots.iter().find(|(known, _)| *known == bytes) {
        return Ok(Arc::clone(roots));
    }
    let mut roots =
        Roots::from_pem([utf8(&pem, at)?]).map_err(|error| at.refuse(format!("cannot be used: {error}")))?;
    roots.path = path;
    let roots = ctx.shared.roots(roots);
    ctx.roots.push((bytes, Arc::clone(&roots)));
    Ok(roots)
}

/// What a source holds.
pub(super) struct Content {
    pub(super) bytes: Zeroizing<Vec<u8>>,
    /// Of a file.
    path: Option<Arc<str>>,
}

pub(super) fn data_source(
    source: Option<&DataSource>,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Content, DecodeError> {
    let source = source.ok_or_else(|| at.refuse("is missing"))?;
    watch(source.watched_directory.as_ref(), ctx);
    let mut path = None;
    let bytes = match &source.specifier {
        Some(Specifier::InlineString(text)) => Zeroizing::new(text.clone().into_bytes()),
        Some(Specifier::InlineBytes(bytes)) => Zeroizing::new(bytes.clone()),
        Some(Specifier::Filename(name)) => {
            let at = at.field("filename");
            need(name, &at)?;
            // Before it is read: where it cannot be, its change is what to wait for.
            ctx.watched.insert(name.into());
            path = Some(name.as_str().into());
            let content = ctx.files.read(name.as_ref());
            content.map_err(|why| at.refuse(format!("{name:?} {why}")))?
        }
        Some(Specifier::EnvironmentVariable(name)) => match ctx.files.variable(name) {
            Some(value) => Zeroizing::new(value.into_bytes()),
            None => {
                let at = at.field("environment_variable");
                return Err(at.refuse(format!("{name:?} is not set")));
            }
        },
        None => return Err(at.refuse("has no content")),
    };
    Ok(Content { bytes, path })
}

fn watch(directory: Option<&WatchedDirectory>, ctx: &mut Context<'_>) {
    ctx.watched
        .extend(directory.map(|directory| (&directory.path).into()));
}

fn utf8<'a>(bytes: &'a [u8], at: &At<'_>) -> Result<&'a str, DecodeError> {
    std::str::from_utf8(bytes).map_err(|_| at.refuse("cannot be used: it is no PEM text"))
}

#[cfg(test)]
#[path = "secret_tests.rs"]
mod tests;
