//! The command line: what it says, and what that comes to.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::figure::Group;
use crate::kind::Kind;
use crate::message::{LEAST, MOST};
use crate::scaling;
use crate::scene::Needs;
use crate::turn::Plan;

/// The groups that are measured unless others are asked for: what fits in a dozen minutes.
const USUAL: [Group; 4] = [Group::Requests, Group::Connections, Group::Bulk, Group::Idle];

/// Upstreams of an idle sidecar, beside the one that every sidecar has.
const FURTHER_UPSTREAMS: usize = 99;

/// Descriptors of a process besides two a connection: its files, listeners and pools.
const OTHER_DESCRIPTORS: usize = 400;

/// Local ports are what bounds the connections to one address.
const MOST_CONNECTIONS: u64 = 20_000;

/// Measures pairs of sidecars, outbound to inbound over mutual TLS, side by side.
#[derive(Debug, Parser)]
#[command(name = "attache-benches")]
pub(crate) struct Arguments {
    /// What the sidecars carry [default: all].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND")]
    kinds: Vec<Kind>,
    /// Who takes part: attache, envoy, envoy-full (no session is resumed), haproxy, nginx.
    #[arg(long, value_delimiter = ',', default_value = "attache,envoy,haproxy,nginx")]
    pub(crate) peers: Vec<String>,
    /// Groups of figures [default: requests,connections,bulk,idle].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "GROUP")]
    only: Vec<Group>,
    /// All groups of figures.
    #[arg(long, conflicts_with = "only")]
    all: bool,
    /// Bytes of a response, 16 to 64m: 64, 1k, 1m.
    #[arg(long, value_delimiter = ',', default_value = "64", value_parser = parse_size, value_name = "BYTES")]
    sizes: Vec<usize>,
    /// Requests at once.
    #[arg(long, value_delimiter = ',', default_value = "1,64", value_parser = parse_count, value_name = "N")]
    concurrency: Vec<usize>,
    /// Idle connections whose memory is measured.
    #[arg(long, value_delimiter = ',', default_value = "900", value_parser = parse_count, value_name = "N")]
    idle: Vec<usize>,
    /// Connections that come and go in the group churn.
    #[arg(long, default_value = "10000", value_parser = clap::value_parser!(u32).range(100..=1_000_000), value_name = "N")]
    churn: u32,
    /// Open connections of which 100 are busy, in the group scaling.
    #[arg(long, default_value = "10000", value_parser = clap::value_parser!(u32).range(200..=MOST_CONNECTIONS as i64), value_name = "N")]
    crowd: u32,
    /// Leaves out what Consul lets every HTTP sidecar read of a caller's certificate into metadata:
    /// five regular expressions a request, for filters that few meshes have.
    #[arg(long)]
    pub(crate) no_metadata: bool,
    /// How long each figure that time bounds is measured.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub(crate) seconds: u64,
    /// How often every peer has its turn.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50))]
    pub(crate) rounds: u32,
    /// Another peer, whose COMMAND is run with `-c FILE` and Nomad's arguments on Envoy's file.
    #[arg(long, value_name = "NAME=COMMAND")]
    pub(crate) config_file_peer: Vec<String>,
    /// The attache binary [default: built now, in release mode].
    #[arg(long, value_name = "PATH")]
    pub(crate) attache: Option<PathBuf>,
    /// The envoy binary [default: from PATH, or what the wrapper there stands for].
    #[arg(long, value_name = "PATH")]
    pub(crate) envoy: Option<PathBuf>,
    /// Writes every sample there.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Writes the table there.
    #[arg(long, value_name = "FILE")]
    pub(crate) markdown: Option<PathBuf>,
    /// Draws the chart there.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

impl Arguments {
    /// What the sidecars carry, each once, in the order of the table.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        if self.kinds.is_empty() {
            return Kind::value_variants().to_vec();
        }
        let mut kinds = self.kinds.clone();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }

    /// What a turn does, where a process may have so many descriptors; and what was cut to fit.
    pub(crate) fn plan(&self, descriptors: u64) -> (Plan, Vec<String>) {
        let groups = match (self.all, self.only.is_empty()) {
            (true, _) => Group::value_variants().to_vec(),
            (false, true) => USUAL.to_vec(),
            (false, false) => self.only.clone(),
        };
        // Load and backend are ends of one process; a proxy has two of each connection as well.
        let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let most = descriptors.saturating_sub(OTHER_DESCRIPTORS) / 2;
        let mut remarks = Vec::new();
        let mut cut = |name: &str, count: usize| {
            if count > most {
                remarks.push(format!(
                    "{name} {count}: {most}, since a process may open {descriptors} files"
                ));
            }
            count.min(most)
        };
        let plan = Plan {
            duration: Duration::from_secs(self.seconds),
            sizes: self.sizes.clone(),
            concurrency: self
                .concurrency
                .iter()
                .map(|it| cut("--concurrency", *it))
                .collect(),
            idle: if groups.contains(&Group::Idle) {
                self.idle.iter().map(|it| cut("--idle", *it)).collect()
            } else {
                Vec::new()
            },
            churn: self.churn as usize,
            metadata: !self.no_metadata,
            crowd: if groups.contains(&Group::Scaling) {
                cut("--crowd", self.crowd as usize)
            } else {
                self.crowd as usize
            },
            groups,
        };
        (plan, remarks)
    }
}

