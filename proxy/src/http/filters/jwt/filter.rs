//! Whether a request has the tokens that are asked of it, and what it is told if not.
//!
//! Requirements are looked at one after the other, each of them where Envoy looks at it; while one waits for
//! keys the next is not begun.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{cell::RefCell, fmt};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::cache::TokenCache;
use super::claims::{claim_header, forwarded_payload, normalized_payload};
use super::jwks::Jwks;
use super::locations::{Found, Locations};
use super::metrics::JwtMetrics;
use super::status::JwtError;
use super::store::KeySet;
use super::token::Token;
use crate::model::Name;
use crate::model::jwt::{Jwks as Source, JwtAuthn, JwtProvider, JwtRequirement};
use crate::model::matcher::Request;
use crate::model::metadata::Metadata;
use crate::model::route::RouteMatch;

/// Where the filter writes in a request's metadata.
pub const METADATA_NAMESPACE: &str = "envoy.filters.http.jwt_authn";
/// Bytes of the path in `www-authenticate`.
const REALM_PATH: usize = 256;

/// A request as the filter reads and changes it. Of [`Request`] it asks for `:method`, `:path` (with the
/// query), `:authority`, `:scheme` and ordinary headers.
pub trait JwtRequest: Request {
    /// Its headers, without pseudo-headers.
    fn headers(&self) -> &HeaderMap;
    /// The same, to be changed.
    fn headers_mut(&mut self) -> &mut HeaderMap;
    /// Replaces path and query (`:path`).
    fn set_target(&mut self, target: String);
}

/// A request passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Its route is to be chosen anew, since headers were added.
    pub clear_route_cache: bool,
}

/// A request is answered here. Envoy has no response flag for it, but `DPE` where `reason` is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 401, or 403 for an audience; 503 where a claim cannot be a header.
    pub status: StatusCode,
    /// As `text/plain`; may be empty.
    pub body: String,
    /// A header of the answer.
    pub www_authenticate: Option<HeaderValue>,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: String,
    /// Why; none where a claim cannot be a header.
    pub reason: Option<JwtError>,
}

/// A filter as it runs: its configuration, with keys and known tokens.
pub struct JwtFilter {
    rules: Vec<(RouteMatch, Option<Need>)>,
    providers: BTreeMap<Name, Rc<Provider>>,
    /// The first by each issuer; none is the first without one.
    by_issuer: BTreeMap<Option<Arc<str>>, Rc<Provider>>,
    /// Of all providers.
    locations: Locations,
    bypass_cors_preflight: bool,
    strip_failure_response: bool,
    metrics: JwtMetrics,
}

struct Provider {
    config: Arc<JwtProvider>,
    audiences: Audiences,
    locations: Locations,
    keys: Rc<KeySet>,
    cache: Option<RefCell<TokenCache>>,
}

/// A requirement, with its providers found.
enum Need {
    Provider {
        provider: Rc<Provider>,
        /// Instead of the provider's.
        audiences: Option<Audiences>,
    },
    Any(Vec<Need>, Leniency),
    All(Vec<Need>),
    /// No certain provider.
    Anybody(Leniency),
    /// A provider that is not configured, which decoding refuses.
    Never,
}

/// What passes beside good tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leniency {
    Nothing,
    Missing,
    MissingOrFailed,
}

/// What `aud` may be; empty is anything.
struct Audiences(BTreeSet<String>);

/// What is known and changed while one request is looked at.
struct Context<'a> {
    request: &'a mut dyn JwtRequest,
    metadata: &'a mut Metadata,
    /// Seconds since 1970.
    now: u64,
    clear_route_cache: bool,
    /// A header that a claim cannot be.
    impossible: Option<HeaderName>,
}

type Verdict = Result<(), JwtError>;

impl fmt::Debug for JwtFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtFilter")
            .field("providers", &self.providers.keys())
            .finish_non_exhaustive()
    }
}

