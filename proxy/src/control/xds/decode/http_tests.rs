//! Decoding of HTTP, from JSON as Consul's resources read.

use attache_proto::TypeUrl;
use attache_proto::envoy::config::listener::v3::Listener as WireListener;
use attache_proto::envoy::config::route::v3::RouteConfiguration as WireTable;
use attache_proto::json::{Diagnostics, to_wire};
use serde_json::{Value, json};

use super::super::testing::Bench;
use super::super::{listener, route};
use super::*;
use crate::model::http::{HttpFilter, LocalRateLimit, MetadataValue, Sampling};
use crate::model::jwt::{Jwks, JwtRequirement};
use crate::model::matcher::StringPattern;
use crate::model::rbac::Permission;
use crate::model::route::{
    ClusterSpecifier, HashSource, HeaderAppendAction, IdleTimeout, PathMatch, PathRewrite, RetryOn,
    RouteConfiguration, RouteDecision,
};

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";

fn router() -> Value {
    json!({"name": "envoy.filters.http.router", "typed_config": {"@type": format!("{FILTERS}.http.router.v3.Router")}})
}

/// As Consul writes it for an exposed path.
fn exposed() -> Value {
    json!({
        "stat_prefix": "exposed_path_filter_health_21500",
        "http_filters": [router()],
        "route_config": {"name": "r", "virtual_hosts": [{
            "name": "v", "domains": ["*"],
            "routes": [{"match": {"path": "/health"}, "route": {"cluster": "local_app"}}],
        }]},
        "tracing": {"random_sampling": {}},
        "upgrade_configs": [{"upgrade_type": "websocket"}],
    })
}

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut manager = exposed();
    change(&mut manager);
    manager
}

/// Before the router.
fn filter(kind: &str, mut config: Value) -> Value {
    config["@type"] = format!("{FILTERS}.http.{kind}").into();
    with(|m| m["http_filters"] = json!([{"name": "f", "typed_config": config}, router()]))
}

fn listen(manager: &Value) -> Result<(Arc<HttpConnectionManager>, Vec<String>), String> {
    let mut config = manager.clone();
    config["@type"] = format!("{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager").into();
    let json = json!({
        "name": "l",
        "traffic_direction": "INBOUND",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}},
        "filter_chains": [{"filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": config},
        ]}],
    });
    let mut diagnostics = Diagnostics::default();
    let bytes = to_wire(WireListener::TYPE_NAME, &json, &mut diagnostics).unwrap();
    assert!(diagnostics.warnings.is_empty(), "{:?}", diagnostics.warnings);
    let mut bench = Bench::default();
    let mut ctx = bench.context();
    let listener = listener::decode_bytes(&bytes, &mut ctx).map_err(|error| error.to_string())?;
    let Terminal::HttpConnectionManager(manager) = &listener.filter_chains[0].terminal else {
        panic!("HTTP")
    };
    Ok((Arc::clone(manager), ctx.notices.into_iter().collect()))
}

fn decoded(manager: &Value) -> Arc<HttpConnectionManager> {
    listen(manager).unwrap().0
}

fn refused(manager: &Value) -> String {
    listen(manager).unwrap_err()
}

fn table(json: &Value) -> Result<RouteConfiguration, String> {
    let bytes = to_wire(WireTable::TYPE_NAME, json, &mut Diagnostics::default()).unwrap();
    route::decode_bytes(&bytes, &mut Bench::default().context()).map_err(|error| error.to_string())
}

fn routes(routes: Value) -> Result<RouteConfiguration, String> {
    table(&json!({"name": "web", "virtual_hosts": [{"name": "web", "domains": ["*"], "routes": routes}]}))
}

