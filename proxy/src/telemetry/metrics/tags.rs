//! Tags: the variable parts of a statistic's name, taken out of it and shown as labels.
//!
//! Envoy's scheme (its `StatsConfig`): each rule looks at the full dotted name and may find a tag's
//! value and a part to leave out; what no rule left out is the name that Prometheus sees. Owns the
//! rules and their order; knows neither numbers nor formats.

use std::ops::Range;
use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};

use super::well_known::{self, Find, WELL_KNOWN};

/// No more memory than this for one configured expression, as Envoy's limit for RE2 programs does.
const REGEX_SIZE_LIMIT: usize = 1 << 20;

/// Envoy's `StatsConfig`, as far as it is about tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatsConfig {
    /// `stats_tags`, in order.
    pub stats_tags: Vec<TagSpecifier>,
    /// `use_all_default_tags`; Envoy takes absence for true.
    pub use_all_default_tags: bool,
}

/// Envoy's `TagSpecifier`: a tag that every matching name has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagSpecifier {
    /// `tag_name`, such as `consul.destination.service`. Unique in a configuration.
    pub tag_name: String,
    /// Where the value comes from.
    pub value: TagValue,
}

/// Where a tag's value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagValue {
    /// `regex`: the first group is left out of the name, the second (or else the first) is the value.
    Regex(String),
    /// `fixed_value`: the same for every name.
    Fixed(String),
    /// Neither: the rule of Envoy's own, or of Consul's names, that is called so.
    WellKnown,
}

impl StatsConfig {
    /// What Consul asks for in a bootstrap file: the parts of the names that it gives clusters and
    /// upstreams. Whose sidecar it is, is for [`Self::with_source`] to say.
    pub fn consul() -> Self {
        let mut config = Self::default();
        for rule in &super::consul::RULES {
            if !config.stats_tags.iter().any(|tag| tag.tag_name == rule.tag) {
                config.stats_tags.push(TagSpecifier {
                    tag_name: rule.tag.to_owned(),
                    value: TagValue::WellKnown,
                });
            }
        }
        config
    }

    /// With these tags and values for every name beside its own; one of its own that is called alike goes.
    pub fn with_tags(mut self, tags: &[(String, String)]) -> Self {
        for (tag, value) in tags {
            self.stats_tags.retain(|own| own.tag_name != *tag);
            self.stats_tags.push(TagSpecifier {
                tag_name: tag.clone(),
                value: TagValue::Fixed(value.clone()),
            });
        }
        self
    }

    /// With the tags that say whose sidecar this is, as Consul has them: `local_cluster` and
    /// `consul.source.…`.
    #[must_use]
    pub fn with_source(mut self, service: &str, namespace: &str, partition: &str, datacenter: &str) -> Self {
        for (name, value) in [
            ("local_cluster", service),
            ("consul.source.service", service),
            ("consul.source.namespace", namespace),
            ("consul.source.partition", partition),
            ("consul.source.datacenter", datacenter),
        ] {
            self.stats_tags.push(TagSpecifier {
                tag_name: name.to_owned(),
                value: TagValue::Fixed(value.to_owned()),
            });
        }
        self
    }
}

impl Default for StatsConfig {
    fn default() -> Self {
        Self {
            stats_tags: Vec::new(),
            use_all_default_tags: true,
        }
    }
}

/// Why a [`StatsConfig`] cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    /// Not RE2 syntax, or too large.
    #[error("stats_config.stats_tags: the regex of {tag} cannot be used: {reason}")]
    Regex {
        /// The tag.
        tag: String,
        /// The parser's words.
        reason: String,
    },
    /// No group: nothing could be left out.
    #[error("stats_config.stats_tags: the regex of {0} has no group; put the part to leave out in one")]
    NoGroup(String),
    /// A name without value that Envoy has no rule for.
    #[error(
        "stats_config.stats_tags: {0} has neither regex nor fixed_value and is not one of Envoy's own tags"
    )]
    Unknown(String),
    /// The same name twice.
    #[error("stats_config.stats_tags: {0} is there twice; remove one")]
    Twice(String),
}

