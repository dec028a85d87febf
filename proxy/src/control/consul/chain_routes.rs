//! What a discovery chain says of requests: routes, splits, balancing.
//!
//! Pure decoding, a part of [`super::chain`]; what becomes of it is decided in [`super::routes`].

use std::sync::Arc;
use std::time::Duration;

use super::json::{DecodeError, Node, TimeLimit};
use super::request_match::{headers, methods, refuse_unknown, regex};
use crate::model::cluster::LoadBalancer;
use crate::model::header_value::mutable;
use crate::model::matcher::StringMatcher;
use crate::model::matcher::StringPattern;
use crate::model::route::{
    HashPolicy, HashSource, HeaderAppendAction, HeaderMutations, HeaderValueOption, PathMatch,
    QueryParameterCheck, QueryParameterMatcher, RetryOn, RetryPolicy, RouteMatch,
};

/// Envoy's defaults, where Consul says nothing.
const RING_SIZE: (u64, u64) = (1024, 8 << 20);
const MAGLEV_TABLE: u64 = 65_537;
const CHOICE_COUNT: u32 = 2;

/// One entry of a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainRoute {
    /// Which requests.
    pub matches: RouteMatch,
    /// Whether letters of the path count as equal whatever their case, which a rewrite must know too.
    pub case_insensitive: bool,
    /// What is done with them; none leaves everything as it is.
    pub destination: Option<Destination>,
    /// The key of the node that they go to.
    pub next: String,
}

/// What a route does with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Replaces the prefix that matched; empty as it stands in the entry.
    pub prefix_rewrite: String,
    /// Bounds a request with its retries.
    pub request_timeout: TimeLimit,
    /// Bounds the silence of a stream.
    pub idle_timeout: TimeLimit,
    /// None without any retry.
    pub retry_policy: Option<Arc<RetryPolicy>>,
    /// Of its requests and responses.
    pub headers: HeaderMutations,
}

/// One leg of a splitter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// In hundredths of a percent.
    pub weight: u32,
    /// Of its requests and responses.
    pub headers: HeaderMutations,
    /// The key of the node that it goes to.
    pub next: String,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balancing {
    /// None is the default.
    pub balancer: Option<LoadBalancer>,
    /// What a request's hash is made of; empty unless the policy hashes.
    pub hash_policy: Vec<HashPolicy>,
}

/// The entries of a router.
pub(super) fn routes(node: &Node<'_>, notices: &mut Vec<String>) -> Result<Vec<ChainRoute>, DecodeError> {
    let routes = node.objects("Routes")?;
    routes.iter().map(|one| route(one, notices)).collect()
}

fn route(node: &Node<'_>, notices: &mut Vec<String>) -> Result<ChainRoute, DecodeError> {
    let mut matches = RouteMatch::path(PathMatch::Prefix("/".into()));
    let (mut case_insensitive, mut destination) = (false, None);
    if let Some(definition) = node.object("Definition")? {
        refuse_unknown(&definition, &["Match", "Destination"])?;
        if let Some(all) = definition.object("Match")? {
            refuse_unknown(&all, &["HTTP"])?;
            if let Some(http) = all.object("HTTP")? {
                case_insensitive = http.flag("CaseInsensitive")?;
                matches = route_match(&http, case_insensitive)?;
            }
        }
        if let Some(found) = definition.object("Destination")? {
            destination = Some(self::destination(&found, notices)?);
        }
    }
    Ok(ChainRoute {
        matches,
        case_insensitive,
        destination,
        next: node.need_text("NextNode")?.to_owned(),
    })
}

fn route_match(node: &Node<'_>, case_insensitive: bool) -> Result<RouteMatch, DecodeError> {
    let known = [
        "PathExact",
        "PathPrefix",
        "PathRegex",
        "CaseInsensitive",
        "Header",
        "QueryParam",
        "Methods",
    ];
    refuse_unknown(node, &known)?;
    let path = match (node.text("PathExact")?, node.text("PathPrefix")?) {
        ("", "") => match regex(node, "PathRegex")? {
            Some(regex) => PathMatch::Regex(regex),
            None => PathMatch::Prefix("/".into()),
        },
        ("", prefix) => PathMatch::Prefix(prefix.into()),
        (exact, _) => PathMatch::Path(exact.into()),
    };
    let mut headers = headers(node)?;
    headers.extend(methods(node)?);
    let parameters = node.objects("QueryParam")?;
    Ok(RouteMatch {
        // An expression says itself what it takes.
        case_sensitive: !case_insensitive || matches!(path, PathMatch::Regex(_)),
        path,
        headers,
        query_parameters: parameters.iter().map(query_parameter).collect::<Result<_, _>>()?,
    })
}