#[test]
fn what_is_absent_has_envoys_defaults() {
    let manager = decoded(&exposed());
    assert_eq!(manager.limits, HttpLimits::default());
    assert_eq!(manager.normalization, Normalization::default());
    assert_eq!(manager.forwarding, Forwarding::default());
    assert_eq!(manager.server_header, ServerHeader::default());
    assert_eq!(manager.request_id, RequestId::default());
    assert_eq!(manager.codec, Codec::Auto);
    assert_eq!(*manager.upgrade_types, ["websocket".into()]);
    let tracing = manager.tracing.as_ref().unwrap();
    assert_eq!(tracing.random_sampling.of_ten_thousand(), 0);
    assert_eq!(tracing.overall_sampling.of_ten_thousand(), 10_000);
}

#[test]
fn what_is_set_is_carried_over() {
    let manager = decoded(&with(|m| {
        m["codec_type"] = json!("HTTP1");
        m["http2_protocol_options"] = json!({"max_concurrent_streams": 7});
        m["forward_client_cert_details"] = json!("APPEND_FORWARD");
        m["set_current_client_cert_details"] =
            json!({"subject": true, "cert": true, "chain": true, "dns": true, "uri": true});
        m["normalize_path"] = json!(true);
        m["merge_slashes"] = json!(true);
        m["path_with_escaped_slashes_action"] = json!("UNESCAPE_AND_FORWARD");
        m["common_http_protocol_options"] =
            json!({"headers_with_underscores_action": "REJECT_REQUEST", "idle_timeout": "0s"});
        m["strip_any_host_port"] = json!(true);
        m["max_request_headers_kb"] = json!(96);
        m["stream_idle_timeout"] = json!("0s");
        m["server_name"] = json!("x");
    }));
    let details = manager.forward_client_cert;
    assert_eq!(details.mode, ForwardClientCertMode::AppendForward);
    let all = details.set_current;
    assert!(all.subject && all.cert && all.chain && all.dns && all.uri);
    assert_eq!(
        manager.normalization,
        Normalization {
            normalize_path: true,
            merge_slashes: true,
            path_with_escaped_slashes: PathWithEscapedSlashes::UnescapeAndForward,
            headers_with_underscores: HeadersWithUnderscores::RejectRequest,
            strip_host_port: StripHostPort::Any,
            strip_trailing_host_dot: false,
        }
    );
    assert_eq!(manager.codec, Codec::Http1);
    assert_eq!(manager.http2.unwrap().max_concurrent_streams, Some(7));
    assert_eq!(manager.limits.max_request_headers_kb, 96);
    assert_eq!(
        (manager.limits.stream_idle_timeout, manager.limits.idle_timeout),
        (None, None)
    );
    assert_eq!(&*manager.server_header.name, "x");
}

#[test]
fn what_cannot_be_carried_out_is_refused_by_its_name() {
    for (change, field) in [
        (json!({"codec_type": "HTTP3"}), "codec_type"),
        (json!({"max_request_headers_kb": 0}), "max_request_headers_kb"),
        (
            json!({"http_protocol_options": {"accept_http_10": true}}),
            "accept_http_10",
        ),
        (
            json!({"http2_protocol_options": {"allow_metadata": true}}),
            "allow_metadata",
        ),
        (
            json!({"strip_any_host_port": true, "strip_matching_host_port": true}),
            "strip_matching_host_port",
        ),
        (json!({"http_filters": []}), "http_filters"),
        (json!({"http_filters": [router(), router()]}), "behind the router"),
        (
            json!({"set_current_client_cert_details": {"issuer": true}}),
            "set_current_client_cert_details.issuer",
        ),
        (
            json!({"tracing": {"random_sampling": {"value": 101}}}),
            "tracing.random_sampling",
        ),
    ] {
        let error = refused(&with(|m| {
            for (key, value) in change.as_object().unwrap() {
                m[key] = value.clone();
            }
        }));
        assert!(
            error.contains("filter_chains[0].filters[0]") && error.contains(field),
            "{field}: {error}"
        );
    }
    for (kind, config, word) in [
        ("lua.v3.Lua", json!({}), "lua"),
        ("wasm.v3.Wasm", json!({}), "wasm"),
        ("aws_lambda.v3.Config", json!({"arn": "a"}), "aws_lambda"),
        ("ext_authz.v3.ExtAuthz", json!({}), "ext_authz"),
    ] {
        let error = refused(&filter(kind, config));
        assert!(error.contains(&format!("\"f\" is {word}")), "{error}");
    }
}