/// The rules in the order in which tags appear: first those that any name may match, then those for
/// names that begin with a fixed word, each Envoy's own before the configured ones.
#[derive(Debug, Default)]
pub struct TagRules(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    tag: Arc<str>,
    /// What a name must begin with, up to its first dot, for the rule to be tried.
    first_word: Option<Box<str>>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    WellKnown(Find),
    Regex(Regex),
    Fixed(Box<str>),
}

/// A name without its tags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extracted {
    /// What is left of the dotted name.
    pub name: String,
    /// The tags in the order of the rules. A value may be empty: its group took no part in the match.
    pub tags: Vec<(Arc<str>, String)>,
}

impl TagRules {
    /// Compiles the rules.
    ///
    /// # Errors
    /// [`TagError`], naming the tag.
    pub fn new(config: &StatsConfig) -> Result<Self, TagError> {
        let mut rules = Vec::new();
        if config.use_all_default_tags {
            rules.extend(WELL_KNOWN.iter().map(Rule::well_known));
        }
        let default = rules.len();
        for tag in &config.stats_tags {
            let name = &tag.tag_name;
            if rules[default..].iter().any(|rule| *rule.tag == **name) {
                return Err(TagError::Twice(name.clone()));
            }
            match &tag.value {
                TagValue::Fixed(value) => rules.push(Rule {
                    tag: name.as_str().into(),
                    first_word: None,
                    kind: Kind::Fixed(value.as_str().into()),
                }),
                TagValue::Regex(regex) => rules.push(Rule::regex(name, regex)?),
                TagValue::WellKnown => {
                    let mut own = well_known::named(name).map(Rule::well_known).peekable();
                    if own.peek().is_none() {
                        return Err(TagError::Unknown(name.clone()));
                    }
                    rules.extend(own);
                }
            }
        }
        rules.sort_by_key(|rule| rule.first_word.is_some());
        Ok(Self(rules))
    }

    /// Takes the tags out of `name`. Every rule sees the whole name.
    pub fn extract(&self, name: &str) -> Extracted {
        let first_word = name.split_once('.').map_or(name, |(word, _)| word);
        let mut tags: Vec<(Arc<str>, String)> = Vec::new();
        let mut left_out: Vec<Range<usize>> = Vec::new();
        for rule in &self.0 {
            let elsewhere = rule.first_word.as_deref().is_some_and(|word| word != first_word);
            // The first rule of a tag that matches gives its value.
            if elsewhere || tags.iter().any(|(tag, _)| *tag == rule.tag) {
                continue;
            }
            let Some((remove, value)) = rule.find(name) else {
                continue;
            };
            tags.push((Arc::clone(&rule.tag), value));
            left_out.extend(remove);
        }
        left_out.sort_by_key(|range| range.start);
        let mut rest = String::with_capacity(name.len());
        let mut at = 0;
        for range in left_out {
            rest.push_str(name.get(at..range.start).unwrap_or_default());
            at = at.max(range.end);
        }
        rest.push_str(name.get(at..).unwrap_or_default());
        Extracted { name: rest, tags }
    }
}

impl Rule {
    fn well_known(rule: &well_known::Rule) -> Self {
        Self {
            tag: rule.tag.into(),
            first_word: rule.first_word.map(Into::into),
            kind: Kind::WellKnown(rule.find),
        }
    }

    fn regex(tag: &str, pattern: &str) -> Result<Self, TagError> {
        // As RE2 has it: `\d` and its like are ASCII.
        let regex = RegexBuilder::new(pattern)
            .unicode(false)
            .size_limit(REGEX_SIZE_LIMIT)
            .build()
            .map_err(|error| TagError::Regex {
                tag: tag.to_owned(),
                reason: error.to_string(),
            })?;
        if regex.captures_len() < 2 {
            return Err(TagError::NoGroup(tag.to_owned()));
        }
        Ok(Self {
            tag: tag.into(),
            first_word: first_word(pattern).map(Into::into),
            kind: Kind::Regex(regex),
        })
    }

