//! Intentions as Consul keeps them (config entries of kind `service-intentions`), in the order of
//! precedence it documents, and the verdict its `authorize` endpoint gives.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// What an intention, or the default policy, says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Lets the caller in.
    #[default]
    Allow,
    /// Keeps the caller out.
    Deny,
}

impl Action {
    /// As Consul writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// One config entry: all sources of one destination, as they were given.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) sources: Vec<Map<String, Value>>,
    pub(super) meta: Value,
    pub(super) create: u64,
    pub(super) modify: u64,
}

#[derive(Debug, Default)]
pub(super) struct Intentions(BTreeMap<String, Entry>);

impl Intentions {
    /// Replaces a destination's sources.
    pub(super) fn put(&mut self, destination: &str, sources: Vec<Map<String, Value>>, index: u64) {
        let create = self.0.get(destination).map_or(index, |entry| entry.create);
        let meta = self.0.get(destination).map(|entry| entry.meta.clone());
        let entry = Entry {
            sources,
            meta: meta.unwrap_or_default(),
            create,
            modify: index,
        };
        self.0.insert(destination.to_owned(), entry);
    }

    pub(super) fn set_meta(&mut self, destination: &str, meta: Value) {
        if let Some(entry) = self.0.get_mut(destination) {
            entry.meta = meta;
        }
    }

    /// When a destination's entry last changed; 0 if there is none, as Consul's `cas` has it.
    pub(super) fn modified(&self, destination: &str) -> u64 {
        self.0.get(destination).map_or(0, |entry| entry.modify)
    }

    pub(super) fn remove(&mut self, destination: &str) -> bool {
        self.0.remove(destination).is_some()
    }

    /// Sets one source's action, and leaves the other sources alone.
    pub(super) fn set(&mut self, source: &str, destination: &str, action: Action, index: u64) {
        let mut sources = self.sources_without(source, destination);
        let mut entry = Map::new();
        entry.insert("Name".to_owned(), json!(source));
        entry.insert("Action".to_owned(), json!(action.as_str()));
        sources.push(entry);
        self.put(destination, sources, index);
    }

    /// Removes one source; the entry goes with its last one.
    pub(super) fn unset(&mut self, source: &str, destination: &str, index: u64) {
        let sources = self.sources_without(source, destination);
        if sources.is_empty() {
            self.remove(destination);
        } else {
            self.put(destination, sources, index);
        }
    }

    fn sources_without(&self, source: &str, destination: &str) -> Vec<Map<String, Value>> {
        let sources = self.0.get(destination).map(|entry| entry.sources.clone());
        let mut sources = sources.unwrap_or_default();
        sources.retain(|given| text(given, "Name") != source);
        sources
    }

    pub(super) fn entries_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.0.values_mut()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The entry as `/v1/config/service-intentions/:name` shows it.
    pub(super) fn config_entry(&self, destination: &str) -> Option<Value> {
        let entry = self.0.get(destination)?;
        let sources: Vec<Value> = entry
            .sources
            .iter()
            .map(|source| {
                let mut shown = source.clone();
                let rank = precedence(&text(source, "Name"), destination);
                shown.insert("Precedence".to_owned(), json!(rank));
                shown.entry("Type").or_insert(json!("consul"));
                Value::Object(shown)
            })
            .collect();
        let mut shown = json!({
            "Kind": "service-intentions",
            "Name": destination,
            "Sources": sources,
            "CreateIndex": entry.create,
            "ModifyIndex": entry.modify,
        });
        if !entry.meta.is_null() {
            shown["Meta"] = entry.meta.clone();
        }
        Some(shown)
    }

    /// All intentions that concern this destination, the strongest first.
    pub(super) fn matching(&self, destination: &str) -> Vec<Value> {
        let mut found: Vec<(u8, String, Value)> = Vec::new();
        let names = if destination == "*" {
            &["*"][..]
        } else {
            &[destination, "*"][..]
        };
        for name in names {
            let Some(entry) = self.0.get(*name) else {
                continue;
            };
            for source in &entry.sources {
                let rank = precedence(&text(source, "Name"), name);
                let key = ["SamenessGroup", "Peer", "Partition", "Namespace", "Name"]
                    .map(|field| text(source, field))
                    .join("\0");
                let key = format!("{key}\0{name}");
                found.push((rank, key, intention_json(source, name, rank, entry)));
            }
        }
        found.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        found.into_iter().map(|(_, _, intention)| intention).collect()
    }