#[test]
fn the_filters_that_consul_writes() {
    let rbac = decoded(&filter(
        "rbac.v3.RBAC",
        json!({"rules": {"policies": {"consul-intentions-layer7-0": {
            "principals": [{"authenticated": {"principal_name": {"safe_regex": {"regex": "^spiffe://[^/]+/x$"}}}}],
            "permissions": [{"url_path": {"path": {"prefix": "/v1/"}}}],
        }}}}),
    ));
    let [
        HttpFilter::Rbac {
            rules: Some(rules), ..
        },
    ] = &rbac.http_filters[..]
    else {
        panic!("rbac")
    };
    let Permission::UrlPath(path) = &rules.rules[0].permission else {
        panic!("{:?}", rules.rules[0].permission)
    };
    assert_eq!(path.pattern, StringPattern::Prefix("/v1/".into()));

    let metadata = decoded(&filter(
        "header_to_metadata.v3.Config",
        json!({"request_rules": [{"header": "X-Forwarded-Client-Cert", "on_header_present": {
            "metadata_namespace": "consul", "key": "trust-domain",
            "regex_value_rewrite": {"pattern": {"regex": ".*URI=spiffe://([^/]+)/.*"}, "substitution": "\\1"},
        }}]}),
    ));
    let [HttpFilter::HeaderToMetadata(metadata)] = &metadata.http_filters[..] else {
        panic!("header_to_metadata")
    };
    let entry = metadata.request_rules[0].on_present.as_ref().unwrap();
    let MetadataValue::Rewritten(rewrite) = &entry.value else {
        panic!("{:?}", entry.value)
    };
    assert_eq!(
        rewrite.rewrite("By=x;URI=spiffe://td.consul/ns/default"),
        "td.consul"
    );

    let grpc = decoded(&filter(
        "grpc_stats.v3.FilterConfig",
        json!({"stats_for_all_methods": true}),
    ));
    assert!(matches!(&grpc.http_filters[..], [HttpFilter::GrpcStats(stats)] if stats.stats_for_all_methods));
    let bridge = decoded(&filter("grpc_http1_bridge.v3.Config", json!({})));
    assert_eq!(bridge.http_filters, [HttpFilter::GrpcHttp1Bridge]);
}

fn local_rate_limit(change: impl FnOnce(&mut Value)) -> Value {
    let mut config = json!({
        "stat_prefix": "limit",
        "token_bucket": {"max_tokens": 4, "tokens_per_fill": 2, "fill_interval": "1s"},
        "filter_enabled": {"default_value": {"numerator": 100}},
        "filter_enforced": {"default_value": {"numerator": 5000, "denominator": "TEN_THOUSAND"}},
        "response_headers_to_add": [{"header": {"key": "X-Limited", "value": "yes"}}],
    });
    change(&mut config);
    filter("local_ratelimit.v3.LocalRateLimit", config)
}

