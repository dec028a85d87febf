//! The tags that Envoy knows of itself, and where in a name their values stand.
//!
//! The names and places are those that Envoy documents and shows (`envoy.cluster_name` and its like);
//! only those of statistics that a Consul sidecar can have.

use std::ops::Range;

/// A value found, and the part of the name that goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Left out of the name.
    pub remove: Range<usize>,
    /// The tag's value.
    pub value: Range<usize>,
}

/// Looks for a tag in a full dotted name.
pub(super) type Find = fn(&str) -> Option<Found>;

/// One way in which a name can hold a tag.
#[derive(Debug)]
pub(super) struct Rule {
    /// The tag, such as `envoy.cluster_name`.
    pub tag: &'static str,
    /// What the name must begin with, up to its first dot; none for a rule of any name.
    pub first_word: Option<&'static str>,
    /// The look.
    pub find: Find,
}

pub(super) const fn any(tag: &'static str, find: Find) -> Rule {
    Rule {
        tag,
        first_word: None,
        find,
    }
}

pub(super) const fn of(first_word: &'static str, tag: &'static str, find: Find) -> Rule {
    Rule {
        tag,
        first_word: Some(first_word),
        find,
    }
}

/// The rules in Envoy's order. Patterns are words between dots: `*` is any one, `$` the value, and `**`
/// the rest, at least one word.
pub(super) const WELL_KNOWN: [Rule; 26] = [
    any("envoy.response_code", response_code),
    any("envoy.response_code_class", response_code_class),
    of("listener", "envoy.ssl_cipher", |name| ssl(name, ".ssl.ciphers.")),
    any("envoy.ssl_curve", |name| ssl(name, ".ssl.curves.")),
    any("envoy.ssl_sigalg", |name| ssl(name, ".ssl.sigalgs.")),
    any("envoy.ssl_version", |name| ssl(name, ".ssl.versions.")),
    any("envoy.tls_certificate", tls_certificate),
    of("cluster", "envoy.ssl_cipher_suite", |name| {
        let found = words(name, "cluster.*.ssl.ciphers.$")?;
        // The dot before the value goes with it, not the one after.
        Some(Found {
            remove: found.value.start - 1..found.value.end,
            value: found.value,
        })
    }),
    of("listener", "envoy.http_conn_manager_prefix", listener_http),
    any("envoy.worker_id", worker_id),
    of("listener", "envoy.listener_address", |name| {
        let end = listener_address(name)?;
        let value = "listener.".len()..end;
        (&name[value.clone()] != "admin").then(|| word(value))
    }),
    of("http", "envoy.rds_route_config", rds_route_config),
    of("cluster", "envoy.grpc_bridge_method", |n| {
        words(n, "cluster.*.grpc.*.$.**")
    }),
    of("http", "envoy.http_user_agent", |n| {
        words(n, "http.*.user_agent.$.**")
    }),
    of("http", "envoy.rbac_http_prefix", |n| words(n, "http.*.rbac.$.**")),
    of("vhost", "envoy.virtual_cluster", |n| {
        words(n, "vhost.*.vcluster.$.**")
    }),
    of("cluster", "envoy.grpc_bridge_service", |n| {
        words(n, "cluster.*.grpc.$.**")
    }),
    of("tcp", "envoy.tcp_prefix", |n| words(n, "tcp.$.**")),
    of("cluster", "envoy.cluster_name", |n| words(n, "cluster.$.**")),
    of("http", "envoy.http_conn_manager_prefix", |n| {
        words(n, "http.$.**")
    }),
    of("vhost", "envoy.virtual_host", |n| words(n, "vhost.$.**")),
    of("vhost", "envoy.route", |n| words(n, "vhost.*.route.$.**")),
    any("envoy.local_http_ratelimit_prefix", |n| {
        words(n, "$.http_local_rate_limit.**")
    }),
    of("local_rate_limit", "envoy.local_network_ratelimit_prefix", |n| {
        words(n, "local_rate_limit.$.**")
    }),
    of("connection_limit", "envoy.connection_limit_prefix", |n| {
        words(n, "connection_limit.$.**")
    }),
    any("envoy.rbac_prefix", |n| words(n, "$.rbac.**")),
];

/// The rules of one tag, Envoy's own or Consul's.
pub(super) fn named(tag: &str) -> impl Iterator<Item = &'static Rule> {
    let all = WELL_KNOWN.iter().chain(&super::consul::RULES);
    all.filter(move |rule| rule.tag == tag)
}

/// A value with the dot that ends it.
fn word(value: Range<usize>) -> Found {
    Found {
        remove: value.start..value.end + 1,
        value,
    }
}