    /// The answer of `POST /v1/agent/connect/authorize`. Like Consul it looks at neither the
    /// caller's trust domain nor its serial, and an intention with permissions denies.
    pub(super) fn authorize(
        &self,
        destination: &str,
        source: &str,
        default: Action,
        default_reason: &str,
    ) -> Value {
        let matches = |intention: &&Value| {
            let name = intention["SourceName"].as_str().unwrap_or_default();
            intention.get("SourcePeer").is_none() && (name == source || name == "*")
        };
        let all = self.matching(destination);
        let Some(intention) = all.iter().find(matches) else {
            return json!({ "Authorized": default == Action::Allow, "Reason": default_reason });
        };
        let field = |name: &str| intention[name].as_str().unwrap_or_default();
        let (layer, detail) = match intention["Permissions"].as_array() {
            Some(permissions) => ("L7", format!("Permissions: {}", permissions.len())),
            None => ("L4", format!("Action: {}", field("Action").to_uppercase())),
        };
        let reason = format!(
            "Matched {layer} intention: {}/{} => {}/{} (Precedence: {}, {detail})",
            field("SourceNS"),
            field("SourceName"),
            field("DestinationNS"),
            field("DestinationName"),
            intention["Precedence"],
        );
        json!({ "Authorized": layer == "L4" && field("Action") == "allow", "Reason": reason })
    }
}

/// Exact before wildcard, the destination counting more than the source.
fn precedence(source: &str, destination: &str) -> u8 {
    match (destination, source) {
        ("*", "*") => 5,
        ("*", _) => 6,
        (_, "*") => 8,
        _ => 9,
    }
}

fn intention_json(source: &Map<String, Value>, destination: &str, rank: u8, entry: &Entry) -> Value {
    let mut intention = Map::new();
    let mut set = |name: &str, value: Value| intention.insert(name.to_owned(), value);
    if let Some(description) = source.get("Description") {
        set("Description", description.clone());
    }
    let namespace = Some(text(source, "Namespace")).filter(|it| !it.is_empty());
    set("SourceNS", json!(namespace.as_deref().unwrap_or("default")));
    set("SourceName", json!(text(source, "Name")));
    set("DestinationNS", json!("default"));
    set("DestinationName", json!(destination));
    for (field, shown) in [
        ("Partition", "SourcePartition"),
        ("Peer", "SourcePeer"),
        ("SamenessGroup", "SourceSamenessGroup"),
    ] {
        if let Some(value) = source.get(field) {
            set(shown, value.clone());
        }
    }
    set("SourceType", json!("consul"));
    for field in ["Action", "Permissions"] {
        if let Some(value) = source.get(field) {
            set(field, value.clone());
        }
    }
    set("Precedence", json!(rank));
    set("CreateIndex", json!(entry.create));
    set("ModifyIndex", json!(entry.modify));
    Value::Object(intention)
}

fn text(source: &Map<String, Value>, field: &str) -> String {
    let value = source.get(field).and_then(Value::as_str);
    value.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::{Action, Intentions};
    use serde_json::{Map, Value, json};

    fn order(intentions: &Intentions) -> Vec<(String, String, u64)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        intentions
            .matching("api")
            .iter()
            .map(|it| {
                let rank = it["Precedence"].as_u64().unwrap();
                (text(&it["SourceName"]), text(&it["DestinationName"]), rank)
            })
            .collect()
    }

    #[test]
    fn exact_comes_before_wildcard_and_names_break_ties() {
        let mut intentions = Intentions::default();
        intentions.set("*", "*", Action::Allow, 1);
        intentions.set("web", "*", Action::Deny, 2);
        intentions.set("*", "api", Action::Allow, 3);
        intentions.set("web", "api", Action::Deny, 4);
        intentions.set("admin", "api", Action::Allow, 5);
        intentions.set("other", "db", Action::Deny, 6);
        let row = |source: &str, destination: &str, rank| (source.to_owned(), destination.to_owned(), rank);
        assert_eq!(
            order(&intentions),
            [
                row("admin", "api", 9),
                row("web", "api", 9),
                row("*", "api", 8),
                row("web", "*", 6),
                row("*", "*", 5)
            ]
        );
    }

    #[test]
    fn authorize_gives_consuls_reason() {
        let mut intentions = Intentions::default();
        let ask = |intentions: &Intentions, source| {
            intentions.authorize("api", source, Action::Deny, "Default intention policy")
        };
        assert_eq!(
            ask(&intentions, "web"),
            json!({ "Authorized": false, "Reason": "Default intention policy" })
        );
        intentions.set("web", "api", Action::Allow, 4);
        assert_eq!(
            ask(&intentions, "web"),
            json!({
                "Authorized": true,
                "Reason": "Matched L4 intention: default/web => default/api (Precedence: 9, Action: ALLOW)",
            })
        );
        let mut with_permissions = Map::new();
        with_permissions.insert("Name".to_owned(), json!("web"));
        with_permissions.insert("Permissions".to_owned(), json!([{ "Action": "allow" }]));
        intentions.put("api", vec![with_permissions], 5);
        assert_eq!(ask(&intentions, "web")["Authorized"], json!(false));
    }

    #[test]
    fn removing_the_last_source_removes_the_entry() {
        let mut intentions = Intentions::default();
        intentions.set("web", "api", Action::Allow, 4);
        intentions.unset("web", "api", 5);
        assert!(intentions.config_entry("api").is_none() && intentions.matching("api").is_empty());
    }
}