#[test]
fn a_local_rate_limit_is_one_bucket() {
    let limit = |change: fn(&mut Value)| {
        let manager = decoded(&local_rate_limit(change));
        match &manager.http_filters[..] {
            [HttpFilter::LocalRateLimit(limit)] => LocalRateLimit::clone(limit),
            other => panic!("{other:?}"),
        }
    };
    let full = limit(|_| {});
    let bucket = full.bucket.unwrap();
    assert_eq!((bucket.max_tokens, bucket.tokens_per_fill), (4, 2));
    assert_eq!(bucket.fill_interval.as_secs(), 1);
    assert_eq!(
        (full.enabled, full.enforced.of_ten_thousand()),
        (Sampling::ALL, 5000)
    );
    assert_eq!(full.status, 429);
    assert_eq!(full.response_headers_to_add[0].name, "x-limited");

    let bare = limit(|config| *config = json!({"stat_prefix": "limit", "status": {"code": 200}}));
    assert_eq!(
        (bare.bucket, bare.enabled.of_ten_thousand(), bare.status),
        (None, 0, 429)
    );
    assert_eq!(
        limit(|config| config["status"] = json!({"code": 503})).status,
        503
    );
    let single = limit(|config| config["token_bucket"] = json!({"max_tokens": 1, "fill_interval": "0.05s"}));
    assert_eq!(single.bucket.unwrap().tokens_per_fill, 1);
}

#[test]
fn a_local_rate_limit_that_would_let_more_pass_is_refused() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 7] = [
        (|config| config["descriptors"] = json!([{}]), "descriptors"),
        (
            |config| config["enable_x_ratelimit_headers"] = "DRAFT_VERSION_03".into(),
            "enable_x_ratelimit_headers",
        ),
        (
            |config| config["token_bucket"]["fill_interval"] = "0.049s".into(),
            "token_bucket.fill_interval",
        ),
        (
            |config| config["token_bucket"]["max_tokens"] = 0.into(),
            "token_bucket.max_tokens",
        ),
        (
            |config| config["token_bucket"]["tokens_per_fill"] = 0.into(),
            "token_bucket.tokens_per_fill",
        ),
        (|config| config["stat_prefix"] = "".into(), "stat_prefix"),
        (
            |config| config["enable_retry_after_header"] = true.into(),
            "enable_retry_after_header",
        ),
    ];
    for (change, field) in cases {
        let why = refused(&local_rate_limit(change));
        assert!(why.contains(field), "{field}: {why}");
    }
}

fn provider(remote: Value) -> Value {
    filter(
        "jwt_authn.v3.JwtAuthentication",
        json!({
            "providers": {"okta": {
                "issuer": "https://okta", "audiences": ["a"], "payload_in_metadata": "jwt_payload_okta",
                "from_headers": [{"name": "Authorization", "value_prefix": "Bearer "}],
                "remote_jwks": remote,
            }},
            "rules": [{"match": {"prefix": "/"}, "requires": {"requires_any": {"requirements": [
                {"provider_name": "okta"}, {"allow_missing_or_failed": {}},
            ]}}}],
        }),
    )
}

#[test]
fn jwt_with_consuls_cache_duration() {
    let remote = |cache: &str| {
        json!({
            "http_uri": {"uri": "https://okta/keys", "cluster": "jwks_cluster_okta", "timeout": "1s"},
            "cache_duration": cache,
        })
    };
    let cached = |cache: &str| {
        let manager = decoded(&provider(remote(cache)));
        let [HttpFilter::JwtAuthn(jwt)] = &manager.http_filters[..] else {
            panic!("jwt_authn")
        };
        let any = jwt.rules[0].requires.as_ref().unwrap();
        assert!(matches!(any, JwtRequirement::Any(both) if both[1] == JwtRequirement::AllowMissingOrFailed));
        let provider = &jwt.providers["okta"];
        assert_eq!(&*provider.from_headers[0].name, "authorization");
        let Jwks::Remote(remote) = &provider.jwks else {
            panic!("remote")
        };
        remote.cache_duration.as_secs()
    };
    assert_eq!(cached("30s"), 30);
    assert_eq!(cached("300000000000s"), 300, "five minutes as Consul writes them");
    assert_eq!(cached("0s"), 600);

    let mut missing = provider(remote("1s"));
    missing["http_filters"][0]["typed_config"]["rules"][0]["requires"] = json!({"provider_name": "auth0"});
    let error = refused(&missing);
    assert!(error.contains("\"auth0\" is not among the providers"), "{error}");
}