    /// The part to leave out, if any, and the value.
    fn find(&self, name: &str) -> Option<(Option<Range<usize>>, String)> {
        match &self.kind {
            Kind::Fixed(value) => Some((None, value.to_string())),
            Kind::WellKnown(find) => {
                let found = find(name)?;
                Some((Some(found.remove), name.get(found.value)?.to_owned()))
            }
            Kind::Regex(regex) => {
                let groups = regex.captures(name.as_bytes())?;
                let remove = groups.get(1)?.range();
                let value = match groups.len() {
                    2 => remove.clone(),
                    _ => groups.get(2).map_or(0..0, |group| group.range()),
                };
                // Bytes that split a character (the expression works on bytes) match nothing.
                name.get(remove.clone())?;
                Some((Some(remove), name.get(value)?.to_owned()))
            }
        }
    }
}

/// The word that an expression of the form `^word\.…` asks for at the beginning.
fn first_word(pattern: &str) -> Option<&str> {
    let rest = pattern.strip_prefix('^')?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
    (end > 0 && rest[end..].starts_with("\\.") && !pattern.contains('|')).then_some(&rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(tags: &[(&str, TagValue)]) -> Result<TagRules, TagError> {
        TagRules::new(&StatsConfig {
            stats_tags: tags
                .iter()
                .map(|(name, value)| TagSpecifier {
                    tag_name: (*name).to_owned(),
                    value: value.clone(),
                })
                .collect(),
            use_all_default_tags: true,
        })
    }

    fn shown(extracted: &Extracted) -> String {
        let tags: Vec<String> = extracted.tags.iter().map(|(k, v)| format!("{k}={v}")).collect();
        format!("{} {}", extracted.name, tags.join(" "))
    }

    #[test]
    fn configured_tags_join_envoys_own() {
        let rules = rules(&[
            (
                "subset",
                TagValue::Regex(r"^cluster\.((?:([^.]+)~)?web\.)".into()),
            ),
            ("one", TagValue::Regex(r"\.upstream(_cx)".into())),
            ("where", TagValue::Fixed("here".into())),
        ])
        .unwrap();
        let seen = |name| shown(&rules.extract(name));
        assert_eq!(
            seen("cluster.v1~web.upstream_cx_total"),
            "cluster.upstream_total one=_cx where=here envoy.cluster_name=v1~web subset=v1"
        );
        // A group that took no part is an empty value.
        assert_eq!(
            seen("cluster.web.x"),
            "cluster.x where=here envoy.cluster_name=web subset="
        );
        assert_eq!(seen("server.live"), "server.live where=here");
        assert_eq!(seen(""), " where=here");
        assert_eq!(seen("cluster.é.x"), "cluster.x where=here envoy.cluster_name=é");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (tag, value, wanted) in [
            ("a", TagValue::Regex("(".into()), "the regex of a cannot be used"),
            ("b", TagValue::Regex("x".into()), "the regex of b has no group"),
            ("c", TagValue::WellKnown, "c has neither regex nor fixed_value"),
            (
                "d",
                TagValue::Regex("((((a{999}){999}){9}))".into()),
                "the regex of d",
            ),
        ] {
            let error = rules(&[(tag, value)]).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let twice = [
            ("a", TagValue::Fixed("1".into())),
            ("a", TagValue::Fixed("2".into())),
        ];
        assert!(rules(&twice).unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn without_the_defaults_a_tag_of_envoys_is_asked_for_by_name() {
        let config = StatsConfig {
            stats_tags: vec![TagSpecifier {
                tag_name: "envoy.http_conn_manager_prefix".into(),
                value: TagValue::WellKnown,
            }],
            use_all_default_tags: false,
        };
        let rules = TagRules::new(&config).unwrap();
        assert_eq!(
            shown(&rules.extract("http.admin.rq_total")),
            "http.rq_total envoy.http_conn_manager_prefix=admin"
        );
        assert_eq!(shown(&rules.extract("cluster.web.x")), "cluster.web.x ");
    }
}