impl Plan {
    /// What its turns need of the scene.
    pub(crate) fn needs(&self) -> Needs {
        let mut connections = 0;
        let mut further_upstreams = 0;
        for group in &self.groups {
            let of_group = match group {
                Group::Requests => self.concurrency.iter().copied().max().unwrap_or(0),
                Group::Idle => self.idle.iter().copied().max().unwrap_or(0),
                Group::Scaling => self.crowd.max(scaling::CONNECTIONS),
                Group::Upstreams => {
                    further_upstreams = FURTHER_UPSTREAMS;
                    0
                }
                Group::Connections | Group::Bulk | Group::Churn => 0,
            };
            connections = connections.max(of_group);
        }
        Needs {
            connections,
            further_upstreams,
            metadata: self.metadata,
        }
    }
}

fn parse_size(text: &str) -> Result<usize, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1024),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1024 * 1024),
        _ => (text, 1),
    };
    digits
        .parse::<usize>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .filter(|size| (LEAST..=MOST).contains(size))
        .ok_or_else(|| format!("not a number of bytes from {LEAST} to 64m, such as 64, 16k or 1m"))
}

fn parse_count(text: &str) -> Result<usize, String> {
    text.parse::<u64>()
        .ok()
        .filter(|count| (1..=MOST_CONNECTIONS).contains(count))
        .and_then(|count| usize::try_from(count).ok())
        .ok_or_else(|| format!("not a number from 1 to {MOST_CONNECTIONS}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::{Arguments, Group, Kind, parse_count, parse_size};

    fn parse(words: &[&str]) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from([&["attache-benches"], words].concat())
    }

    #[test]
    fn sizes_have_units_and_bounds() {
        assert_eq!(parse_size("64"), Ok(64));
        assert_eq!(parse_size("16k"), Ok(16 * 1024));
        assert_eq!(parse_size("1M"), Ok(1024 * 1024));
        for wrong in [
            "",
            "k",
            "15",
            "65m",
            "1g",
            "-1",
            "1.5k",
            "99999999999999999999m",
            "é",
        ] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_count("1000"), Ok(1000));
        assert!(parse_count("0").is_err() && parse_count("20001").is_err());
    }

    #[test]
    fn all_kinds_are_measured_unless_some_are_named() {
        let all = [Kind::Tcp, Kind::Http1, Kind::Http2, Kind::Grpc];
        assert_eq!(parse(&[]).unwrap().kinds(), all);
        let some = parse(&["--kinds", "http2,tcp,http2"]).unwrap().kinds();
        assert_eq!(some, [Kind::Tcp, Kind::Http2]);
        assert!(parse(&["--kinds", "udp"]).is_err());
        assert!(parse(&["--all", "--only", "bulk"]).is_err());
    }

    #[test]
    fn a_plan_fits_the_descriptors_and_says_what_it_cut() {
        let arguments = parse(&["--only", "idle,scaling", "--idle", "900,10000"]).unwrap();
        let (plan, remarks) = arguments.plan(20_000);
        assert_eq!((&plan.idle[..], plan.crowd), (&[900, 9_800][..], 9_800));
        assert_eq!(remarks.len(), 2);
        assert_eq!(plan.needs().connections, 9_800);
        let (plan, remarks) = arguments.plan(1 << 20);
        assert_eq!((plan.needs().connections, remarks.len()), (10_000, 0));
    }

    #[test]
    fn the_usual_plan_needs_no_raised_limits() {
        let (plan, remarks) = parse(&[]).unwrap().plan(20_000);
        assert!(remarks.is_empty());
        assert_eq!(plan.needs().connections, 900);
        assert_eq!(plan.needs().further_upstreams, 0);
        let (plan, _) = parse(&["--all"]).unwrap().plan(20_000);
        assert!(plan.groups.contains(&Group::Upstreams));
        assert_eq!(plan.needs().further_upstreams, 99);
    }
}