fn query_parameter(node: &Node<'_>) -> Result<QueryParameterMatcher, DecodeError> {
    refuse_unknown(node, &["Name", "Present", "Exact", "Regex"])?;
    let name = node.need_text("Name")?;
    let value = |pattern| {
        QueryParameterCheck::Value(StringMatcher {
            pattern,
            ignore_case: false,
        })
    };
    let check = match (node.text("Exact")?, regex(node, "Regex")?) {
        ("", Some(regex)) => value(StringPattern::Regex(regex)),
        ("", None) if node.flag("Present")? => QueryParameterCheck::Present(true),
        ("", None) => {
            return Err(node.error("Name", format!("nothing is asked of the parameter {name:?}")));
        }
        (exact, _) => value(StringPattern::Exact(exact.into())),
    };
    Ok(QueryParameterMatcher {
        name: name.into(),
        check,
    })
}

fn destination(node: &Node<'_>, notices: &mut Vec<String>) -> Result<Destination, DecodeError> {
    let known = [
        "Service",
        "ServiceSubset",
        "Namespace",
        "Partition",
        "PrefixRewrite",
        "RequestTimeout",
        "IdleTimeout",
        "NumRetries",
        "RetryOnConnectFailure",
        "RetryOn",
        "RetryOnStatusCodes",
        "RequestHeaders",
        "ResponseHeaders",
    ];
    for field in node.unknown(&known) {
        notices.push(format!("{field} is not honoured"));
    }
    Ok(Destination {
        prefix_rewrite: node.text("PrefixRewrite")?.to_owned(),
        request_timeout: node.time_limit("RequestTimeout")?,
        idle_timeout: node.time_limit("IdleTimeout")?,
        retry_policy: retry_policy(node, notices)?,
        headers: mutations(node)?,
    })
}

fn retry_policy(node: &Node<'_>, notices: &mut Vec<String>) -> Result<Option<Arc<RetryPolicy>>, DecodeError> {
    let (retries, words) = (node.count("NumRetries")?, node.texts("RetryOn")?);
    let connect_failure = node.flag("RetryOnConnectFailure")?;
    let codes = node.numbers("RetryOnStatusCodes")?;
    if retries == 0 && words.is_empty() && codes.is_empty() && !connect_failure {
        return Ok(None);
    }
    let mut retry_on = Vec::new();
    for word in words.iter().flat_map(|words| words.split(',')).map(str::trim) {
        match RetryOn::parse(word) {
            Some(condition) => retry_on.push(condition),
            // As in Envoy.
            None => notices.push(format!("{} {word:?} has no effect", node.path("RetryOn"))),
        }
    }
    if connect_failure && !retry_on.contains(&RetryOn::ConnectFailure) {
        retry_on.push(RetryOn::ConnectFailure);
    }
    if !codes.is_empty() {
        retry_on.push(RetryOn::RetriableStatusCodes);
    }
    let status = |code: i64| {
        let wrong = || node.error("RetryOnStatusCodes", format!("{code} is no status"));
        u16::try_from(code).map_err(|_| wrong())
    };
    let default = RetryPolicy::default();
    Ok(Some(Arc::new(RetryPolicy {
        retry_on,
        num_retries: if retries == 0 {
            default.num_retries
        } else {
            retries
        },
        retriable_status_codes: codes.into_iter().map(status).collect::<Result<_, _>>()?,
        ..default
    })))
}

/// The changes of headers that a destination or a split asks for.
fn mutations(node: &Node<'_>) -> Result<HeaderMutations, DecodeError> {
    let (request_add, request_remove) = modifiers(node, "RequestHeaders")?;
    let (response_add, response_remove) = modifiers(node, "ResponseHeaders")?;
    Ok(HeaderMutations {
        request_remove,
        request_add,
        response_remove,
        response_add,
    })
}

/// What is added and what is removed.
type Modifiers = (Vec<HeaderValueOption>, Vec<Arc<str>>);

fn modifiers(node: &Node<'_>, key: &str) -> Result<Modifiers, DecodeError> {
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    let Some(node) = node.object(key)? else {
        return Ok((added, removed));
    };
    let actions = [
        ("Add", HeaderAppendAction::AppendIfExistsOrAdd),
        ("Set", HeaderAppendAction::OverwriteIfExistsOrAdd),
    ];
    for (key, append) in actions {
        for (name, value) in node.text_map(key)? {
            let option = HeaderValueOption::new(name, value, append);
            added.push(option.map_err(|error| node.error(key, error.to_string()))?);
        }
    }
    for name in node.texts("Remove")? {
        let name = mutable(&name).map_err(|error| node.error("Remove", error.to_string()))?;
        removed.push(name.as_str().into());
    }
    Ok((added, removed))
}

