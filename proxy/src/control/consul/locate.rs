//! Finding the proxy's registration and keeping it up to date.
//!
//! Owns the search among an agent's services and the watch of the one that was found. A registration
//! that goes away is waited for; what was known of it goes on serving.

use std::time::Duration;

use attache_bootstrap::config::{ConsulAgent, ManualProxy, ProxyRef};

use super::client::{Client, ConsulError};
use super::json::DecodeError;
use super::registration::{self, Listed, Registration, Upstream};
use super::watch::{REFUSED_CAP, Shared, UNREACHABLE_CAP, Watch, backoff, gauge, recovered};
use super::{SourceError, questions};
use crate::control::backoff::Backoff;

/// The watch's name in status and log.
const NAME: &str = "registration";
/// How many of an agent's other sidecars are named.
const MAX_NAMED: usize = 5;

/// The registration that stands for a proxy without one.
pub(super) fn manual(proxy: &ManualProxy, agent: &ConsulAgent) -> Registration {
    let local = proxy.local_service;
    let upstream = |u: &attache_bootstrap::config::ManualUpstream| Upstream {
        destination: u.destination.clone(),
        kind: "service".to_owned(),
        datacenter: u.datacenter.clone(),
        bind_port: u.local_bind_port,
        ..Upstream::default()
    };
    Registration {
        kind: "connect-proxy".to_owned(),
        service: proxy.service.clone(),
        namespace: agent.namespace.clone(),
        partition: agent.partition.clone(),
        address: proxy.listen.map(|a| a.ip().to_string()).unwrap_or_default(),
        port: proxy.listen.map_or(0, |a| a.port()),
        local_address: local.map(|a| a.ip().to_string()).unwrap_or_default(),
        local_port: local.map_or(0, |a| a.port()),
        upstreams: proxy.upstreams.iter().map(upstream).collect(),
        ..Registration::default()
    }
}

/// Keeps the registration up to date; `tell` gets each new one, and what waiting cannot cure.
pub(super) async fn keep(shared: Shared, proxy: ProxyRef, tell: impl Fn(Result<Registration, SourceError>)) {
    let mut search = Search {
        shared: shared.clone(),
        backoff: backoff(),
        waited: false,
    };
    loop {
        let id = match search.find(&proxy).await {
            Ok(id) => id,
            Err(refused) => {
                tell(Err(refused));
                tokio::time::sleep(search.backoff.next(REFUSED_CAP)).await;
                continue;
            }
        };
        let mut watch = Watch::new(shared.clone(), questions::registration(&id));
        loop {
            let answer = watch.next().await;
            if answer.status == 404 {
                let missing = search.gone(&proxy, &id).await;
                search.waited = true;
                if watch.absent(&missing.reason) {
                    let reason = missing.in_full();
                    tracing::warn!(watch = NAME, reason, "waiting");
                }
                watch.wait_again().await;
                // An ID that was given is asked for again by the same watch: a new one would take
                // each round for news. Any other is sought anew.
                if matches!(proxy, ProxyRef::ProxyId(_)) {
                    continue;
                }
                break;
            }
            match registration::decode(&answer.body).and_then(|found| whole(found, &id)) {
                Ok(found) => {
                    watch.accepted();
                    search.backoff.reset();
                    if std::mem::take(&mut search.waited) {
                        tracing::info!(id, service = found.service, "registration found");
                    }
                    tell(acceptable(found));
                }
                Err(error) => watch.rejected(error).await,
            }
        }
    }
}

fn whole(found: Registration, id: &str) -> Result<Registration, DecodeError> {
    if found.kind == "connect-proxy" && found.service.is_empty() {
        let why = format!("missing in the registration {id:?}");
        return Err(DecodeError::new("Proxy.DestinationServiceName", why));
    }
    Ok(found)
}

pub(super) fn acceptable(found: Registration) -> Result<Registration, SourceError> {
    match found.kind.as_str() {
        "connect-proxy" => Ok(found),
        "" | "typical" => Err(SourceError::NotAProxy { id: found.id }),
        _ => Err(SourceError::Kind {
            id: found.id,
            kind: found.kind,
        }),
    }
}

/// Looks for the registration among an agent's services.
struct Search {
    shared: Shared,
    /// Reset by a registration, not by an ID: a list may name what is not there any more.
    backoff: Backoff,
    /// That something was waited for was said.
    waited: bool,
}

impl Search {
    /// What to say of an ID that the agent does not know.
    async fn gone(&self, proxy: &ProxyRef, id: &str) -> Missing {
        let by_id = ProxyRef::ProxyId(id.to_owned());
        if matches!(proxy, ProxyRef::ProxyId(_))
            && let Ok((list, filtered)) = list(&self.shared.client).await
        {
            let token = self.shared.client.token().current();
            return missing(&by_id, &list, filtered, &token.described());
        }
        Missing {
            reason: sought(&by_id),
            others: String::new(),
            doubtful: true,
        }
    }