/// Matches a name against words; see [`WELL_KNOWN`].
fn words(name: &str, pattern: &str) -> Option<Found> {
    let mut at = 0;
    let mut value = None;
    let mut rest = Some(name);
    for wanted in pattern.split('.') {
        let left = rest?;
        if wanted == "**" {
            return value.map(word);
        }
        let (found, after) = match left.split_once('.') {
            Some((found, after)) => (found, Some(after)),
            None => (left, None),
        };
        match wanted {
            "*" => {}
            "$" if found.is_empty() => return None,
            "$" => value = Some(at..at + found.len()),
            literal if literal == found => {}
            _ => return None,
        }
        at += found.len() + 1;
        rest = after;
    }
    rest.is_none().then_some(value)?.map(word)
}

/// `…_rq_200`: the code, with the underscore before it.
fn response_code(name: &str) -> Option<Found> {
    let at = name.len().checked_sub(3)?;
    let code = name.as_bytes().get(at..)?;
    (code.iter().all(u8::is_ascii_digit) && name.get(..at)?.ends_with("_rq_")).then(|| Found {
        remove: at - 1..name.len(),
        value: at..name.len(),
    })
}

/// `…_rq_2xx`: the digit.
fn response_code_class(name: &str) -> Option<Found> {
    let head = name.strip_suffix("xx")?;
    let at = head.len().checked_sub(1)?;
    let digit = head.as_bytes()[at].is_ascii_digit();
    (digit && head[..at].ends_with("_rq_")).then(|| Found {
        remove: at..at + 1,
        value: at..at + 1,
    })
}

fn of_listener_or_cluster(name: &str) -> bool {
    name.starts_with("listener.") || name.starts_with("cluster.")
}

/// `listener.<address>.ssl.curves.<value>` and its like: the value with the dot before it.
fn ssl(name: &str, marker: &str) -> Option<Found> {
    let at = name.rfind(marker)? + marker.len();
    let value = &name[at..];
    // A version has a dot of its own: `TLSv1.3`.
    let whole = value.starts_with("TLSv") || !value.contains('.');
    (of_listener_or_cluster(name) && whole && !value.is_empty()).then(|| Found {
        remove: at - 1..name.len(),
        value: at..name.len(),
    })
}

/// `….ssl.certificate.<name>.expiration_unix_time_seconds`: the name with the dot before it.
fn tls_certificate(name: &str) -> Option<Found> {
    let head = name.strip_suffix(".expiration_unix_time_seconds")?;
    let at = head.rfind(".ssl.certificate.")? + ".ssl.certificate.".len();
    of_listener_or_cluster(name).then(|| Found {
        remove: at - 1..head.len(),
        value: at..head.len(),
    })
}

/// Where the address (or stat prefix) of `listener.<address>.…` ends. An IPv4 address has dots.
fn listener_address(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("listener.")?;
    let mut dots = rest.match_indices('.').map(|(at, _)| at);
    let first = dots.next()?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let dotted = dots.nth(2).filter(|end| {
        rest[..*end]
            .rsplit_once('_')
            .is_some_and(|(address, port)| digits(port) && address.parse::<std::net::Ipv4Addr>().is_ok())
    });
    let end = dotted.unwrap_or(first);
    (end > 0).then_some("listener.".len() + end)
}

/// `listener.<address>.http.<prefix>.…`
fn listener_http(name: &str) -> Option<Found> {
    let address = listener_address(name)?;
    let at = address + name[address..].find(".http.")? + ".http.".len();
    let length = name[at..].find('.')?;
    (length > 0).then(|| word(at..at + length))
}

/// `worker_<id>.` after a listener, the server or a manager: the number with the dot after it.
fn worker_id(name: &str) -> Option<Found> {
    let owners = ["server.", "listener_manager.", "thread_local_cluster_manager."];
    let before = match owners.iter().find(|owner| name.starts_with(**owner)) {
        Some(owner) => owner.len(),
        None => listener_address(name)? + 1,
    };
    let number = name.get(before..)?.strip_prefix("worker_")?;
    let end = number.find('.')?;
    let at = before + "worker_".len();
    (end > 0 && number[..end].bytes().all(|b| b.is_ascii_digit())).then(|| word(at..at + end))
}