/// The legs of a splitter.
pub(super) fn splits(node: &Node<'_>) -> Result<Vec<Split>, DecodeError> {
    node.objects("Splits")?.iter().map(split).collect()
}

fn split(node: &Node<'_>) -> Result<Split, DecodeError> {
    let weight = match node.value("Weight") {
        None => 0.0,
        Some(weight) => weight
            .as_f64()
            .filter(|weight| (0.0..=100.0).contains(weight))
            .ok_or_else(|| node.error("Weight", "not between 0 and 100"))?,
    };
    Ok(Split {
        weight: hundredths(weight),
        headers: match node.object("Definition")? {
            Some(definition) => mutations(&definition)?,
            None => HeaderMutations::default(),
        },
        next: node.need_text("NextNode")?.to_owned(),
    })
}

/// In Consul's single precision, so that the same weights come out.
fn hundredths(percent: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 10000, and cut off as Consul does"
    )]
    let weight = (percent as f32 * 100.0) as u32;
    weight
}

/// How the endpoints that a splitter or a resolver leads to are chosen.
pub(super) fn balancing(node: &Node<'_>) -> Result<Balancing, DecodeError> {
    let Some(node) = node.object("LoadBalancer")? else {
        return Ok(Balancing::default());
    };
    let balancer = match node.text("Policy")? {
        "" => None,
        "round_robin" => Some(LoadBalancer::RoundRobin),
        "random" => Some(LoadBalancer::Random),
        "least_request" => Some(LoadBalancer::LeastRequest {
            choice_count: match node.object("LeastRequestConfig")? {
                Some(config) => config.count("ChoiceCount")?.max(CHOICE_COUNT),
                None => CHOICE_COUNT,
            },
        }),
        "maglev" => Some(LoadBalancer::Maglev {
            table_size: MAGLEV_TABLE,
        }),
        "ring_hash" => Some(ring_hash(&node)?),
        other => return Err(node.error("Policy", format!("{other:?} is not known"))),
    };
    let hashes = matches!(
        balancer,
        Some(LoadBalancer::Maglev { .. } | LoadBalancer::RingHash { .. })
    );
    let policies = node.objects("HashPolicies")?;
    Ok(Balancing {
        balancer,
        hash_policy: match hashes {
            true => policies.iter().map(hash_policy).collect::<Result<_, _>>()?,
            false => Vec::new(),
        },
    })
}

fn ring_hash(node: &Node<'_>) -> Result<LoadBalancer, DecodeError> {
    let (mut minimum, mut maximum) = RING_SIZE;
    if let Some(config) = node.object("RingHashConfig")? {
        // An absent minimum is Consul's zero; of a maximum of zero Envoy would take nothing.
        minimum = u64::from(config.count("MinimumRingSize")?);
        maximum = match u64::from(config.count("MaximumRingSize")?) {
            0 => maximum,
            given => given,
        };
        if minimum > maximum || maximum > RING_SIZE.1 {
            let why = format!("is below the minimum or above {}", RING_SIZE.1);
            return Err(config.error("MaximumRingSize", why));
        }
    }
    Ok(LoadBalancer::RingHash {
        minimum_ring_size: minimum,
        maximum_ring_size: maximum,
    })
}

fn hash_policy(node: &Node<'_>) -> Result<HashPolicy, DecodeError> {
    let source = match node.text("Field")? {
        _ if node.flag("SourceIP")? => HashSource::SourceIp,
        "header" => HashSource::Header {
            name: node.need_text("FieldValue")?.to_ascii_lowercase().into(),
            rewrite: None,
        },
        "query_parameter" => HashSource::QueryParameter(node.need_text("FieldValue")?.into()),
        "cookie" => cookie(node)?,
        other => return Err(node.error("Field", format!("{other:?} is not known"))),
    };
    Ok(HashPolicy {
        source,
        terminal: node.flag("Terminal")?,
    })
}

fn cookie(node: &Node<'_>) -> Result<HashSource, DecodeError> {
    let (mut ttl, mut path) = (None, "");
    let config = node.object("CookieConfig")?;
    if let Some(config) = &config {
        path = config.text("Path")?;
        ttl = config.duration("TTL")?;
        if config.flag("Session")? {
            ttl = Some(Duration::ZERO);
        }
    }
    Ok(HashSource::Cookie {
        name: node.need_text("FieldValue")?.into(),
        ttl,
        path: path.into(),
    })
}