    /// The proxy's ID, as soon as there is one.
    async fn find(&mut self, proxy: &ProxyRef) -> Result<String, SourceError> {
        if let ProxyRef::ProxyId(id) = proxy {
            return Ok(id.clone());
        }
        if self.waited {
            tokio::time::sleep(self.backoff.next(UNREACHABLE_CAP)).await;
        }
        loop {
            let why = match list(&self.shared.client).await {
                Ok((list, filtered)) => match pick(proxy, &list)? {
                    Some(id) => return Ok(id),
                    None => {
                        let token = self.shared.client.token().current();
                        let missing = missing(proxy, &list, filtered, &token.described());
                        let status = &self.shared.status;
                        let news = status.waiting(NAME, &missing.reason);
                        recovered(status, NAME, news.was_failing);
                        self.waited = true;
                        if news.changed {
                            missing.tell();
                        }
                        None
                    }
                },
                Err(error) => Some(error),
            };
            if let Some(error) = why {
                let why = error.to_string();
                let news = self.shared.status.failing(NAME, &error.kind(), &why);
                let since = news.was_failing.unwrap_or_else(std::time::Instant::now);
                gauge(NAME, Some(since));
                if news.changed {
                    tracing::warn!(watch = NAME, why, "cannot look for the registration");
                }
            }
            let pause = self.backoff.next(Duration::from_secs(2));
            tokio::time::sleep(pause).await;
        }
    }
}

/// Why nothing fits.
pub(super) struct Missing {
    /// What is waited for and whether something may hide it; the same from round to round.
    reason: String,
    /// What the agent has instead: others come and go without that being news.
    others: String,
    /// Waiting alone may not cure it.
    doubtful: bool,
}

impl Missing {
    pub(super) fn in_full(&self) -> String {
        format!("{}{}", self.reason, self.others)
    }

    fn tell(&self) {
        let reason = self.in_full();
        if self.doubtful {
            tracing::warn!(watch = NAME, reason, "waiting");
        } else {
            tracing::info!(watch = NAME, reason, "waiting");
        }
    }
}

/// What the agent's list says about a registration that is not in it.
pub(super) fn missing(proxy: &ProxyRef, list: &[Listed], filtered: bool, token: &str) -> Missing {
    let mut reason = sought(proxy);
    let mut others: Vec<&str> = list
        .iter()
        .filter(|one| one.kind == "connect-proxy")
        .map(|one| match proxy {
            ProxyRef::SidecarFor(_) => one.service_id.as_str(),
            _ => one.id.as_str(),
        })
        .filter(|id| !id.is_empty())
        .collect();
    if others.is_empty() {
        let cause = match filtered {
            true => "ACLs hide some of the agent's services",
            false => "none is registered at this agent, or ACLs hide it",
        };
        reason.push_str(&format!("; no sidecar is visible {token}: {cause}"));
    } else if filtered {
        reason.push_str(&format!("; some of the agent's services are hidden {token}"));
    }
    let wanted = match proxy {
        ProxyRef::ProxyId(id) | ProxyRef::SidecarFor(id) => id.as_str(),
        ProxyRef::Nomad { service, .. } => service.as_str(),
        ProxyRef::Manual(_) => "",
    };
    // What is most likely meant goes first.
    others.sort_unstable_by_key(|id| (!id.contains(wanted), *id));
    others.dedup();
    let shown = &others[..others.len().min(MAX_NAMED)];
    let more = match others.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Missing {
        reason,
        doubtful: others.is_empty() || filtered,
        others: match shown {
            [] => String::new(),
            shown => format!("; the agent has: {}{more}", shown.join(", ")),
        },
    }
}

/// The agent's proxies, and whether the token hides some.
pub(super) async fn list(client: &Client) -> Result<(Vec<Listed>, bool), ConsulError> {
    let answer = client.send(&questions::services()).await?;
    match answer.refusal() {
        Some(refusal) => Err(refusal),
        None => Ok((registration::decode_list(&answer.body)?, answer.filtered)),
    }
}

/// What is waited for, in words for a person.
pub(super) fn sought(proxy: &ProxyRef) -> String {
    match proxy {
        ProxyRef::ProxyId(id) => format!("a registration with the ID {id:?}"),
        ProxyRef::SidecarFor(id) => format!("a sidecar registered for the service ID {id:?}"),
        ProxyRef::Nomad { prefix, service } => {
            format!("Nomad's registration {prefix}…-sidecar-proxy for the service {service:?}")
        }
        ProxyRef::Manual(proxy) => format!("given by hand for the service {:?}", proxy.service),
    }
}