impl JwtFilter {
    /// `keys` gives the key set of a source.
    pub(super) fn new(
        config: &JwtAuthn,
        metrics: JwtMetrics,
        keys: impl Fn(&Source, &JwtMetrics) -> Rc<KeySet>,
    ) -> Self {
        let provider = |config: &Arc<JwtProvider>| {
            Rc::new(Provider {
                audiences: Audiences::new(&config.audiences),
                locations: Locations::new([&**config]),
                keys: keys(&config.jwks, &metrics),
                cache: config.cache.map(TokenCache::new).map(RefCell::new),
                config: Arc::clone(config),
            })
        };
        let providers: BTreeMap<Name, Rc<Provider>> = config
            .providers
            .iter()
            .map(|(name, config)| (name.clone(), provider(config)))
            .collect();
        let mut by_issuer = BTreeMap::new();
        for provider in providers.values() {
            by_issuer
                .entry(provider.config.issuer.clone())
                .or_insert_with(|| Rc::clone(provider));
        }
        let need = |need| Need::new(need, &providers);
        Self {
            rules: config
                .rules
                .iter()
                .map(|rule| (rule.matches.clone(), rule.requires.as_ref().map(need)))
                .collect(),
            locations: Locations::new(config.providers.values().map(|provider| &**provider)),
            providers,
            by_issuer,
            bypass_cors_preflight: config.bypass_cors_preflight,
            strip_failure_response: config.strip_failure_response,
            metrics,
        }
    }

    /// Looks for the tokens that the first matching rule asks for, and changes the request as its providers
    /// say. It may wait for keys; dropped then, nothing more is changed.
    ///
    /// # Errors
    /// The answer to a request that does not have them.
    pub async fn authenticate(
        &self,
        request: &mut dyn JwtRequest,
        metadata: &mut Metadata,
        now: SystemTime,
    ) -> Result<Outcome, Refusal> {
        let passes = |clear_route_cache| {
            self.metrics.allowed.increment(1);
            Ok(Outcome { clear_route_cache })
        };
        // Whatever is asked of it: nobody but the filter writes these.
        self.locations.sanitize(request.headers_mut());
        if self.bypass_cors_preflight && is_cors_preflight(request) {
            self.metrics.cors_preflight_bypassed.increment(1);
            return passes(false);
        }
        let seen: &dyn Request = request;
        let rule = self.rules.iter().find(|(matches, _)| matches.matches(seen));
        let Some((_, Some(need))) = rule else {
            return passes(false);
        };
        let realm = realm(request);
        let mut context = Context {
            request,
            metadata,
            now: now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            clear_route_cache: false,
            impossible: None,
        };
        match self.verify(need, &mut context).await {
            Err(reason) => {
                self.metrics.denied.increment(1);
                Err(self.refusal(reason, &realm))
            }
            Ok(()) => match context.impossible {
                Some(header) => {
                    // Its tokens are good; Envoy counts it so too.
                    self.metrics.allowed.increment(1);
                    Err(Refusal::impossible(&header))
                }
                None => passes(context.clear_route_cache),
            },
        }
    }