/// `http.<prefix>.rds.<route>.<what>`: a route's name may have dots.
fn rds_route_config(name: &str) -> Option<Found> {
    let (head, _) = name.rsplit_once('.')?;
    let (prefix, _) = name.strip_prefix("http.")?.split_once('.')?;
    let at = "http.".len() + prefix.len() + ".rds.".len();
    let in_place = name.get(at - ".rds.".len()..at)? == ".rds.";
    (in_place && head.len() > at).then(|| word(at..head.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(tag: &str, name: &str) -> Option<(String, String)> {
        let found = named(tag).find_map(|rule| {
            let word = name.split('.').next();
            (rule.first_word.is_none() || rule.first_word == word)
                .then(|| (rule.find)(name))
                .flatten()
        })?;
        let mut rest = name.to_owned();
        rest.replace_range(found.remove, "");
        Some((name[found.value].to_owned(), rest))
    }

    /// What is found where: the tag, the name, the value, and what is left of the name.
    const FOUND: &str = "
        response_code in cluster.a.upstream_rq_503 is 503 and leaves cluster.a.upstream_rq
        response_code_class in http.a.downstream_rq_2xx is 2 and leaves http.a.downstream_rq_xx
        cluster_name in cluster.a.b is a and leaves cluster.b
        tcp_prefix in tcp.upstream.api.default.x is upstream and leaves tcp.api.default.x
        rbac_prefix in connect_authz.rbac.allowed is connect_authz and leaves rbac.allowed
        connection_limit_prefix in connection_limit.in.limited is in and leaves connection_limit.limited
        listener_address in listener.127.0.0.1_80.x is 127.0.0.1_80 and leaves listener.x
        listener_address in listener.[__1]_80.x is [__1]_80 and leaves listener.x
        listener_address in listener.named.ssl.x is named and leaves listener.ssl.x
        worker_id in listener.127.0.0.1_80.worker_3.x is 3 and leaves listener.127.0.0.1_80.worker_x
        worker_id in server.worker_0.miss is 0 and leaves server.worker_miss
        http_conn_manager_prefix in listener.127.0.0.1_80.http.in.x is in and leaves listener.127.0.0.1_80.http.x
        ssl_version in cluster.a.b.ssl.versions.TLSv1.3 is TLSv1.3 and leaves cluster.a.b.ssl.versions
        ssl_curve in listener.0.0.0.0_1.ssl.curves.X25519 is X25519 and leaves listener.0.0.0.0_1.ssl.curves
        ssl_cipher in listener.0.0.0.0_1.ssl.ciphers.A is A and leaves listener.0.0.0.0_1.ssl.ciphers
        ssl_cipher_suite in cluster.a.ssl.ciphers.A is A and leaves cluster.a.ssl.ciphers
        tls_certificate in cluster.a.b.ssl.certificate.c.expiration_unix_time_seconds is c and leaves cluster.a.b.ssl.certificate.expiration_unix_time_seconds
        grpc_bridge_method in cluster.a.grpc.s.m.0 is m and leaves cluster.a.grpc.s.0
        grpc_bridge_service in cluster.a.grpc.s.m.0 is s and leaves cluster.a.grpc.m.0
        rbac_http_prefix in http.a.rbac.p.allowed is p and leaves http.a.rbac.allowed
        rds_route_config in http.a.rds.r.s.update is r.s and leaves http.a.rds.update
    ";

    #[test]
    fn values_are_found_where_envoy_finds_them() {
        for line in FOUND.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let [tag, _, name, _, value, _, _, rest] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{line}");
            };
            let wanted = Some((value.to_owned(), rest.to_owned()));
            assert_eq!(found(&format!("envoy.{tag}"), name), wanted, "{name}");
        }
    }

    #[test]
    fn and_not_elsewhere() {
        for (tag, name) in [
            ("response_code", "cluster.a.upstream_rq_50x"),
            ("response_code", "_rq"),
            ("response_code_class", "xx"),
            ("cluster_name", "cluster.a"),
            ("tcp_prefix", "tcp..x"),
            ("rbac_http_prefix", "http.public_listener.rbac.allowed"),
            ("rbac_prefix", "http.public_listener.rbac.allowed"),
            ("listener_address", "listener.admin.x"),
            ("listener_address", "listener."),
            ("worker_id", "listener.127.0.0.1_80.worker_.x"),
            ("worker_id", "server.worker_1"),
            ("ssl_cipher_suite", "cluster.a.b.ssl.ciphers.A"),
            ("rds_route_config", "http.a.b.rds.r.update"),
            ("rds_route_config", "http.a.rds.x"),
        ] {
            assert_eq!(found(&format!("envoy.{tag}"), name), None, "{name}");
        }
    }

    #[test]
    fn no_name_makes_a_rule_panic() {
        let pieces = [
            "",
            "listener",
            "http",
            "é",
            "_rq_",
            "2xx",
            "1.2.3.4_5",
            "ssl.versions",
            "rds",
            ".",
            "worker_1",
        ];
        for a in pieces {
            for b in pieces {
                for c in pieces {
                    let name = format!("{a}.{b}.{c}");
                    for rule in &WELL_KNOWN {
                        if let Some(found) = (rule.find)(&name) {
                            assert!(
                                name.get(found.remove).is_some() && name.get(found.value).is_some(),
                                "{name}"
                            );
                        }
                    }
                }
            }
        }
    }
}
