//! From intentions to the rules of requests: what [`super::intentions`] is for connections.
//!
//! Pure. Consul's xDS server takes precedence out of intentions by subtracting each from all that follow;
//! here they stay in their order, so that a log line names the one that decided. For every caller and
//! request the outcome is the same. An intention ends with what happens to requests that it does not
//! decide, because no lower one may.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::intentions::{self, DefaultPolicy, Destination, Intention};
use super::jwt_provider::Provider;
use super::permissions::{JwtTerms, RequestPermission};
use crate::model::matcher::{MetadataMatcher, StringMatcher};
use crate::model::rbac::{Action, Permission, Principal, Rbac, Rule};

/// The filter whose metadata has the payloads.
const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";

/// What is known of the providers; `None` for one that Consul does not have.
pub(super) type Providers = BTreeMap<String, Option<Provider>>;

/// The key under which the payload of a token of `provider` is found.
pub(super) fn payload_key(provider: &str) -> String {
    format!("jwt_payload_{provider}")
}

/// The rules in order of precedence, over `default`.
pub(super) fn compile(
    intentions: &[Intention],
    default: &DefaultPolicy,
    to: &Destination<'_>,
    providers: &Providers,
    notices: &mut BTreeSet<String>,
) -> Rbac {
    let mut writer = Writer {
        to,
        providers,
        fallback: match default {
            DefaultPolicy::Known(action) => *action,
            DefaultPolicy::Unknown(_) => Action::Deny,
        },
        rules: Vec::new(),
        notices,
    };
    for intention in intentions {
        writer.intention(intention);
    }
    intentions::over_default(writer.rules, intentions, default)
}

/// One of several tokens that would do.
enum Jwt {
    /// Nothing is asked.
    NotAsked,
    /// The conditions of each that is enough.
    OneOf(Vec<Vec<MetadataMatcher>>),
    /// Nobody is known who could have issued it.
    NoProvider {
        /// The first that is named.
        name: String,
        /// Consul was asked and has none; otherwise it has not answered yet.
        missing: bool,
    },
}

struct Writer<'a> {
    to: &'a Destination<'a>,
    providers: &'a Providers,
    /// The default policy's.
    fallback: Action,
    rules: Vec<Rule>,
    notices: &'a mut BTreeSet<String>,
}