    fn verify<'a>(
        &'a self,
        need: &'a Need,
        context: &'a mut Context<'_>,
    ) -> Pin<Box<dyn Future<Output = Verdict> + 'a>> {
        Box::pin(async move {
            match need {
                Need::Never => Err(JwtError::UnknownIssuer),
                Need::Provider { provider, audiences } => {
                    let named = Some((provider, audiences.as_ref().unwrap_or(&provider.audiences)));
                    self.tokens(named, Leniency::Nothing, context).await
                }
                Need::Anybody(leniency) => self.tokens(None, *leniency, context).await,
                Need::All(needs) => {
                    for need in needs {
                        self.verify(need, context).await?;
                    }
                    Ok(())
                }
                Need::Any(needs, leniency) => {
                    let mut worst = JwtError::Missing;
                    for need in needs {
                        match self.verify(need, context).await {
                            Ok(()) => return Ok(()),
                            Err(error) => worst = worse(worst, error),
                        }
                    }
                    leniency.forgive(worst)
                }
            }
        })
    }

    /// Looks at all tokens of a request, those of one provider with its audiences or of all. All must be good,
    /// or the app might look at one that is not.
    async fn tokens(
        &self,
        named: Option<(&Rc<Provider>, &Audiences)>,
        leniency: Leniency,
        context: &mut Context<'_>,
    ) -> Verdict {
        let locations = named.map_or(&self.locations, |(provider, _)| &provider.locations);
        // An earlier requirement may have written them; Envoy keeps the last one's.
        locations.sanitize(context.request.headers_mut());
        let mut found = locations.find(context.request);
        // Whose failure it is; stays from one token to the next.
        let mut whose: Option<&Rc<Provider>> = None;
        let mut verdict = Err(JwtError::Missing);
        while let Some(token) = found.pop() {
            verdict = self.token(&token, named, &mut whose, context).await;
            if let Err(error) = verdict {
                self.report(error, whose, context);
                if leniency == Leniency::Nothing {
                    return verdict;
                }
            }
        }
        if verdict == Err(JwtError::Missing) {
            self.report(JwtError::Missing, None, context);
        }
        verdict.or_else(|error| leniency.forgive(error))
    }

    async fn token<'a>(
        &'a self,
        found: &Found<'_>,
        named: Option<(&'a Rc<Provider>, &'a Audiences)>,
        whose: &mut Option<&'a Rc<Provider>>,
        context: &mut Context<'_>,
    ) -> Verdict {
        let mut known = None;
        if let Some((provider, _)) = named {
            *whose = Some(provider);
            known = provider.known(&found.token);
            match known {
                Some(_) => self.metrics.jwt_cache_hit.increment(1),
                None => self.metrics.jwt_cache_miss.increment(1),
            }
        }
        let token = match &known {
            Some(token) => Rc::clone(token),
            None => Rc::new(Token::parse(&found.token)?),
        };
        if !found.issuers.allow(&token.iss) {
            return Err(JwtError::UnknownIssuer);
        }
        let (provider, audiences) = match named {
            Some(named) => named,
            None => {
                *whose = self.provider_of(&token.iss);
                let provider = whose.ok_or(JwtError::UnknownIssuer)?;
                (provider, &provider.audiences)
            }
        };
        provider.check_claims(&token, audiences, context.now)?;
        if known.is_none() {
            let keys = provider.keys.get().await?;
            keys.verify(&token)?;
            if named.is_some() {
                provider.remember(&found.token, &token, keys);
            }
        }
        provider.accept(&token, found, context);
        Ok(())
    }

    /// The first provider for an issuer, or the first for any.
    fn provider_of(&self, issuer: &str) -> Option<&Rc<Provider>> {
        let named = (!issuer.is_empty()).then(|| self.by_issuer.get(&Some(issuer.into())));
        named.flatten().or_else(|| self.by_issuer.get(&None))
    }

    /// Tells later filters why a token was not good: where its provider, or the only one, says so.
    fn report(&self, error: JwtError, whose: Option<&Rc<Provider>>, context: &mut Context<'_>) {
        let only = || {
            self.providers
                .values()
                .next()
                .filter(|_| self.providers.len() == 1)
        };
        let key = whose
            .or_else(only)
            .and_then(|provider| provider.config.failed_status_in_metadata.as_ref());
        if let Some(key) = key {
            let status = json!({ "code": error.code(), "message": error.to_string() });
            context.metadata.set(METADATA_NAMESPACE, key, status);
        }
    }

    fn refusal(&self, reason: JwtError, realm: &str) -> Refusal {
        let message = reason.to_string();
        let error = match reason {
            JwtError::Missing => "",
            _ => ", error=\"invalid_token\"",
        };
        let status = match reason {
            JwtError::AudienceNotAllowed => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        };
        let details = format!("jwt_authn_access_denied{{{}}}", message.replace(' ', "_"));
        let stripped = self.strip_failure_response;
        Refusal {
            status,
            body: if stripped { String::new() } else { message },
            www_authenticate: (!stripped)
                .then(|| HeaderValue::try_from(format!("Bearer realm=\"{realm}\"{error}").into_bytes()).ok())
                .flatten(),
            details,
            reason: Some(reason),
        }
    }
}