pub(super) fn pick(proxy: &ProxyRef, list: &[Listed]) -> Result<Option<String>, SourceError> {
    let fits = |one: &&Listed| match proxy {
        ProxyRef::ProxyId(id) => one.id == *id,
        ProxyRef::SidecarFor(id) => one.kind == "connect-proxy" && one.service_id == *id,
        ProxyRef::Nomad { prefix, service } => {
            one.kind == "connect-proxy"
                && one.service == *service
                && one.id.starts_with(prefix.as_str())
                && one.id.ends_with("-sidecar-proxy")
        }
        ProxyRef::Manual(_) => false,
    };
    let mut found: Vec<String> = list.iter().filter(fits).map(|one| one.id.clone()).collect();
    found.sort();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        _ => Err(SourceError::Several {
            sought: sought(proxy),
            ids: found,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(id: &str, kind: &str, service: &str, service_id: &str) -> Listed {
        Listed {
            id: id.to_owned(),
            kind: kind.to_owned(),
            service: service.to_owned(),
            service_id: service_id.to_owned(),
        }
    }

    #[test]
    fn the_one_that_fits_is_found() {
        let list = [
            listed("api-1", "", "", ""),
            listed("api-1-sidecar-proxy", "connect-proxy", "api", "api-1"),
            listed(
                "_nomad-task-a-group-g-api-http-sidecar-proxy",
                "connect-proxy",
                "api",
                "x",
            ),
            listed(
                "_nomad-task-b-group-g-api-http-sidecar-proxy",
                "connect-proxy",
                "api",
                "y",
            ),
            listed("gw", "mesh-gateway", "", "api-1"),
        ];
        let sidecar = ProxyRef::SidecarFor("api-1".to_owned());
        let found = pick(&sidecar, &list).unwrap();
        assert_eq!(found.as_deref(), Some("api-1-sidecar-proxy"));
        let nomad = |prefix: &str| ProxyRef::Nomad {
            prefix: prefix.to_owned(),
            service: "api".to_owned(),
        };
        let found = pick(&nomad("_nomad-task-b-group-g-api-"), &list).unwrap();
        assert_eq!(
            found.as_deref(),
            Some("_nomad-task-b-group-g-api-http-sidecar-proxy")
        );
        assert_eq!(pick(&nomad("_nomad-task-c-"), &list).unwrap(), None);
        let error = pick(&nomad("_nomad-task-"), &list).unwrap_err().to_string();
        assert!(error.contains("task-a") && error.contains("task-b"), "{error}");
    }

    #[test]
    fn what_is_missing_is_said_with_what_is_there() {
        let web = ProxyRef::SidecarFor("web".to_owned());
        let nothing = missing(&web, &[listed("web", "", "", "")], false, "without a token");
        assert_eq!(
            nothing.in_full(),
            "a sidecar registered for the service ID \"web\"; no sidecar is visible without a token: \
             none is registered at this agent, or ACLs hide it"
        );
        assert!(nothing.doubtful);
        let hidden = missing(&web, &[], true, "").reason;
        assert!(
            hidden.ends_with("ACLs hide some of the agent's services"),
            "{hidden}"
        );
        let proxy = |id: &str| listed(&format!("{id}-sidecar-proxy"), "connect-proxy", "x", id);
        let list = ["a", "b", "c", "d", "e", "web-1"].map(proxy);
        let other = missing(&web, &list, false, "");
        assert_eq!(other.others, "; the agent has: web-1, a, b, c, d and 1 more");
        assert!(!other.doubtful);
        let hidden = missing(&web, &list[..1], true, "with the given token");
        assert!(
            hidden.doubtful && hidden.reason.ends_with("hidden with the given token"),
            "{}",
            hidden.reason
        );
        let id = ProxyRef::ProxyId("z".to_owned());
        assert_eq!(
            missing(&id, &list[..1], false, "").others,
            "; the agent has: a-sidecar-proxy"
        );
    }

    #[test]
    fn gateways_and_plain_services_are_refused_by_name() {
        let of = |kind: &str| Registration {
            id: "x".to_owned(),
            kind: kind.to_owned(),
            ..Registration::default()
        };
        assert!(acceptable(of("connect-proxy")).is_ok());
        let error = acceptable(of("mesh-gateway")).unwrap_err().to_string();
        assert!(error.contains("mesh-gateway"), "{error}");
        let error = acceptable(of("")).unwrap_err().to_string();
        assert!(error.contains("--sidecar-for x"), "{error}");
    }
}