/// Beyond what protobuf's JSON can say; on the wire Consul says it all the same.
#[test]
fn jwt_with_a_cache_duration_beyond_protobufs_range() {
    use attache_proto::envoy::config::core::v3::{HttpUri, http_uri::HttpUpstreamType};
    use attache_proto::envoy::extensions::filters::http::jwt_authn::v3 as wire;
    let remote = wire::RemoteJwks {
        http_uri: Some(HttpUri {
            uri: "https://okta/keys".to_owned(),
            timeout: None,
            http_upstream_type: Some(HttpUpstreamType::Cluster("c".to_owned())),
        }),
        cache_duration: Some(prost_types::Duration {
            seconds: 3_600_000_000_000,
            nanos: 0,
        }),
        ..wire::RemoteJwks::default()
    };
    let jwt = wire::JwtAuthentication {
        providers: [(
            "okta".to_owned(),
            wire::JwtProvider {
                jwks_source_specifier: Some(wire::jwt_provider::JwksSourceSpecifier::RemoteJwks(remote)),
                ..wire::JwtProvider::default()
            },
        )]
        .into(),
        ..wire::JwtAuthentication::default()
    };
    let mut bench = Bench::default();
    let mut ctx = bench.context();
    let jwt = super::super::jwt::decode(&jwt, &At::resource("Listener", "l"), &mut ctx).unwrap();
    let Jwks::Remote(remote) = &jwt.providers["okta"].jwks else {
        panic!("remote")
    };
    assert_eq!(remote.cache_duration.as_secs(), 3600);
    assert_eq!(ctx.notices.len(), 1, "{:?}", ctx.notices);
}