impl Writer<'_> {
    fn intention(&mut self, intention: &Intention) {
        let names = intention.names();
        if !intention.source_peer.is_empty() {
            let peer = &intention.source_peer;
            self.notices.insert(format!(
                "intention {names}: its source is in the cluster peer {peer:?}, whose authority the HTTP API \
                 does not tell: its callers are refused"
            ));
            return;
        }
        let terms = &intention.terms;
        if let Some(why) = &terms.unclear {
            let what = format!("{names}: deny (it cannot be carried out: {why})");
            self.notices.insert(format!("intention {what}"));
            self.rules.push(intention.rule_for(self.to, Action::Deny, what));
            return;
        }
        let plain = terms.permissions.is_empty() && terms.jwt.is_empty();
        if plain || !intention.is_whole() || !intention.action_is_known() {
            self.rules.extend(intention.plain_rule(self.to));
            return;
        }
        if terms.permissions.is_empty() {
            self.connection(intention, &names);
        } else {
            for (index, permission) in terms.permissions.iter().enumerate() {
                let what = format!("permission {}", index + 1);
                self.permission(intention, permission, &format!("{names}: {what}"));
            }
            self.rest(
                intention,
                format!("{names}: no permission matches"),
                self.fallback,
            );
        }
    }

    /// An action under the condition of a JWT.
    fn connection(&mut self, intention: &Intention, names: &str) {
        let action = intention.plain_action();
        let all = RequestPermission {
            action,
            requests: Permission::Any,
            jwt: Vec::new(),
        };
        self.permission(intention, &all, names);
    }

    fn permission(&mut self, intention: &Intention, permission: &RequestPermission, name: &str) {
        let action = permission.action;
        let of_all = self.jwt(&intention.terms.jwt);
        let of_these = self.jwt(&permission.jwt);
        let mut rule = intention.rule_for(self.to, action, format!("{name}: {action}"));
        rule.permission = permission.requests.clone();
        match (&of_all, &of_these) {
            (Jwt::NotAsked, Jwt::NotAsked) => {
                self.rules.push(rule);
                return;
            }
            (Jwt::NoProvider { name: of, missing }, _) | (_, Jwt::NoProvider { name: of, missing }) => {
                let yet = if *missing { "" } else { " yet" };
                let what = format!("{name}: deny (its JWT provider {of:?} is not known{yet})");
                // That Consul does not answer is told by whoever asks it.
                if *missing {
                    self.notices.insert(format!("intention {what}"));
                }
                let mut denied = intention.rule_for(self.to, Action::Deny, what);
                denied.permission = permission.requests.clone();
                self.rules.push(denied);
                return;
            }
            _ => {}
        }
        if action == self.fallback {
            self.notices.insert(format!(
                "intention {name}: as in Consul its JWT is not asked for, because the default policy is {action} \
                 as well"
            ));
        }
        if let Jwt::OneOf(tokens) = of_all {
            let conditions = tokens.into_iter().map(|all| {
                let all = all.into_iter().map(Principal::Metadata).collect();
                Principal::All(all)
            });
            let any = Principal::AnyOf(conditions.collect());
            rule.principal = Principal::All(vec![rule.principal, any]);
        }
        if let Jwt::OneOf(tokens) = of_these {
            let conditions = tokens.into_iter().map(|all| {
                let all = all.into_iter().map(Permission::Metadata).collect();
                Permission::All(all)
            });
            let any = Permission::AnyOf(conditions.collect());
            rule.permission = Permission::All(vec![rule.permission, any]);
        }
        self.rules.push(rule);
        let fallback = self.fallback;
        let mut rest = intention.rule_for(self.to, fallback, format!("{name}: {fallback} without its JWT"));
        rest.permission = permission.requests.clone();
        self.rules.push(rest);
    }

    /// What happens to requests that an intention does not decide.
    fn rest(&mut self, intention: &Intention, name: String, action: Action) {
        let rule = intention.rule_for(self.to, action, format!("{name}: {action}"));
        self.rules.push(rule);
    }

    fn jwt(&self, terms: &[JwtTerms]) -> Jwt {
        if terms.is_empty() {
            return Jwt::NotAsked;
        }
        let known = terms.iter().filter_map(|one| {
            let provider = self.providers.get(&one.provider)?.as_ref()?;
            Some(conditions(one, &provider.issuer))
        });
        let tokens: Vec<_> = known.collect();
        match (tokens.is_empty(), terms.first()) {
            (true, Some(first)) => Jwt::NoProvider {
                name: first.provider.clone(),
                missing: terms.iter().all(|one| self.providers.contains_key(&one.provider)),
            },
            _ => Jwt::OneOf(tokens),
        }
    }
}

/// That the token is of this issuer and says what it must.
fn conditions(terms: &JwtTerms, issuer: &str) -> Vec<MetadataMatcher> {
    let key: Arc<str> = payload_key(&terms.provider).into();
    let condition = |path: &mut dyn Iterator<Item = Arc<str>>, value: &str| MetadataMatcher {
        filter: JWT_FILTER.into(),
        path: std::iter::once(Arc::clone(&key)).chain(path).collect(),
        value: StringMatcher::exact(value),
        invert: false,
    };
    let mut all = vec![condition(&mut std::iter::once("iss".into()), issuer)];
    for claim in &terms.claims {
        let mut path = claim.path.iter().map(|part| Arc::from(part.as_str()));
        all.push(condition(&mut path, &claim.value));
    }
    all
}

#[cfg(test)]
#[path = "request_rules_tests.rs"]
mod tests;
