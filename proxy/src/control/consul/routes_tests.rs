//! What is not in the recorded meshes: other versions of Consul, chains that do not fit together.

use super::super::chain;
use super::*;
use crate::model::route::RouteDecision;

const API: &str = r#""r":{"Type":"resolver","Resolver":{"Target":"t"}}"#;

fn chain(start: &str, nodes: &str) -> Result<Chain, String> {
    let body = format!(
        r#"{{"Chain":{{"ServiceName":"api","StartNode":"{start}","Protocol":"http","Nodes":{{{nodes}}},
        "Targets":{{"t":{{"Service":"api","Name":"t.name","SNI":"t.sni","Datacenter":"dc1"}}}}}}}}"#
    );
    chain::decode(body.as_bytes()).map_err(|error| error.to_string())
}

fn router(http: &str, destination: &str) -> Result<Chain, String> {
    let nodes = format!(
        r#""s":{{"Type":"router","Routes":[{{"Definition":{{"Match":{{"HTTP":{{{http}}}}},
        "Destination":{{{destination}}}}},"NextNode":"r"}}]}},{API}"#
    );
    chain("s", &nodes)
}

fn action(table: &RouteConfiguration) -> RouteAction {
    match &table.virtual_hosts()[0].routes[0].action {
        RouteDecision::Route(action) => (**action).clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn prefixes_are_rewritten_as_the_agents_version_does() {
    let rewritten = |prefix: &str, rewrite: &str, rewrites, path: &'static str| {
        let http = format!(r#""PathPrefix":"{prefix}","CaseInsensitive":true"#);
        let chain = router(&http, &format!(r#""PrefixRewrite":"{rewrite}""#)).unwrap();
        let table = table(&"api".into(), &chain, rewrites).unwrap();
        match action(&table).path_rewrite {
            None => path.to_owned(),
            Some(PathRewrite::Prefix(new)) => format!("{new}{}", &path[prefix.len()..]),
            Some(PathRewrite::Regex(regex)) => regex.rewrite(path).into_owned(),
        }
    };
    use PrefixRewrites::{CutAlways, Plain, WithoutDoubleSlash};
    for (rewrites, rewrite, expected) in [
        (Plain, "", "/A.b/x"),
        (Plain, "/", "//x"),
        (Plain, "/new", "/new/x"),
        (CutAlways, "", "/x"),
        (CutAlways, "/", "/x"),
        (CutAlways, "/new", "/new/x"),
        (WithoutDoubleSlash, "", "/A.b/x"),
        (WithoutDoubleSlash, "/", "/x"),
        (WithoutDoubleSlash, "/new", "/new/x"),
    ] {
        let path = rewritten("/a.b", rewrite, rewrites, "/A.b/x");
        assert_eq!(path, expected, "{rewrites:?} {rewrite:?}");
    }
    // The prefix is no expression.
    assert_eq!(rewritten("/a.b", "/", WithoutDoubleSlash, "/axb/x"), "/axb/x");
}

#[test]
fn what_does_not_fit_together_is_said() {
    let refusal = |start: &str, nodes: &str| {
        let chain = chain(start, nodes).unwrap();
        table(&"api".into(), &chain, PrefixRewrites::Plain).unwrap_err()
    };
    let splitter = |splits: &str| format!(r#""s":{{"Type":"splitter","Splits":[{splits}]}},{API}"#);
    assert_eq!(refusal("x", API), "its chain lacks the node \"x\"");
    assert_eq!(
        refusal("s", &splitter(r#"{"Weight":0,"NextNode":"r"}"#)),
        "its splits have no weight above 0"
    );
    assert_eq!(
        refusal("s", &splitter(r#"{"Weight":1,"NextNode":"s"}"#)),
        "its chain has no resolver behind a splitter"
    );
    assert_eq!(
        refusal("s", r#""s":{"Type":"lambda"}"#),
        "its chain has a node that is not known (lambda)"
    );
    let loops = r#""s":{"Type":"router","Routes":[{"NextNode":"s"}]}"#;
    assert_eq!(refusal("s", loops), "its chain has a router behind another node");
    let elsewhere = r#""r":{"Type":"resolver","Resolver":{"Target":"other"}}"#;
    assert_eq!(refusal("r", elsewhere), "its chain lacks the target \"other\"");
}

#[test]
fn errors_name_the_field() {
    let at = |part: &str| format!("Chain.Nodes.s.Routes[0].Definition.{part}");
    for (http, destination, field) in [
        (r#""PathRegex":"(""#, "", "Match.HTTP.PathRegex"),
        (r#""Cookie":[1]"#, "", "Match.HTTP.Cookie: is not known"),
        (
            r#""Header":[{"Name":"x","New":"y"}]"#,
            "",
            "Match.HTTP.Header[0].New: is not known",
        ),
        (
            r#""Header":[{"Name":"x"}]"#,
            "",
            "Match.HTTP.Header[0].Name: nothing is asked",
        ),
        (
            r#""QueryParam":[{"Name":"x"}]"#,
            "",
            "Match.HTTP.QueryParam[0].Name: nothing is asked",
        ),
        (r#""Methods":["("]"#, "", "Match.HTTP.Methods"),
        (
            "",
            r#""RequestTimeout":"soon""#,
            "Destination.RequestTimeout: not a duration",
        ),
        (
            "",
            r#""NumRetries":-1"#,
            "Destination.NumRetries: -1 is out of range",
        ),
        (
            "",
            r#""RetryOnStatusCodes":[70000]"#,
            "Destination.RetryOnStatusCodes: 70000 is no status",
        ),
        (
            "",
            r#""RequestHeaders":{"Set":{"Host":"x"}}"#,
            "Destination.RequestHeaders.Set: \"Host\" must not be changed",
        ),
    ] {
        let error = router(http, destination).unwrap_err();
        assert!(error.starts_with(&at(field)), "{error}");
    }
    let balancer = |text: &str| {
        let node =
            format!(r#""r":{{"Type":"resolver","Resolver":{{"Target":"t"}},"LoadBalancer":{{{text}}}}}"#);
        chain("r", &node).unwrap_err()
    };
    let at = "Chain.Nodes.r.LoadBalancer";
    assert_eq!(
        balancer(r#""Policy":"new""#),
        format!("{at}.Policy: \"new\" is not known")
    );
    let hash = balancer(r#""Policy":"maglev","HashPolicies":[{"Field":"new"}]"#);
    assert_eq!(hash, format!("{at}.HashPolicies[0].Field: \"new\" is not known"));
    let ring = balancer(r#""Policy":"ring_hash","RingHashConfig":{"MinimumRingSize":9,"MaximumRingSize":8}"#);
    assert!(
        ring.starts_with(&format!("{at}.RingHashConfig.MaximumRingSize")),
        "{ring}"
    );
}

#[test]
fn what_has_no_effect_is_noticed() {
    let chain = router("", r#""RetryOn":["5xx","http3-post-connect-failure"],"New":1"#).unwrap();
    let at = "Chain.Nodes.s.Routes[0].Definition.Destination";
    assert_eq!(
        chain.notices,
        [
            format!("{at}.New is not honoured"),
            format!("{at}.RetryOn \"http3-post-connect-failure\" has no effect"),
        ]
    );
}