#[test]
fn a_route_table_as_service_routers_make_it() {
    let table = routes(json!([
        {
            "match": {
                "safe_regex": {"regex": "/u/[0-9]+"},
                "headers": [{"name": ":method", "string_match": {"safe_regex": {"regex": "GET|PUT"}}}],
                "query_parameters": [{"name": "v", "string_match": {"exact": "2"}}],
            },
            "route": {
                "cluster": "a", "timeout": "0s", "idle_timeout": "0s",
                "regex_rewrite": {"pattern": {"regex": "^/v1(/?)(.*)"}, "substitution": "/\\2"},
                "retry_policy": {
                    "retry_on": "5xx, retriable-status-codes,odd",
                    "num_retries": 3, "retriable_status_codes": [418],
                },
                "hash_policy": [{"cookie": {"name": "c", "ttl": "0s"}, "terminal": true}],
            },
            "request_headers_to_add": [
                {"header": {"key": "X-A", "value": "1"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"},
                {"header": {"key": "X-B", "value": "1"}},
            ],
            "response_headers_to_remove": ["X-C"],
        },
        {
            "match": {"prefix": "/", "case_sensitive": false},
            "route": {"weighted_clusters": {"clusters": [{"name": "b", "weight": 9000}, {"name": "c", "weight": 1000}]}},
        },
    ]))
    .unwrap();
    let [first, second] = &table.virtual_hosts()[0].routes[..] else {
        panic!("two routes")
    };
    assert!(matches!(first.matches.path, PathMatch::Regex(_)));
    assert_eq!(
        (first.matches.headers.len(), first.matches.query_parameters.len()),
        (1, 1)
    );
    let RouteDecision::Route(action) = &first.action else {
        panic!("a route")
    };
    assert_eq!(
        (action.timeout, action.idle_timeout),
        (None, IdleTimeout::Disabled)
    );
    assert!(matches!(&action.path_rewrite, Some(PathRewrite::Regex(r)) if r.rewrite("/v1/x") == "/x"));
    let retries = action.retry_policy.as_ref().unwrap();
    assert_eq!(retries.retry_on, [RetryOn::FiveXx, RetryOn::RetriableStatusCodes]);
    assert_eq!(
        (retries.num_retries, &retries.retriable_status_codes[..]),
        (3, &[418][..])
    );
    assert!(action.hash_policy[0].terminal);
    assert!(
        matches!(&action.hash_policy[0].source, HashSource::Cookie { ttl: Some(ttl), .. } if ttl.is_zero())
    );
    let added: Vec<_> = first
        .headers
        .request_add
        .iter()
        .map(|h| (h.name.as_str(), h.append))
        .collect();
    assert_eq!(
        added,
        [
            ("x-a", HeaderAppendAction::OverwriteIfExistsOrAdd),
            ("x-b", HeaderAppendAction::AppendIfExistsOrAdd)
        ]
    );
    assert_eq!(*first.headers.response_remove, ["x-c".into()]);
    let RouteDecision::Route(action) = &second.action else {
        panic!("a route")
    };
    assert_eq!(action.timeout, Some(crate::model::route::DEFAULT_ROUTE_TIMEOUT));
    assert!(matches!(&action.cluster, ClusterSpecifier::Weighted(both) if both[0].weight == 9000));
    assert!(!second.matches.case_sensitive);
    let names: Vec<_> = table.clusters().map(|name| &**name).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

#[test]
fn routes_that_cannot_be_carried_out_are_refused_by_name() {
    let to = json!({"cluster": "a"});
    for (route, field) in [
        (
            json!({"match": {"prefix": "/", "grpc": {}}, "route": to}),
            "match.grpc",
        ),
        (json!({"match": {}, "route": to}), "match"),
        (json!({"match": {"prefix": "/"}}), "routes[0]"),
        (json!({"match": {"prefix": "/"}, "route": {}}), "route"),
        (
            json!({"match": {"prefix": "/"}, "route": {"cluster_header": "x"}}),
            "cluster_header",
        ),
        (
            json!({"match": {"prefix": "/"}, "direct_response": {"status": 99}}),
            "direct_response.status",
        ),
        (
            json!({"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "a".repeat(4097)}}}),
            "direct_response.body",
        ),
        (
            json!({"match": {"prefix": "/"}, "route": to, "request_headers_to_add": [{"header": {"key": ":path", "value": "x"}}]}),
            "request_headers_to_add[0].header.key",
        ),
        (
            json!({"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 0}]}}}),
            "weighted_clusters.clusters",
        ),
        (
            json!({"match": {"safe_regex": {"regex": "("}}, "route": to}),
            "match.safe_regex.regex",
        ),
    ] {
        let error = routes(json!([route])).unwrap_err();
        assert!(
            error.starts_with("RouteConfiguration \"web\": virtual_hosts[0].routes[0]"),
            "{error}"
        );
        assert!(error.contains(field), "{field}: {error}");
    }
    let host = json!({"name": "v", "domains": ["a"]});
    let twice = table(&json!({"name": "web", "virtual_hosts": [host, host]})).unwrap_err();
    assert!(twice.contains("the domain a is given twice"), "{twice}");
}

#[test]
fn a_redirect_to_an_empty_path_changes_none() {
    for (path, changes) in [
        (json!({"path_redirect": ""}), false),
        (json!({"prefix_rewrite": ""}), false),
        (json!({"prefix_rewrite": "/a"}), true),
    ] {
        let table = routes(json!([{"match": {"prefix": "/"}, "redirect": path}])).unwrap();
        let RouteDecision::Redirect(redirect) = &table.virtual_hosts()[0].routes[0].action else {
            panic!("it is a redirect");
        };
        assert_eq!(redirect.path.is_some(), changes, "{path}");
    }
}

#[test]
fn routes_may_be_named() {
    let rds = json!({"route_config_name": "web", "config_source": {"ads": {}, "resource_api_version": "V3"}});
    let by_rds = with(|m| {
        m.as_object_mut().unwrap().remove("route_config");
        m["rds"] = rds;
    });
    assert_eq!(decoded(&by_rds).routes, Routes::Rds("web".into()));
}