impl Refusal {
    /// Envoy's answer to a header that its filters made and that is none.
    fn impossible(header: &HeaderName) -> Self {
        let body = format!("invalid header value for: {header}");
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            details: format!(
                "filter_removed_required_request_headers{{{}}}",
                body.replace(' ', "_")
            ),
            body,
            www_authenticate: None,
            reason: None,
        }
    }
}

impl Need {
    fn new(requirement: &JwtRequirement, providers: &BTreeMap<Name, Rc<Provider>>) -> Self {
        let need = |requirement| Self::new(requirement, providers);
        match requirement {
            JwtRequirement::Provider { name, audiences } => match providers.get(name) {
                Some(provider) => Self::Provider {
                    provider: Rc::clone(provider),
                    audiences: audiences
                        .as_ref()
                        .filter(|audiences| !audiences.is_empty())
                        .map(|audiences| Audiences::new(audiences)),
                },
                None => Self::Never,
            },
            JwtRequirement::All(all) => Self::All(all.iter().map(need).collect()),
            JwtRequirement::Any(any) => {
                let lenient = |requirement: &JwtRequirement| match requirement {
                    JwtRequirement::AllowMissing => Some(Leniency::Missing),
                    JwtRequirement::AllowMissingOrFailed => Some(Leniency::MissingOrFailed),
                    _ => None,
                };
                let leniency = any
                    .iter()
                    .filter_map(lenient)
                    .fold(Leniency::Nothing, Leniency::max);
                let needs: Vec<Self> = any
                    .iter()
                    .filter(|one| lenient(one).is_none())
                    .map(need)
                    .collect();
                if needs.is_empty() {
                    Self::Anybody(leniency)
                } else {
                    Self::Any(needs, leniency)
                }
            }
            JwtRequirement::AllowMissing => Self::Anybody(Leniency::Missing),
            JwtRequirement::AllowMissingOrFailed => Self::Anybody(Leniency::MissingOrFailed),
        }
    }
}

impl Leniency {
    /// The one that lets more pass.
    fn max(self, other: Self) -> Self {
        match (self, other) {
            (Self::MissingOrFailed, _) | (_, Self::MissingOrFailed) => Self::MissingOrFailed,
            (Self::Missing, _) | (_, Self::Missing) => Self::Missing,
            _ => Self::Nothing,
        }
    }

    fn forgive(self, error: JwtError) -> Verdict {
        match self {
            Self::MissingOrFailed => Ok(()),
            Self::Missing if error == JwtError::Missing => Ok(()),
            _ => Err(error),
        }
    }
}

/// Which of two failed alternatives is told: one whose token was there and its own, if there is one.
fn worse(so_far: JwtError, error: JwtError) -> JwtError {
    match error {
        JwtError::Missing | JwtError::UnknownIssuer if so_far != JwtError::Missing => so_far,
        _ => error,
    }
}

impl Audiences {
    fn new(audiences: &[Arc<str>]) -> Self {
        Self(
            audiences
                .iter()
                .map(|audience| bare(audience).to_owned())
                .collect(),
        )
    }

    fn allow(&self, token: &Token) -> bool {
        self.0.is_empty() || token.aud.iter().any(|audience| self.0.contains(bare(audience)))
    }
}

/// An audience without the scheme of a URL before it and a slash behind it, which Envoy does not compare.
fn bare(audience: &str) -> &str {
    let bare = audience
        .strip_prefix("http://")
        .or_else(|| audience.strip_prefix("https://"))
        .unwrap_or(audience);
    bare.strip_suffix('/').unwrap_or(bare)
}

impl Provider {
    /// A token whose signature was good before.
    fn known(&self, text: &str) -> Option<Rc<Token>> {
        let keys = self.keys.current();
        self.cache.as_ref()?.borrow_mut().get(text, keys.as_ref())
    }

    fn remember(&self, text: &str, token: &Rc<Token>, keys: Rc<Jwks>) {
        if let Some(cache) = &self.cache {
            cache.borrow_mut().insert(text, Rc::clone(token), keys);
        }
    }

    /// Everything but the signature, `now` in seconds since 1970.
    fn check_claims(&self, token: &Token, audiences: &Audiences, now: u64) -> Verdict {
        let config = &self.config;
        token.check_time(now, config.clock_skew.as_secs())?;
        if !audiences.allow(token) {
            return Err(JwtError::AudienceNotAllowed);
        }
        let subject = config
            .subjects
            .as_ref()
            .is_none_or(|subjects| subjects.matches(&token.sub));
        let expires = token.exp != 0;
        let left = Duration::from_secs(token.exp.saturating_sub(now));
        let lifetime = match config.max_lifetime {
            Some(longest) => expires && left < longest,
            None => expires || !config.require_expiration,
        };
        if subject && lifetime {
            Ok(())
        } else {
            Err(JwtError::VerificationFails)
        }
    }

    /// Changes the request as a good token asks for.
    fn accept(&self, token: &Token, found: &Found<'_>, context: &mut Context<'_>) {
        let config = &self.config;
        if let Some(name) = &config.forward_payload_header {
            let payload = forwarded_payload(token, config.pad_forward_payload_header);
            context.append(name, &payload);
        }
        for claim in &config.claim_to_headers {
            if let Some(value) = claim_header(&token.payload, &claim.claim) {
                context.append(&claim.header, &value);
                context.clear_route_cache |= config.clear_route_cache;
            }
        }
        if !config.forward {
            found.remove(context.request);
        }
        if let Some(key) = &config.header_in_metadata {
            let header = Value::Object(token.header.clone());
            context.metadata.set(METADATA_NAMESPACE, key, header);
        }
        if let Some(key) = &config.payload_in_metadata {
            let payload = normalized_payload(token, config);
            context.metadata.set(METADATA_NAMESPACE, key, payload);
        }
    }
}

impl Context<'_> {
    fn append(&mut self, name: &str, value: &str) {
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
            return;
        };
        match HeaderValue::from_bytes(value.as_bytes()) {
            Ok(value) => drop(self.request.headers_mut().append(name, value)),
            Err(_) => self.impossible = self.impossible.take().or(Some(name)),
        }
    }
}

/// What a browser asks before a request of another origin; it sends no credentials with it.
fn is_cors_preflight(request: &dyn JwtRequest) -> bool {
    let has = |name| request.header(name).is_some_and(|value| !value.is_empty());
    request
        .header(":method")
        .is_some_and(|method| method == Method::OPTIONS.as_str())
        && has("origin")
        && has("access-control-request-method")
}

/// The URL that was asked for, of whose path and query so many bytes are told.
fn realm(request: &dyn JwtRequest) -> String {
    let text = |name| request.header(name).unwrap_or_default();
    let scheme = request
        .header(":scheme")
        .or_else(|| request.header("x-forwarded-proto"))
        .unwrap_or("http".into());
    let target = request
        .header("x-envoy-original-path")
        .unwrap_or_else(|| text(":path"));
    let path = target
        .get(..target.floor_char_boundary(REALM_PATH))
        .unwrap_or_default();
    format!("{scheme}://{}{path}", text(":authority"))
}
